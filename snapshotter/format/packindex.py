"""Between the index of a pack and its columns: what schema/pack.capnp says. The only module that knows pycapnp.

An index is read once, in whole columns, which is what pycapnp is good at. It may be hostile: pycapnp's own limit on traversal
is lifted, because the columns are bounded by the message here.
"""

from __future__ import annotations

from array import array
from collections.abc import Sequence
from dataclasses import dataclass
from importlib import resources
from typing import Any

import capnp

from snapshotter.errors import CorruptError
from snapshotter.format.message import MessageBuilder

_NO_LIMIT = 1 << 60
_NESTING_MAX = 16


def _load() -> Any:
    capnp.remove_import_hook()
    with resources.as_file(resources.files("snapshotter") / "schema" / "pack.capnp") as path:
        return capnp.load(str(path))


# Loaded with the module: capnp keeps the file open, once for the process.
_schema = _load()


@dataclass(frozen=True, slots=True)
class PackColumns:
    """The columns of a pack's index (schema/pack.capnp), row i of each for the same chunk, in the order of the digests."""

    digests: bytes
    raw_lengths: Sequence[int]
    offsets: Sequence[int]
    stored_lengths: Sequence[int]
    codecs: Sequence[int]
    within: Sequence[int] = ()
    """Empty where there are no groups."""


VERSION = 1
"""The version of the index that is written, and the only one that is read."""


def encode(columns: PackColumns) -> bytes:
    """The index as a message, laid out like every other message of ours."""
    count = len(columns.raw_lengths)
    # Without groups the message is that of the schema before it knew them: a pack of single chunks stays as it was.
    message = MessageBuilder(1, 6 if columns.within else 5)
    root = message.root
    root.u32(0, VERSION)
    root.u32(4, count)
    root.data(0, columns.digests)
    root.numbers(1, columns.raw_lengths, "I")
    root.numbers(2, columns.offsets, "Q")
    root.numbers(3, columns.stored_lengths, "I")
    root.numbers(4, columns.codecs, "B")
    if columns.within:
        root.numbers(5, columns.within, "I")
    return message.to_bytes()


def decode(message: bytes) -> PackColumns:
    """The columns that `message` holds; that they are consistent is for the caller to check.

    Raises:
        CorruptError: it is no message of this schema, or of another version.
    """

    try:
        with _schema.PackIndex.from_bytes(message, traversal_limit_in_words=_NO_LIMIT, nesting_limit=_NESTING_MAX) as root:
            if root.version != VERSION:
                raise CorruptError(f"pack index version {root.version} is not readable by this program (it reads {VERSION})")
            count = root.count
            lists = (root.rawLengths, root.offsets, root.storedLengths, root.codecs)
            if count * 32 > len(message) or any(len(values) != count for values in lists) or len(root.within) not in (0, count):
                raise CorruptError(
                    f"pack index: {count} rows in a message of {len(message)} bytes, or columns that differ in length"
                )
            raw, offsets, stored, codecs = (array(code, values) for code, values in zip("IQIB", lists, strict=True))
            return PackColumns(root.digests, raw, offsets, stored, codecs, array("I", root.within))
    except (capnp.KjException, ValueError, OverflowError) as error:
        raise CorruptError(f"malformed pack index: {str(error).splitlines()[0][:200]}") from None
