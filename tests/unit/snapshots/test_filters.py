"""containerd's filter language: what is accepted, where an error is, and what matches."""

from __future__ import annotations

import contextlib
import re
from collections.abc import Sequence

import pytest
from hypothesis import given
from hypothesis import strategies as st

from snapshotter.errors import InvalidError
from snapshotter.snapshots.filters import FILTER_MAX, FILTERS_MAX, Filter, Operator, Selector, Wanted, parse
from snapshotter.snapshots.model import REF_LABEL, Info, Kind

INFO = Info("one", "base", Kind.ACTIVE, {"a": "x", "a.b": "y z", REF_LABEL: "sha256:12", "ü": "é"}, 0, 0)


@pytest.mark.parametrize(
    ("text", "selectors"),
    [
        ("", []),
        ("name", [Selector(("name",))]),
        ("name==one", [Selector(("name",), Operator.EQUAL, "one")]),
        (
            "name==one,parent!=two",
            [Selector(("name",), Operator.EQUAL, "one"), Selector(("parent",), Operator.NOT_EQUAL, "two")],
        ),
        (
            f'labels."{REF_LABEL}"==sha256:12,parent=="ns/1/sha256:ab"',
            [
                Selector(("labels", REF_LABEL), Operator.EQUAL, "sha256:12"),
                Selector(("parent",), Operator.EQUAL, "ns/1/sha256:ab"),
            ],
        ),
        ("labels.a.b", [Selector(("labels", "a", "b"))]),
        ("name == one, kind", [Selector(("name",), Operator.EQUAL, "one"), Selector(("kind",))]),
        ("name==a.b/c:d", [Selector(("name",), Operator.EQUAL, "a.b/c:d")]),
        ('parent==""', [Selector(("parent",), Operator.EQUAL, "")]),
        (r'name=="\x41\102\u00e9\t\""', [Selector(("name",), Operator.EQUAL, 'ABé\t"')]),
        ("name~=/a.c/", [Selector(("name",), Operator.MATCHES, "a.c")]),
        (r"name~=|a\|c|", [Selector(("name",), Operator.MATCHES, "a|c")]),
        ("name~=^a", [Selector(("name",), Operator.MATCHES, "^a")]),
    ],
)
def test_what_is_understood(text: str, selectors: list[Selector]) -> None:
    assert parse(text) == selectors


@pytest.mark.parametrize(
    ("text", "character"),
    [
        ("==", 1),
        (",", 1),
        ("name,", 6),
        ("name==", 7),
        ("name=one", 5),
        ("name===one", 5),
        ("name==one ", 10),
        ("name==one;", None),
        ("name==.x", 7),
        ("name==/x/", 7),
        ('name=="x', 7),
        ('name=="\\q"', 9),
        ('name=="\\xg0"', 9),
        ('name=="\\777"', 9),
        ('name=="\\U00110000"', 9),
        ('name=="x\ny"', 7),
        ("labels.", 8),
        ("name x", 6),
        ("nämé", 2),
        ("name==x\0", 8),
    ],
)
def test_a_mistake_is_reported_with_its_place(text: str, character: int | None) -> None:
    if character is None:
        assert parse(text)[0].value == "one;"
        return
    with pytest.raises(InvalidError, match=f"character {character}:"):
        parse(text)


@pytest.mark.parametrize("pattern", ["[", "(?<=a)b", r"(a)\1", "a{2000}", "*", '"\\xff"'])
def test_a_pattern_that_re2_does_not_take_is_an_error(pattern: str) -> None:
    with pytest.raises(InvalidError, match="RE2"):
        Filter([f"name~={pattern}"])


@pytest.mark.parametrize(
    ("filters", "matches"),
    [
        ([], True),
        ([""], True),
        (["name==one"], True),
        (["name==two"], False),
        (["name==two", "kind==active"], True),
        (["name==one,kind==view"], False),
        (["labels.a"], True),
        (["labels.b"], False),
        (["labels"], False),
        (['labels.a.b=="y z"'], True),
        (['labels."a.b"~="^y"'], True),
        (["labels.b!=x"], True),
        (["labels.b~=^$"], True),
        (["nothing"], False),
        (['nothing==""'], False),
        (["nothing!=x"], True),
        (["name~=(?i)ONE"], True),
        (["name~=n"], True),
        (['labels."ü"==é'], True),
        (['labels."ü"=="\\xc3\\xa9"'], True),
        (['name=="\\xc3"'], False),
    ],
)
def test_what_matches(filters: list[str], matches: bool) -> None:
    assert Filter(filters).matches(INFO) is matches


def test_what_every_match_has_is_known_to_an_index() -> None:
    assert Filter([f'labels."{REF_LABEL}"==sha256:12,parent=="p"']).wanted == Wanted(parent="p", ref="sha256:12")
    assert Filter(["name==a", "name==b"]).wanted == Wanted()
    assert Filter(["name!=a,parent~=b"]).wanted == Wanted()
    assert Filter(['name=="\\xff"']).wanted == Wanted()


def test_size_has_a_bound() -> None:
    with pytest.raises(InvalidError, match="at most"):
        parse("n" * (FILTER_MAX + 1))
    with pytest.raises(InvalidError, match="at most"):
        Filter(["name"] * (FILTERS_MAX + 1))


def test_a_pattern_that_backtracks_elsewhere_is_linear_here() -> None:
    info = Info("a" * 4000 + "b", "", Kind.VIEW, {}, 0, 0)
    assert not Filter(["name~=^(a+)+$"]).matches(info)


TEXT = st.text(st.characters(exclude_categories=["Cs"]), max_size=8)
FIELD = st.sampled_from(["name", "parent", "kind", "labels", "nothing", "a", "b"])
PATHS = st.one_of(st.tuples(FIELD), st.tuples(st.just("labels"), st.one_of(FIELD, TEXT)))
PLAIN = st.sampled_from(["one", "x", "active", "base", ""])
SELECTORS = st.builds(
    lambda path, operator, value: Selector(path, operator, "" if operator is Operator.PRESENT else value),
    PATHS,
    st.sampled_from([Operator.PRESENT, Operator.EQUAL, Operator.NOT_EQUAL, Operator.MATCHES]),
    st.one_of(PLAIN, TEXT),
)
INFOS = st.builds(
    lambda name, parent, kind, labels: Info(name, parent, kind, labels, 0, 0),
    st.one_of(PLAIN, TEXT),
    PLAIN,
    st.sampled_from(Kind),
    st.dictionaries(st.one_of(FIELD, TEXT), st.one_of(PLAIN, TEXT).filter(bool), max_size=4),
)


def quoted(text: str) -> str:
    """`text` as a Go string of escapes alone."""
    return '"' + "".join(f"\\U{ord(char):08x}" for char in text) + '"'


def write(selector: Selector) -> str:
    value = selector.value if selector.operator is not Operator.MATCHES else re.escape(selector.value)
    path = ".".join(quoted(part) for part in selector.path)
    return path + (f" {selector.operator.value} {quoted(value)}" if selector.operator.value else "")


def evaluate(selector: Selector, info: Info) -> bool:
    """What a selector means, said as plainly as possible; the value of a match is taken literally."""
    fields: dict[tuple[str, ...], str] = {("labels", key): value for key, value in info.labels.items()}
    fields |= {("name",): info.name, ("parent",): info.parent, ("kind",): info.kind.name.lower()}
    if "" in info.labels:
        fields["labels",] = info.labels[""]
    present = selector.path in fields
    value = fields.get(selector.path, "")
    return {
        Operator.PRESENT: present,
        Operator.EQUAL: present and value == selector.value,
        Operator.NOT_EQUAL: value != selector.value,
        Operator.MATCHES: selector.value in value,
    }[selector.operator]


@given(st.lists(st.lists(SELECTORS, min_size=1, max_size=3), max_size=3), INFOS)
def test_a_filter_means_what_a_plain_evaluation_says(groups: Sequence[Sequence[Selector]], info: Info) -> None:
    compiled = Filter([",".join(map(write, group)) for group in groups])
    wanted = not groups or any(all(evaluate(selector, info) for selector in group) for group in groups)
    assert compiled.matches(info) is wanted
    if wanted:
        sure = compiled.wanted
        assert sure.name in (None, info.name)
        assert sure.parent in (None, info.parent)
        assert sure.ref in (None, info.labels.get(REF_LABEL))


@given(st.text(max_size=40))
def test_any_text_is_understood_or_an_error(text: str) -> None:
    with contextlib.suppress(InvalidError):
        assert Filter([text]).matches(INFO) in (True, False)
