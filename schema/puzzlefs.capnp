# The rootfs metadata of one PuzzleFS layer (or of several, newest first: upstream's delta images).
#
# Wire-compatible with upstream PuzzleFS, manifest version 3: ordinals 0 to 13 of Inode and everything else are its own;
# mtime and mtimeNsec stand behind them, where a reader that does not know them does not look. The identifier below is
# this file's, it is not part of the encoding.
@0xd1b6c2a94e0f7a35;

struct Rootfs {
  metadatas @0 :List(InodeVector);      # newest layer first
  fsVerityData @1 :List(VerityData);    # sorted by digest, one per chunk
  manifestVersion @2 :UInt64;           # 3
}

struct InodeVector {
  inodes @0 :List(Inode);               # sorted by ino
}

struct VerityData {
  digest @0 :Data;                      # 32 bytes: the chunk's name
  verity @1 :Data;                      # 32 bytes: fs-verity digest, sha256, 4096-byte blocks, no salt
}

struct Inode {
  ino @0 :UInt64;                       # the root is 1
  mode :union {
    unknown @1 :Void;
    fifo @2 :Void;
    chr @3 :Device;
    dir @4 :Dir;
    blk @5 :Device;
    file @6 :List(FileChunk);           # in file order; empty for an empty file
    lnk @7 :Void;
    sock @8 :Void;
    wht @9 :Void;                       # whiteout: hides the name in the layers below
  }
  uid @10 :UInt32;
  gid @11 :UInt32;
  permissions @12 :UInt16;              # st_mode & 0o7777
  additional @13 :InodeAdditional;      # absent without xattrs and symlink target
  mtime @14 :Int64;                     # seconds since the epoch
  mtimeNsec @15 :UInt32;                # 0 to 999,999,999
}

struct Device {
  major @0 :UInt64;
  minor @1 :UInt64;
}

struct Dir {
  entries @0 :List(DirEntry);           # sorted by the bytes of the name
  lookBelow @1 :Bool;                   # false: opaque, or nothing lies below
}

struct DirEntry {
  ino @0 :UInt64;
  name @1 :Data;
}

struct FileChunk {
  blob @0 :BlobRef;
  len @1 :UInt64;                       # bytes of the file that are taken from this chunk
}

struct BlobRef {
  digest @0 :Data;                      # 32 bytes
  offset @1 :UInt64;                    # where this file's bytes begin inside the raw chunk
  compressed @2 :Bool;                  # true only in upstream's images: digest is that of the stored bytes
}

struct InodeAdditional {
  xattrs @0 :List(Xattr);               # sorted by the bytes of the key
  symlinkTarget @1 :Data;
}

struct Xattr {
  key @0 :Data;
  val @1 :Data;
}
