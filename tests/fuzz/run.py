"""Fuzzes one target, guided by coverage: ``python -m tests.fuzz.run TARGET SECONDS [DIRECTORY]``.

It begins with tests/fuzz/corpus/TARGET. With DIRECTORY, inputs that reach new code are kept there, for a longer hunt to go on
from. Ends with status 0 when the time is over and with another one at the first input that raises something, takes longer than
`INPUT_SECONDS` or makes the process larger than `MEMORY`; the input is then in the current directory, ``crash-…`` or the like.
"""

from __future__ import annotations

import resource
import sys
import tempfile
import warnings
from pathlib import Path

import atheris

with atheris.instrument_imports(include=["snapshotter", "tests.fuzz.targets"]):
    from tests.fuzz import targets

INPUT_SECONDS = 5
"""Most seconds for one input; with coverage measured, code is some ten times slower."""

MEMORY_MB = 512
"""Most resident memory of the whole process, and most of one allocation."""

ADDRESS_SPACE = 3 << 30
"""RLIMIT_AS: threads and maps of the process included."""

INPUT_MAX = 1 << 16
CORPUS = Path(__file__).parent / "corpus"


def main(name: str, seconds: int, keep: str | None = None) -> None:
    """Fuzz the target `name` for `seconds`."""
    warnings.simplefilter("error")
    resource.setrlimit(resource.RLIMIT_AS, (ADDRESS_SPACE, ADDRESS_SPACE))

    def one(data: bytes) -> None:
        targets.run(name, data)

    found = keep or tempfile.mkdtemp(prefix=f"fuzz-{name}-")
    options = [
        f"-max_total_time={seconds}",
        f"-timeout={INPUT_SECONDS}",
        f"-rss_limit_mb={MEMORY_MB}",
        f"-malloc_limit_mb={MEMORY_MB}",
        f"-max_len={INPUT_MAX}",
        "-print_final_stats=1",
        "-verbosity=0",
    ]
    atheris.Setup([sys.argv[0], *options, found, str(CORPUS / name)], one)
    atheris.Fuzz()


if __name__ == "__main__":
    main(sys.argv[1], int(sys.argv[2]), *sys.argv[3:4])
