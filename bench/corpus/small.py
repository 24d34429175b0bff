"""An image of very many small files, a hundred in each directory: what it takes is known of none that could be fetched."""

from __future__ import annotations

import io
import tarfile
from pathlib import Path

FILES = 300_000


def write(tar: Path) -> None:
    """Write the layer: files of 50 to 270 bytes, each other ones."""
    made = set()
    with tarfile.open(tar, "w", format=tarfile.USTAR_FORMAT) as archive:
        for number in range(FILES):
            above, below = f"d{number // 10_000:03}", f"d{number // 10_000:03}/e{number // 100 % 100:02}"
            for name in (above, below):
                if name not in made:
                    made.add(name)
                    directory = tarfile.TarInfo(name)
                    directory.type, directory.mode = tarfile.DIRTYPE, 0o755
                    archive.addfile(directory)
            data = b"file number %d of many; " % number * (2 + number % 7)
            file = tarfile.TarInfo(f"{below}/file-{number:07}.py")
            file.size, file.mtime = len(data), 1_700_000_000 + number
            archive.addfile(file, io.BytesIO(data))
