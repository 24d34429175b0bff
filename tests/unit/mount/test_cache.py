"""The weighted cache: bounded, and least recently used goes first."""

from __future__ import annotations

from collections.abc import Sequence

from hypothesis import given
from hypothesis import strategies as st

from snapshotter.mount.cache import WeightedCache


def test_what_was_used_last_stays() -> None:
    cache: WeightedCache[str, int] = WeightedCache(3)
    for number, key in enumerate("abc"):
        cache.put(key, number, 1)
    assert cache.get("a") == 0
    cache.put("d", 3, 1)
    assert [cache.get(key) for key in "abcd"] == [0, None, 2, 3]


def test_the_newest_stays_whatever_it_weighs() -> None:
    cache: WeightedCache[str, int] = WeightedCache(3)
    cache.put("small", 1, 1)
    cache.put("huge", 2, 100)
    assert (cache.get("small"), cache.get("huge")) == (None, 2)
    cache.put("next", 3, 1)
    assert (cache.get("huge"), cache.get("next")) == (None, 3)
    assert cache.weight == 1


@given(st.lists(st.tuples(st.integers(0, 5), st.integers(1, 10))))
def test_the_weight_is_kept_within_the_limit(puts: Sequence[tuple[int, int]]) -> None:
    cache: WeightedCache[int, int] = WeightedCache(12)
    for key, weight in puts:
        cache.put(key, weight, weight)
        kept = [value for value in map(cache.get, range(6)) if value is not None]
        assert cache.weight == sum(kept) <= 12
        assert cache.get(key) == weight


def test_dropping_gives_back_the_weight() -> None:
    cache: WeightedCache[tuple[int, int], str] = WeightedCache(10)
    for key in ((1, 1), (2, 1), (1, 2)):
        cache.put(key, "value", 3)
    cache.drop(lambda key: key[0] == 1)
    assert [cache.get(key) for key in ((1, 1), (2, 1), (1, 2))] == [None, "value", None]
    assert cache.weight == 3
