"""What containerd 1.6 is told to run on PuzzleFS layers, which it cannot unpack: a program whose words become its error.

containerd reads what the program writes to the end, and then asks whether it has failed: where the exit status comes later than
the end of the output, the message is lost.
"""

from __future__ import annotations

import os
import select
import subprocess
import tomllib
from pathlib import Path
from typing import IO, Any

from snapshotter.format.annotations import MEDIA_TYPE_METADATA, MEDIA_TYPE_PACK
from tests.support import tools

CONFIG = tools.ROOT / "deploy" / "containerd" / "config-1.6.toml"
TIMEOUT = 10


def _processor() -> dict[str, Any]:
    [processor] = tomllib.loads(CONFIG.read_text())["stream_processors"].values()
    return dict(processor)


def test_it_is_run_on_our_layers() -> None:
    assert sorted(_processor()["accepts"]) == sorted([MEDIA_TYPE_METADATA, MEDIA_TYPE_PACK])


def test_its_message_is_whole_before_its_output_ends(tmp_path: Path) -> None:
    """The output is held open by a ``sleep``, which here lasts until it is told to end: no clock decides."""
    gate = tmp_path / "gate"
    gate.touch()
    sleep = tmp_path / "sleep"
    sleep.write_text(f"#!/bin/sh\nwhile [ -e {gate} ]; do /bin/sleep 0.01; done\n")
    sleep.chmod(0o755)
    processor = _processor()
    process = subprocess.Popen(
        [processor["path"], *processor["args"]],
        env={"PATH": f"{tmp_path}:/usr/bin:/bin"},
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
    )
    assert process.stdin is not None
    assert process.stdout is not None
    assert process.stderr is not None
    try:
        process.stdin.write(bytes(1 << 20))  # more than a pipe holds: all of it is taken
        process.stdin.close()
        assert process.wait(TIMEOUT) == 1
        message = _rest(process.stderr)  # its end must not wait for that of the output
        assert b"pull the image with `puzzlefs pull`" in message
        assert message.count(b"\n") == 1
        assert select.select([process.stdout], [], [], 0)[0] == [], "the output has ended before the exit status was there"
        gate.unlink()
        assert _rest(process.stdout) == b""
    finally:
        gate.unlink(missing_ok=True)
        process.stdout.close()
        process.stderr.close()


def _rest(stream: IO[bytes]) -> bytes:
    """What `stream` has, to its end."""
    found = b""
    while select.select([stream], [], [], TIMEOUT)[0]:
        part = os.read(stream.fileno(), 1 << 16)
        if not part:
            return found
        found += part
    raise AssertionError(f"no end after {found!r}")
