"""What is shown of the daemon's status."""

from __future__ import annotations

import io
from datetime import UTC, datetime, timedelta
from typing import Any

import pytest
from rich.console import Console

from snapshotter.cli.status import SHOWN_MAX, _duration, shown

STARTED = datetime(2026, 1, 2, 3, 4, 5, tzinfo=UTC)
LAYER = "sha256:" + "ab" * 32
COVERAGE = {"chunks": 100, "local": 25, "stored": 40_000_000, "stored_local": 10_000_000, "disk": 22_000_000, "ratio": 0.25}


def told(**more: Any) -> dict[str, Any]:
    """The status of a daemon with one image."""
    counts = {"in_flight": 0, "hung": 0, "failed": 0, "done": 0, "seconds": 0.0}
    mount = {"images": ["registry.example/app:1"], "mountpoint": "/r/l/1", "worker": 0}
    return {
        "version": 1,
        "program": "0.1.0",
        "started": STARTED.isoformat(timespec="seconds"),
        "images": {"registry.example/app:1": {"of": ["containerd", "podman"], "layers": [LAYER], **COVERAGE}},
        "layers": {LAYER: {**COVERAGE, "mounts": [{**mount, "of": "containerd"}, {**mount, "of": "podman"}]}},
        "failed": {},
        "workers": [{"number": 0, "pid": 42, "mounts": 1, "deaths": 2, "seconds": 61.0, "answers": True}],
        "reads": {"read": {**counts, "in_flight": 3, "done": 1000, "failed": 4}, "fetch": {**counts, "in_flight": 2}},
        "fetching": [],
        "background": {},
        "cache": {
            "path": "/r/chunks",
            "used": 22_000_000,
            "chunks": 25,
            "max": 20_000_000_000,
            "free": 5_000_000_000,
            "recent": 3_000_000,
            "reserve": 5_000_000_000,
        },
        "counters": {},
        "errors": [],
        **more,
    }


def text(status: dict[str, Any]) -> str:
    console = Console(file=io.StringIO(), width=200, highlight=False)
    console.print(shown(status, STARTED + timedelta(hours=2, minutes=5, seconds=7)))
    assert isinstance(console.file, io.StringIO)
    return console.file.getvalue()


def test_a_quiet_daemon() -> None:
    lines = [" ".join(line.split()) for line in text(told()).splitlines()]
    assert lines == [
        "puzzlefs-snapshotter 0.1.0, up 2 h 5 min: 1 layers of 1 images",
        "cache 22.0 MB of 20.0 GB in 25 chunks, 5.0 GB free at /r/chunks",
        "3.0 MB read by containers within a day, of which up to 5.0 GB are kept",
        "reads 3 under way, 2 of them wait for a fetch, 0 hung, 4 of 1000 failed",
        "",
        "IMAGE LAYERS FETCHED CHUNKS ON DISK",
        "registry.example/app:1 1 10.0 MB of 40.0 MB 25 % 22.0 MB",
        "",
        "IMAGE OF PODMAN LAYERS FETCHED CHUNKS ON DISK",
        "registry.example/app:1 1 10.0 MB of 40.0 MB 25 % 22.0 MB",
        "",
        "WORKER PID MOUNTS UP DEATHS",
        "0 42 1 1 min 1 s 2",
    ]


def test_trouble() -> None:
    read = {"layer": LAYER, "chunk": "sha256:" + "cd" * 32, "seconds": 12.34, "worker": 0}
    dead = {"number": 1, "pid": None, "mounts": 3, "deaths": 9, "seconds": 0.0, "answers": False}
    error = {"time": "2026-01-02T05:06:07.890+00:00", "level": "error", "message": "a \x1b[31mforged\nline"}
    shown_text = text(told(fetching=[read], workers=[dead], errors=[error], failed={LAYER: "its metadata is gone"}))
    assert "registry.example/app:1  sha256:cdcdcdcdcdcd  12.3 s       0" in shown_text
    assert "does not answer" in shown_text
    assert "none" in shown_text
    assert "05:06:07" in shown_text
    assert r"a \x1b[31mforged\nline" in shown_text, "what came from outside cannot speak to the terminal"
    assert "its metadata is gone" in shown_text


def test_only_the_last_errors() -> None:
    errors = [{"time": STARTED.isoformat(), "level": "error", "message": f"number-{number}-"} for number in range(50)]
    shown_text = text(told(errors=errors))
    assert "number-49-" in shown_text
    assert f"number-{49 - SHOWN_MAX}-" not in shown_text


@pytest.mark.parametrize(
    ("seconds", "said"), [(0.4, "0 s"), (61, "1 min 1 s"), (7507, "2 h 5 min"), (86400, "1 d"), (90061, "1 d 1 h")]
)
def test_durations(seconds: float, said: str) -> None:
    assert _duration(seconds) == said
