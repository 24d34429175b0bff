"""The tables of ``metadata.db``, and what every column means.

A database whose ``user_version`` is another than `VERSION` was written by another release (`migrations`): whoever changes a
definition here raises the version, and adds the step from the one before.
"""

from __future__ import annotations

VERSION = 2

DEFINITION = """
-- One row per snapshot. All but committed lazy layers own the directory s/<id>; a directory without a row is garbage.
CREATE TABLE snapshots (
    -- Names the directory. Never given out twice, so that a directory that waits for its deletion cannot be taken for
    -- that of a younger snapshot.
    id        INTEGER PRIMARY KEY AUTOINCREMENT,
    -- containerd's key (views and active snapshots) or name (committed ones), one name space. Of lazy layers it is ours.
    name      TEXT    NOT NULL UNIQUE,
    -- The snapshot below, always a committed one; NULL for none.
    parent    INTEGER REFERENCES snapshots (id) ON DELETE RESTRICT,
    -- model.Kind: 1 view, 2 active, 3 committed.
    kind      INTEGER NOT NULL CHECK (kind IN (1, 2, 3)),
    -- model.Layer: 0 ordinary (a directory), 1 PuzzleFS metadata (a mount), 2 PuzzleFS pack (nothing). The latter two with
    -- kind 2 (active): the differ has taken it for this layer, and its directory is empty until it is committed.
    layer     INTEGER NOT NULL DEFAULT 0 CHECK (layer IN (0, 1, 2)),
    -- 32 bytes, the sha256 of the uncompressed metadata or of the pack; NULL for ordinary snapshots.
    diff_id   BLOB    CHECK ((layer = 0) = (diff_id IS NULL)),
    -- 32 bytes, the checked chain ID of a lazy layer; NULL for ordinary snapshots, whose name says it.
    chain_id  BLOB    CHECK ((layer = 0) = (chain_id IS NULL)),
    -- A JSON object, label to value; no value is empty.
    labels    TEXT    NOT NULL,
    -- The label containerd.io/snapshot.ref once more, for the index: containerd's List filters by it at every layer.
    ref       TEXT,
    -- Nanoseconds since the epoch; created anew at commit.
    created   INTEGER NOT NULL,
    updated   INTEGER NOT NULL,
    -- Allocated bytes and inodes of a committed ordinary snapshot, NULL until first asked for: Commit must not wait for a
    -- walk, because containerd calls it inside a transaction of its own.
    size      INTEGER,
    inodes    INTEGER
);
CREATE INDEX snapshots_parent ON snapshots (parent);
CREATE INDEX snapshots_ref ON snapshots (ref) WHERE ref IS NOT NULL;
CREATE INDEX snapshots_diff_id ON snapshots (diff_id) WHERE diff_id IS NOT NULL;
-- A Prepare that asks for a chain by labels is answered with the one that is there. A client that unpacks without labels
-- commits under a name of its own, so that a chain may be there several times on one parent.
CREATE INDEX snapshots_chain ON snapshots (chain_id, parent) WHERE chain_id IS NOT NULL AND kind = 3;

-- The ways in which a lazy layer was asked for: what mounts it again after a restart. Written before the layer is fetched;
-- a diff ID without a snapshot is therefore one that Cleanup has to release.
CREATE TABLE hints (
    id          INTEGER PRIMARY KEY,
    -- 32 bytes: snapshots.diff_id of a metadata layer.
    diff_id     BLOB NOT NULL,
    -- A JSON object: the layer's annotations (format.annotations), which labels may lose by Update.
    annotations TEXT NOT NULL,
    -- The reference that was pulled, NULL where nothing names it.
    image       TEXT,
    -- containerd's namespace of the Prepare.
    namespace   TEXT NOT NULL
);
CREATE UNIQUE INDEX hints_unique ON hints (diff_id, annotations, ifnull(image, ''), namespace);

-- The releases that made or changed these tables: for people, and for an older release that has to say which one it was.
CREATE TABLE history (
    -- The user_version that it brought the database to.
    version INTEGER NOT NULL,
    -- The release, as --version says it.
    program TEXT    NOT NULL,
    -- Nanoseconds since the epoch.
    at      INTEGER NOT NULL
);
"""
