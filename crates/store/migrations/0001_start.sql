-- Times are microseconds since the Unix epoch. Ids are hyphenated UUIDs. Structured values are JSON text.

CREATE TABLE tenants (
    id         TEXT PRIMARY KEY,
    name       TEXT NOT NULL,
    created_at BIGINT NOT NULL
);

CREATE TABLE users (
    id         TEXT PRIMARY KEY,
    tenant_id  TEXT NOT NULL REFERENCES tenants (id),
    name       TEXT NOT NULL,
    created_at BIGINT NOT NULL
);

CREATE TABLE workspaces (
    id         TEXT PRIMARY KEY,
    tenant_id  TEXT NOT NULL REFERENCES tenants (id),
    slug       TEXT NOT NULL,
    name       TEXT NOT NULL,
    created_at BIGINT NOT NULL,
    UNIQUE (tenant_id, slug)
);

CREATE TABLE projects (
    id           TEXT PRIMARY KEY,
    workspace_id TEXT NOT NULL REFERENCES workspaces (id),
    slug         TEXT NOT NULL,
    name         TEXT NOT NULL,
    created_at   BIGINT NOT NULL,
    UNIQUE (workspace_id, slug)
);

CREATE TABLE api_keys (
    id          TEXT PRIMARY KEY,
    tenant_id   TEXT NOT NULL REFERENCES tenants (id),
    user_id     TEXT NOT NULL REFERENCES users (id),
    name        TEXT NOT NULL,
    key_prefix  TEXT NOT NULL,
    -- SHA-256 of the whole key, lower-case hex. The key itself is kept nowhere.
    key_hash    TEXT NOT NULL UNIQUE,
    created_at  BIGINT NOT NULL
);

CREATE TABLE computers (
    id                    TEXT PRIMARY KEY,
    tenant_id             TEXT NOT NULL REFERENCES tenants (id),
    owner_user_id         TEXT NOT NULL REFERENCES users (id),
    workspace_id          TEXT NOT NULL REFERENCES workspaces (id),
    project_id            TEXT NOT NULL REFERENCES projects (id),
    name                  TEXT NOT NULL,
    slug                  TEXT NOT NULL UNIQUE,
    template_type         TEXT NOT NULL,
    -- Which build of the template the disk is an overlay on.
    template_digest       TEXT NOT NULL,
    size                  TEXT NOT NULL,
    external_workspace_id TEXT,
    external_user_id      TEXT,
    external_project_id   TEXT,
    selected_apps         TEXT NOT NULL,
    metadata              TEXT NOT NULL,
    visibility            TEXT NOT NULL,
    agent_session_id      TEXT,
    auto_stop             BIGINT NOT NULL,
    -- What the user asked for: running, stopped, deleted.
    desired               TEXT NOT NULL,
    -- Grows with every start. Reports of older generations are ignored.
    generation            BIGINT NOT NULL,
    -- 1 from the moment the first start succeeded: the disk holds user data and is never made anew.
    provisioned           BIGINT NOT NULL,
    -- What the machine process of this generation last reported.
    observed              TEXT NOT NULL,
    -- Why it failed last, and the last lines of its console then.
    failure               TEXT,
    failure_console       TEXT NOT NULL,
    created_at            BIGINT NOT NULL,
    updated_at            BIGINT NOT NULL,
    started_at            BIGINT,
    ready_at              BIGINT
);
CREATE INDEX computers_by_tenant ON computers (tenant_id, created_at);

CREATE TABLE workflows (
    id          TEXT PRIMARY KEY,
    computer_id TEXT NOT NULL,
    -- create, start, stop, restart, delete
    kind        TEXT NOT NULL,
    -- The generation that machines started by this run carry.
    generation  BIGINT NOT NULL,
    -- How many steps are done.
    step        BIGINT NOT NULL,
    -- Why it is being undone; null while it goes forward.
    error       TEXT,
    created_at  BIGINT NOT NULL,
    finished_at BIGINT
);
-- One computer, one workflow at a time: the database is the lock.
CREATE UNIQUE INDEX workflows_active ON workflows (computer_id) WHERE finished_at IS NULL;
