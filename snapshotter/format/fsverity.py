"""fs-verity as the kernel does it: a file is sealed, and from then on the kernel checks what is read of it.

A sealed file cannot be written any more, every page that comes from the disk is checked against the file's Merkle tree, and a
read of a page that does not match fails with EIO. Parameters are those of `verity`, so the digest that the kernel measures
is the one that it computes. Requests and structures: linux/fsverity.h; rules: Documentation/filesystems/fsverity.rst.
"""

from __future__ import annotations

import contextlib
import enum
import errno
import fcntl
import os
import secrets
import struct
from pathlib import Path

from snapshotter.errors import FailedPreconditionError
from snapshotter.format.verity import BLOCK_SIZE, DIGEST_SIZE, verity_digest

_ENABLE = 0x40806685  # FS_IOC_ENABLE_VERITY, _IOW('f', 133, struct fsverity_enable_arg)
_MEASURE = 0xC0046686  # FS_IOC_MEASURE_VERITY, _IOWR('f', 134, struct fsverity_digest)
_SHA256 = 1  # FS_VERITY_HASH_ALG_SHA256

_ENABLE_ARGUMENT = struct.Struct("<IIIIQIIQ88x")
"""``struct fsverity_enable_arg``: version, hash algorithm, block size, salt size and place, signature size, reserved,
signature's place, reserved."""

_DIGEST_HEAD = struct.Struct("<HH")
"""``struct fsverity_digest``: hash algorithm, size of the digest that follows."""

_PROBE = b"puzzlefs"
_UNSUPPORTED = frozenset({errno.EOPNOTSUPP, errno.ENOTTY, errno.EINVAL})
"""What file systems without fs-verity answer (ext4 without its feature, others, and FUSE)."""


class Mode(enum.StrEnum):
    """``integrity.fs_verity`` of the configuration: the kernel's is demanded, used where there is one, or not used."""

    REQUIRE = "require"
    AUTO = "auto"
    OFF = "off"


def enable(descriptor: int) -> None:
    """Seal the file, which must be open for reading only, and by nobody for writing. One that is sealed stays as it is.

    Returns when its data and its Merkle tree have been written.

    Raises:
        OSError: EOPNOTSUPP, ENOTTY or EINVAL where the file system has no fs-verity; ETXTBSY where somebody may write to it.
    """
    argument = _ENABLE_ARGUMENT.pack(1, _SHA256, BLOCK_SIZE, 0, 0, 0, 0, 0)
    try:
        fcntl.ioctl(descriptor, _ENABLE, argument)
    except FileExistsError:
        return


def measure(descriptor: int) -> bytes | None:
    """The digest that the kernel holds the file to; None if it is not sealed (with these parameters), or cannot be.

    Raises:
        OSError: the file cannot be asked.
    """
    answer = bytearray(_DIGEST_HEAD.pack(0, DIGEST_SIZE) + bytes(DIGEST_SIZE))
    try:
        fcntl.ioctl(descriptor, _MEASURE, answer)
    except OSError as error:
        if error.errno in (errno.ENODATA, errno.EOVERFLOW) or error.errno in _UNSUPPORTED:
            return None
        raise
    algorithm, size = _DIGEST_HEAD.unpack_from(answer)
    return bytes(answer[_DIGEST_HEAD.size :]) if (algorithm, size) == (_SHA256, DIGEST_SIZE) else None


def is_supported(directory: Path) -> bool:
    """Whether files in `directory` can be sealed: tried on a temporary file, which is removed.

    Raises:
        OSError: no file can be made there.
    """
    path = directory / f".fs-verity.{secrets.token_hex(8)}"
    path.write_bytes(_PROBE)
    try:
        descriptor = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
        try:
            enable(descriptor)
            return measure(descriptor) == verity_digest(_PROBE)
        except OSError as error:
            if error.errno in _UNSUPPORTED:
                return False
            raise
        finally:
            os.close(descriptor)
    finally:
        with contextlib.suppress(OSError):
            path.unlink()


def is_wanted(mode: Mode, directory: Path) -> bool:
    """Whether files in `directory`, which is made if need be, are to be sealed.

    Raises:
        FailedPreconditionError: the kernel's fs-verity is required and not to be had there.
        OSError: no file can be made there.
    """
    if mode is Mode.OFF:
        return False
    directory.mkdir(mode=0o700, parents=True, exist_ok=True)
    if is_supported(directory):
        return True
    if mode is Mode.REQUIRE:
        raise FailedPreconditionError(
            f"integrity.fs_verity is {mode}, but the file system of {directory} has no fs-verity: use ext4 (made or tuned with"
            f" -O verity), btrfs or f2fs on a kernel with CONFIG_FS_VERITY, or set it to {Mode.AUTO}"
        )
    return False
