# The index at the end of a pack: what chunks it holds, and where.
#
# One column a property instead of one struct a chunk: the index is searched by bisecting `digests` where it lies, without
# parsing, and columns compress better. Row i of every column describes the same chunk; rows are sorted by digest.
#
# A group is one zstd frame around several chunks, which have the same offset and stored length. It is read as a whole, and
# takes less than its chunks would alone: for chunks that are always wanted together (a start profile).
@0xb8e3f05c7d1249a6;

struct PackIndex {
  version @0 :UInt32;                   # 1
  count @1 :UInt32;                     # rows
  digests @2 :Data;                     # 32 bytes a row: sha256 of the raw chunk
  rawLengths @3 :List(UInt32);
  offsets @4 :List(UInt64);             # of the encoded chunk, from the start of the pack
  storedLengths @5 :List(UInt32);
  codecs @6 :List(UInt8);               # 0 raw, 1 a zstd frame, 2 a group; other numbers are not readable by this version
  within @7 :List(UInt32);              # of codec 2: where the chunk begins in its group's raw bytes; absent without groups
}
