"""Whose files an image's are in a user namespace, as containerd says it in labels."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from snapshotter.errors import InvalidError
from snapshotter.snapshots import idmap
from snapshotter.snapshots.idmap import GID_LABEL, UID_LABEL, IdMap, Range

TEXT = "0:100000:65536"


def labels(uids: str = TEXT, gids: str = TEXT) -> dict[str, str]:
    return {UID_LABEL: uids, GID_LABEL: gids}


def test_labels_without_a_word_of_users_ask_for_nothing() -> None:
    assert idmap.of_labels({}) is None
    assert idmap.of_labels(labels("", "")) is None


def test_what_containerd_writes_is_understood() -> None:
    found = idmap.of_labels(labels("0:100000:1000,1000:1000:1"))
    assert found == IdMap((Range(0, 100000, 1000), Range(1000, 1000, 1)), (Range(0, 100000, 65536),))


def test_owners() -> None:
    found = idmap.of_labels(labels("0:100000:1000,2000:5000:10"))
    assert found is not None
    assert found.owner(0, 0) == (100000, 100000)
    assert found.owner(2003, 33) == (5003, 100033)
    assert found.owner(1500, 70000) == (100000, 100000), "nobody in the container: what it cannot have is its root's"


@pytest.mark.parametrize(
    "text",
    [
        "0:100000",
        "0:100000:0",
        "0:100000:65536:1",
        "0:-1:65536",
        "a:b:c",
        "0:100000:65536,",
        "0:100000:65536, 1:2:3",
        "0:4294967294:2",
        "4294967295:0:1",
        "0:0:99999999999",
        "1:100000:65536",
        "٠:100000:65536",
        ",".join(f"{number}:{number}:1" for number in range(341)),
        "",
    ],
)
def test_what_it_does_not_write_is_refused(text: str) -> None:
    with pytest.raises(InvalidError, match=r"label containerd.*uidmapping"):
        idmap.of_labels(labels(uids=text))
    with pytest.raises(InvalidError, match=r"label containerd.*gidmapping"):
        idmap.of_labels(labels(gids=text))


@given(st.text(max_size=60), st.text(max_size=60))
def test_whatever_the_labels_say_it_is_users_or_a_refusal(uids: str, gids: str) -> None:
    try:
        found = idmap.of_labels(labels(uids, gids))
    except InvalidError:
        return
    assert found is None or all(ids and any(each.inside == 0 for each in ids) for ids in (found.uids, found.gids))
