"""Rules for every test: nothing is left behind, and a missing tool is said, never hidden."""

from __future__ import annotations

import os
from collections.abc import Generator, Iterator

import pytest

from tests.support.leaks import LeakCheck
from tests.support.tools import MissingToolError


@pytest.fixture(scope="session", autouse=True)
def _nothing_left_behind(tmp_path_factory: pytest.TempPathFactory) -> Iterator[None]:
    """Fails the session if mounts, processes, descriptors or temporary files remain at its end."""
    check = LeakCheck(tmp_path_factory.getbasetemp())
    yield
    leaks = check.leaks()
    if leaks:
        pytest.fail("left behind by the tests:\n  " + "\n  ".join(leaks), pytrace=False)


@pytest.hookimpl(wrapper=True)
def pytest_runtest_makereport(
    item: pytest.Item, call: pytest.CallInfo[None]
) -> Generator[None, pytest.TestReport, pytest.TestReport]:
    """A test that misses a tool is skipped, saying which package has it; where CI=true it fails."""
    report = yield
    if call.excinfo is not None and call.excinfo.errisinstance(MissingToolError) and os.environ.get("CI") != "true":
        report.outcome = "skipped"
        report.longrepr = (str(item.path), item.location[1] or 0, f"Skipped: {call.excinfo.value}")
    return report


def pytest_runtest_setup(item: pytest.Item) -> None:
    """Tests marked ``root`` need it."""
    if item.get_closest_marker("root") and os.geteuid() != 0:
        raise MissingToolError("this test needs root")
