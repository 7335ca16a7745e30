-- Snapshots, the layers that disks lie on, and what computers and workflows need to know of them.

-- Parts of disks that never change any more. Whether a layer is needed is derived, never counted: by computers,
-- by snapshots, and by layers that lie on it.
CREATE TABLE layers (
    id         TEXT PRIMARY KEY,
    -- What it lies on; null is a template.
    parent_id  TEXT REFERENCES layers (id),
    -- What its file takes on the host's disk.
    disk_bytes BIGINT NOT NULL,
    created_at BIGINT NOT NULL
);
CREATE INDEX layers_by_parent ON layers (parent_id);

CREATE TABLE snapshots (
    id                 TEXT PRIMARY KEY,
    tenant_id          TEXT NOT NULL REFERENCES tenants (id),
    -- Snapshots outlive their computer, so what a new computer takes over from it is kept here.
    computer_id        TEXT NOT NULL,
    computer_name      TEXT NOT NULL,
    workspace_id       TEXT NOT NULL REFERENCES workspaces (id),
    project_id         TEXT NOT NULL REFERENCES projects (id),
    attributes         TEXT NOT NULL,
    -- snapshot: asked for by a user; clone: the hidden half of a clone, gone when the clone has started.
    purpose            TEXT NOT NULL,
    -- Of named snapshots.
    name               TEXT,
    comment            TEXT,
    -- creating, ready, failed, deleted (its files are being removed)
    status             TEXT NOT NULL,
    step               TEXT,
    progress           BIGINT NOT NULL,
    error              TEXT,
    -- Null until it is ready.
    layer_id           TEXT REFERENCES layers (id),
    template_type      TEXT NOT NULL,
    template_digest    TEXT NOT NULL,
    size               TEXT NOT NULL,
    disk_gib           BIGINT NOT NULL,
    -- Null for a computer that was shut down.
    memory_bytes       BIGINT,
    disk_bytes         BIGINT NOT NULL,
    -- How long the computer stood still, in microseconds.
    pause_us           BIGINT,
    -- 1: never expires.
    keep               BIGINT NOT NULL,
    expires_at         BIGINT,
    retention_seconds  BIGINT,
    -- The newest snapshot of the same history when this one was taken. It may be gone.
    parent_snapshot_id TEXT,
    created_at         BIGINT NOT NULL,
    updated_at         BIGINT NOT NULL,
    last_used_at       BIGINT
);
CREATE INDEX snapshots_by_computer ON snapshots (computer_id, created_at);
CREATE INDEX snapshots_by_tenant ON snapshots (tenant_id, created_at);
CREATE INDEX snapshots_by_layer ON snapshots (layer_id);
CREATE UNIQUE INDEX snapshots_by_name ON snapshots (tenant_id, name);

-- The layer the disk lies on; null is a template.
ALTER TABLE computers ADD COLUMN layer_id TEXT REFERENCES layers (id);
-- What the first start continues from; null once it has succeeded.
ALTER TABLE computers ADD COLUMN snapshot_id TEXT REFERENCES snapshots (id);
-- The newest snapshot of this computer's history: taken of it, or restored into it.
ALTER TABLE computers ADD COLUMN last_snapshot_id TEXT;
-- Why the last start booted although there was saved memory.
ALTER TABLE computers ADD COLUMN memory_lost TEXT;
-- 1: it is started again after the host was.
ALTER TABLE computers ADD COLUMN always_on BIGINT NOT NULL DEFAULT 0;
-- The virtual size of the disk, which a change of `size` leaves as it is.
ALTER TABLE computers ADD COLUMN disk_gib BIGINT NOT NULL DEFAULT 10;
UPDATE computers SET disk_gib = CASE size WHEN 'medium' THEN 20 WHEN 'large' THEN 40 WHEN 'xl' THEN 80 ELSE 10 END;
CREATE INDEX computers_by_layer ON computers (layer_id);
CREATE INDEX computers_by_snapshot ON computers (snapshot_id);

-- What a run needs to know beyond its computer: the ids of a capture, the size of a resize.
ALTER TABLE workflows ADD COLUMN payload TEXT;
