from dataclasses import replace

import pytest
from hypothesis import given
from hypothesis import strategies as st

from snapshotter.errors import InvalidError
from snapshotter.format.digest import Digest, sha256, to_text
from snapshotter.registry.reference import TEXT_MAX, Reference, parse

DIGEST = sha256(b"")
HEX = "0123456789abcdef" * 4


@pytest.mark.parametrize(
    ("text", "canonical"),
    [
        ("debian", "docker.io/library/debian"),
        ("debian:12", "docker.io/library/debian:12"),
        ("docker.io/debian", "docker.io/library/debian"),
        ("index.docker.io/library/debian", "docker.io/library/debian"),
        ("grafana/loki:2", "docker.io/grafana/loki:2"),
        ("library/a/b", "docker.io/library/a/b"),
        ("localhost/a", "localhost/a"),
        ("docker.io/localhost/a", "docker.io/localhost/a"),
        ("localhost:5000/a:1", "localhost:5000/a:1"),
        ("host:5000", "docker.io/library/host:5000"),
        ("docker.io", "docker.io/library/docker.io"),
        ("[::1]:5000/a/b", "[::1]:5000/a/b"),
        ("[fd00::1]/a", "[fd00::1]/a"),
        ("Host/a", "Host/a"),
        ("a__b/c---d/e.f:T_.-", "docker.io/a__b/c---d/e.f:T_.-"),
        (f"ghcr.io/x/y:1@{to_text(DIGEST)}", f"ghcr.io/x/y:1@{to_text(DIGEST)}"),
        (f"x/{HEX}", f"docker.io/x/{HEX}"),
        (f"library/{HEX}", f"docker.io/library/{HEX}"),
    ],
)
def test_what_docker_takes_is_taken_alike(text: str, canonical: str) -> None:
    reference = parse(text)
    assert (reference.canonical, str(reference)) == (canonical, canonical)


@pytest.mark.parametrize(
    "text",
    [
        "",
        ":",
        "/",
        "a/",
        "/a",
        "a//b",
        "Debian",
        "a:",
        "a:-x",
        "a:.x",
        "a:" + "t" * 129,
        "a b",
        "a\n",
        "a:b\n",
        "a@",
        "a@sha256:12",
        "a@sha512:" + "0" * 128,
        "a@sha256:" + HEX.upper(),
        f"a@{to_text(DIGEST)}@{to_text(DIGEST)}",
        HEX,
        f"docker.io/{'a' * 246}/a",
        "host:999999/a",
        "host:/a",
        "-host.x/a",
        "ho_st.x/a",
        "[::1/a",
        "https://host/a",
        "a___b",
        "a..b",
        "-a",
        "a-",
        "..",
        "host.x/../a",
        "ä",
        "host.x/a:ä",
        "a" * (TEXT_MAX + 1),
        "a@" * 1000,
    ],
)
def test_what_is_no_reference_is_refused_in_one_line(text: str) -> None:
    with pytest.raises(InvalidError) as caught:
        parse(text)
    assert len(str(caught.value)) < 600
    assert "\n" not in str(caught.value)


def test_the_digest_says_more_than_the_tag() -> None:
    assert parse("a").selector == "latest"
    assert parse("a:1").selector == "1"
    assert parse(f"a:1@{to_text(DIGEST)}").selector == to_text(DIGEST)


def test_the_default_tag_is_for_references_with_neither_tag_nor_digest() -> None:
    assert parse("a").with_default_tag().tag == "latest"
    assert parse("a:1").with_default_tag().tag == "1"
    assert parse(f"a@{to_text(DIGEST)}").with_default_tag().tag is None


component = st.from_regex(r"[a-z0-9]+(?:(?:\.|__?|-+)[a-z0-9]+){0,2}", fullmatch=True)
domain = st.from_regex(r"[a-zA-Z0-9]{1,8}(?:[.][a-zA-Z0-9]{1,8}){1,3}(?::[0-9]{1,5})?", fullmatch=True)
hosts = st.one_of(st.just("docker.io"), st.just("localhost:5000"), st.just("[::1]:80"), domain)


@st.composite
def references(draw: st.DrawFn) -> Reference:
    components = draw(st.lists(component.filter(lambda text: len(text) < 40), min_size=1, max_size=4))
    named = parse("/".join([draw(hosts), *components]))
    tag = draw(st.none() | st.from_regex(r"[A-Za-z0-9_][A-Za-z0-9_.-]{0,127}", fullmatch=True))
    digest = draw(st.none() | st.binary(min_size=32, max_size=32).map(Digest))
    return replace(named, tag=tag, digest=digest)


@given(references())
def test_text_form_leads_back(reference: Reference) -> None:
    assert parse(reference.canonical) == reference


@given(st.text(alphabet="aZ0._-:/@[]\x00 é", max_size=40))
def test_any_text_is_a_reference_or_refused_and_what_is_taken_is_stable(text: str) -> None:
    try:
        reference = parse(text)
    except InvalidError:
        return
    assert parse(reference.canonical) == reference
