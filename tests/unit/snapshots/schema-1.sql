-- metadata.db as release 0.1.0 wrote it (user_version 1): a lazy layer, a pack, a committed snapshot, a container's, a view.
PRAGMA user_version = 1;
BEGIN TRANSACTION;
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
INSERT INTO "hints" VALUES(1,X'F191E625176E7514249870C60BC24622131B04927A418001D1969C9CECD260F1','{"containerd.io/snapshot/puzzlefs.diff-id": "sha256:f191e625176e7514249870c60bc24622131b04927a418001d1969c9cecd260f1", "containerd.io/snapshot/puzzlefs.metadata": "sha256:62c66a7a5dd70c3146618063c344e531e6d4b59e379808443ce962b3abd63c5a", "containerd.io/snapshot/puzzlefs.packs": "sha256:148de9c5a7a44d19e56cd9ae1a554bf67847afb0c58f6e12fa29ac7ddfca9940:10:20", "containerd.io/snapshot/puzzlefs.verity": "4c94485e0c21ae6c41ce1dfe7b6bfaceea5ab68e40a2476f50208e526f506080"}','registry.example/app:1','default');
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
    -- model.Layer: 0 ordinary (a directory), 1 PuzzleFS metadata (a mount), 2 PuzzleFS pack (nothing).
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
INSERT INTO "snapshots" VALUES(1,'default/1/puzzlefs-1 sha256:f191e625176e7514249870c60bc24622131b04927a418001d1969c9cecd260f1',NULL,3,1,X'F191E625176E7514249870C60BC24622131B04927A418001D1969C9CECD260F1',X'F191E625176E7514249870C60BC24622131B04927A418001D1969C9CECD260F1','{"containerd.io/snapshot.ref": "sha256:f191e625176e7514249870c60bc24622131b04927a418001d1969c9cecd260f1"}','sha256:f191e625176e7514249870c60bc24622131b04927a418001d1969c9cecd260f1',1795521113366546474,1795521113366546474,NULL,NULL);
INSERT INTO "snapshots" VALUES(2,'default/2/puzzlefs-2 sha256:a0cbf399389400608684eb198e1570c09bd992c9759ac7cfc44c85fd5347e510',1,3,2,X'148DE9C5A7A44D19E56CD9AE1A554BF67847AFB0C58F6E12FA29AC7DDFCA9940',X'A0CBF399389400608684EB198E1570C09BD992C9759AC7CFC44C85FD5347E510','{"containerd.io/snapshot.ref": "sha256:a0cbf399389400608684eb198e1570c09bd992c9759ac7cfc44c85fd5347e510"}','sha256:a0cbf399389400608684eb198e1570c09bd992c9759ac7cfc44c85fd5347e510',1795521113366722887,1795521113366722887,NULL,NULL);
INSERT INTO "snapshots" VALUES(3,'default/4/committed',2,3,0,NULL,NULL,'{"c": "\u00fc"}',NULL,1795521113372844342,1795521113372844342,NULL,NULL);
INSERT INTO "snapshots" VALUES(4,'default/5/container',3,2,0,NULL,NULL,'{}',NULL,1795521113373007766,1795521113373007766,NULL,NULL);
INSERT INTO "snapshots" VALUES(5,'default/6/view',3,1,0,NULL,NULL,'{}',NULL,1795521113373057320,1795521113373057320,NULL,NULL);
CREATE INDEX snapshots_parent ON snapshots (parent);
CREATE INDEX snapshots_ref ON snapshots (ref) WHERE ref IS NOT NULL;
CREATE INDEX snapshots_diff_id ON snapshots (diff_id) WHERE diff_id IS NOT NULL;
CREATE UNIQUE INDEX snapshots_chain ON snapshots (chain_id, ifnull(parent, 0)) WHERE chain_id IS NOT NULL AND kind = 3;
CREATE UNIQUE INDEX hints_unique ON hints (diff_id, annotations, ifnull(image, ''), namespace);
DELETE FROM "sqlite_sequence";
INSERT INTO "sqlite_sequence" VALUES('snapshots',5);
COMMIT;
