import threading

import pytest

from snapshotter.registry.turns import Turns


def test_equal_keys_take_turns_and_others_do_not_wait() -> None:
    turns = Turns()
    inside: list[str] = []
    began, go = threading.Event(), threading.Event()

    def second() -> None:
        began.set()
        with turns.take("a"):
            inside.append("second")
        go.set()

    thread = threading.Thread(target=second)
    with turns.take("a"):
        thread.start()
        began.wait()
        with turns.take("b"):
            inside.append("other")
        inside.append("first")
    go.wait()
    thread.join()
    assert inside == ["other", "first", "second"]


def test_nothing_is_kept_of_keys_that_nobody_holds() -> None:
    turns = Turns()
    with turns.take("a"):
        assert len(turns) == 1
    with pytest.raises(ZeroDivisionError), turns.take("b"):
        _ = 1 / 0
    assert len(turns) == 0
