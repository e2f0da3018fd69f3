"""The schema of ``meta.db``: the reference of the store's format.

Each entry of `MIGRATIONS` takes a database from the version of its index to the next; ``PRAGMA user_version`` holds the
version. Times are nanoseconds since 1970 (UTC), sizes bytes, digests text as in the OCI image specification.
"""

from __future__ import annotations

_VERSION_1 = """
-- What the store is: "driver" and its options ("option.NAME"), "created", and "boot", the boot of the last open;
-- where layers are unpacked with other owners than theirs, "uidmap" and "gidmap": ranges INSIDE:OUTSIDE:COUNT with
-- blanks between.
CREATE TABLE settings (
    key   TEXT PRIMARY KEY,
    value TEXT NOT NULL
) STRICT, WITHOUT ROWID;

-- Every snapshot. The id names its bytes and is never used twice (AUTOINCREMENT keeps that over deletions).
CREATE TABLE snapshots (
    id        INTEGER PRIMARY KEY AUTOINCREMENT,
    -- The key of an active snapshot or view, the name of a committed one: one key space.
    name      TEXT NOT NULL UNIQUE CHECK (name <> ''),
    kind      TEXT NOT NULL CHECK (kind IN ('active', 'view', 'committed')),
    -- A row cannot go while another one names it as its parent.
    parent    INTEGER REFERENCES snapshots (id) ON DELETE RESTRICT,
    -- 'creating': its bytes are being made; 'committing': being frozen, to be named target and labelled with
    -- target_labels (a JSON object).
    -- Whoever meets such a row whose owner (locks.Owner) is dead undoes the first and finishes the second.
    state     TEXT NOT NULL CHECK (state IN ('creating', 'ready', 'committing')),
    owner     INTEGER NOT NULL,
    target    TEXT,
    target_labels TEXT,
    -- What it takes without its parents: null before the commit, and for layers until somebody wants to know.
    size      INTEGER,
    inodes    INTEGER,
    created   INTEGER NOT NULL,
    updated   INTEGER NOT NULL
) STRICT;
CREATE INDEX snapshots_parent ON snapshots (parent);
CREATE INDEX snapshots_unfinished ON snapshots (state) WHERE state <> 'ready';
CREATE INDEX snapshots_target ON snapshots (target) WHERE target IS NOT NULL;

CREATE TABLE labels (
    snapshot INTEGER NOT NULL REFERENCES snapshots (id) ON DELETE CASCADE,
    key      TEXT NOT NULL,
    value    TEXT NOT NULL,
    PRIMARY KEY (snapshot, key)
) STRICT, WITHOUT ROWID;

-- An image is its manifest; the bytes of manifest and configuration are blobs.
CREATE TABLE images (
    digest     TEXT PRIMARY KEY,
    media_type TEXT NOT NULL,
    -- Size of the manifest, then of the configuration; the digest of the latter.
    size       INTEGER NOT NULL,
    config     TEXT NOT NULL,
    config_size INTEGER NOT NULL,
    created    INTEGER NOT NULL
) STRICT, WITHOUT ROWID;

CREATE TABLE tags (
    name  TEXT PRIMARY KEY,
    image TEXT NOT NULL REFERENCES images (digest) ON DELETE RESTRICT
) STRICT, WITHOUT ROWID;
CREATE INDEX tags_image ON tags (image);

-- The layers of an image, the lowest at position 0. chain_id is the name of the snapshot that holds it unpacked,
-- if it is unpacked; layers are shared between images by it.
CREATE TABLE layers (
    image    TEXT NOT NULL REFERENCES images (digest) ON DELETE CASCADE,
    position INTEGER NOT NULL,
    blob     TEXT NOT NULL,
    size     INTEGER NOT NULL,
    diff_id  TEXT NOT NULL,
    chain_id TEXT NOT NULL,
    PRIMARY KEY (image, position)
) STRICT, WITHOUT ROWID;
CREATE INDEX layers_chain_id ON layers (chain_id);
CREATE INDEX layers_blob ON layers (blob);

-- A clone is an active snapshot ("clone/NAME") and the image that it came from. The snapshots taken of it are
-- committed ones named "clone/NAME@LABEL".
CREATE TABLE clones (
    name    TEXT PRIMARY KEY,
    image   TEXT NOT NULL REFERENCES images (digest) ON DELETE RESTRICT,
    created INTEGER NOT NULL
) STRICT, WITHOUT ROWID;
CREATE INDEX clones_image ON clones (image);
"""

_VERSION_2 = """
-- What a committed snapshot held when it was sealed: how many files of every kind, the bytes in the regular ones, and a
-- digest of all of it; "checked" is when all of it was last read and found whole.
CREATE TABLE seals (
    snapshot INTEGER PRIMARY KEY REFERENCES snapshots (id) ON DELETE CASCADE,
    entries  INTEGER NOT NULL,
    size     INTEGER NOT NULL,
    digest   TEXT NOT NULL,
    checked  INTEGER
) STRICT;

-- What an active snapshot may take without its parents, in bytes and in inodes; null is no limit. "applied" is 0 until
-- the driver has done it: whoever opens the store after a crash tells the driver again.
CREATE TABLE quotas (
    snapshot INTEGER PRIMARY KEY REFERENCES snapshots (id) ON DELETE CASCADE,
    size     INTEGER,
    inodes   INTEGER,
    applied  INTEGER NOT NULL CHECK (applied IN (0, 1))
) STRICT;
CREATE INDEX quotas_pending ON quotas (applied) WHERE applied = 0;

-- A lease keeps what it names from being pruned until it expires; the kind is that of the name, which may be of
-- something that is still to come. During the boot of this id (random(4)) it ends "deadline" nanoseconds after that
-- boot, whatever is done to the clock; after another boot it ends at "expires".
CREATE TABLE leases (
    id       TEXT PRIMARY KEY CHECK (id <> ''),
    created  INTEGER NOT NULL,
    expires  INTEGER NOT NULL,
    boot     TEXT NOT NULL,
    deadline INTEGER NOT NULL
) STRICT, WITHOUT ROWID;
CREATE TABLE leased (
    lease TEXT NOT NULL REFERENCES leases (id) ON DELETE CASCADE,
    kind  TEXT NOT NULL CHECK (kind IN ('blob', 'image', 'snapshot')),
    name  TEXT NOT NULL,
    PRIMARY KEY (lease, kind, name)
) STRICT, WITHOUT ROWID;
CREATE INDEX leased_name ON leased (kind, name);
"""

MIGRATIONS = (_VERSION_1, _VERSION_2)
