"""One systemd for all tests of this directory; those in ``inside`` run under it."""

from __future__ import annotations

import os
from collections.abc import Iterator

import pytest

from tests.support.systemd import Container

collect_ignore = [] if "INSIDE_SYSTEMD" in os.environ else ["inside"]


@pytest.fixture(scope="session")
def container(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Container]:
    """systemd, up and running."""
    container = Container(tmp_path_factory.mktemp("systemd"))
    yield container
    container.stop()
