-- What an end user of a tenant may have at most. Null: as much as they like; no row: the same for everything.
CREATE TABLE quotas (
    tenant_id        TEXT NOT NULL REFERENCES tenants (id) ON DELETE CASCADE,
    -- The tenant's own id of the end user.
    external_user_id TEXT NOT NULL,
    max_computers    BIGINT,
    -- Of those that run, or are about to.
    max_running      BIGINT,
    -- What their disks may grow to together, in GiB.
    max_storage      BIGINT,
    -- What their runs may cost in a month, in micro-credits.
    max_cost         BIGINT,
    updated_at       BIGINT NOT NULL,
    PRIMARY KEY (tenant_id, external_user_id)
);

-- A quota looks at what one end user has.
CREATE INDEX computers_by_external_user ON computers (tenant_id, external_user_id);
CREATE INDEX runs_by_external_user ON runs (tenant_id, external_user_id, started_at);
