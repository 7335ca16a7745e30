-- What may be in a workspace.
CREATE TABLE workspace_policies (
    workspace_id TEXT PRIMARY KEY REFERENCES workspaces (id) ON DELETE CASCADE,
    -- A JSON object.
    policy       TEXT NOT NULL,
    updated_at   BIGINT NOT NULL
);
