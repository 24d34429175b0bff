"""The pause between deaths of a worker."""

from __future__ import annotations

import pytest

from snapshotter.daemon.supervisor import PAUSE_MAX, pause


@pytest.mark.parametrize(("deaths", "seconds"), [(0, 0), (1, 0), (2, 0.1), (3, 0.2), (6, 1.6), (50, PAUSE_MAX)])
def test_a_worker_that_keeps_dying_is_started_ever_later_up_to_a_bound(deaths: int, seconds: float) -> None:
    assert pause(deaths) == pytest.approx(seconds)
