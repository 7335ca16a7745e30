-- Domains of tenants, workspaces and projects, under which the ports of their computers are reached.
CREATE TABLE preview_domains (
    -- The tenant, workspace or project.
    owner_id     TEXT PRIMARY KEY,
    tenant_id    TEXT NOT NULL REFERENCES tenants (id) ON DELETE CASCADE,
    workspace_id TEXT REFERENCES workspaces (id) ON DELETE CASCADE,
    project_id   TEXT REFERENCES projects (id) ON DELETE CASCADE,
    -- In small letters, without a port.
    domain       TEXT NOT NULL,
    -- Null: nobody has seen it lead here, and it counts for nothing.
    verified_at  BIGINT,
    updated_at   BIGINT NOT NULL,
    -- A computer has the one whose owner is nearest: 0 its project, 1 its workspace, 2 its tenant.
    distance     BIGINT NOT NULL
);
CREATE INDEX preview_domains_by_domain ON preview_domains (domain);
CREATE INDEX preview_domains_by_tenant ON preview_domains (tenant_id);
CREATE INDEX preview_domains_by_workspace ON preview_domains (workspace_id);
CREATE INDEX preview_domains_by_project ON preview_domains (project_id);
