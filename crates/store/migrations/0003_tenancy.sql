-- Tenants and their users, who is a member of which workspace, and what API keys may do.

ALTER TABLE tenants ADD COLUMN slug TEXT NOT NULL DEFAULT '';
UPDATE tenants SET slug = CASE WHEN id = (SELECT id FROM tenants ORDER BY created_at, id LIMIT 1)
    THEN 'default' ELSE id END;
CREATE UNIQUE INDEX tenants_by_slug ON tenants (slug);

ALTER TABLE users ADD COLUMN email TEXT;
-- owner, admin, member
ALTER TABLE users ADD COLUMN role TEXT NOT NULL DEFAULT 'member';
-- Computers keep the user who made them, so a row stays. Its keys are gone.
ALTER TABLE users ADD COLUMN removed_at BIGINT;
UPDATE users SET role = 'owner';
CREATE UNIQUE INDEX users_by_email ON users (tenant_id, email);

ALTER TABLE workspaces ADD COLUMN description TEXT;
ALTER TABLE workspaces ADD COLUMN metadata TEXT NOT NULL DEFAULT '{}';
ALTER TABLE workspaces ADD COLUMN settings TEXT NOT NULL DEFAULT '{}';
-- The caller's own ids; they never decide about access.
ALTER TABLE workspaces ADD COLUMN external_workspace_id TEXT;
ALTER TABLE workspaces ADD COLUMN external_user_id TEXT;
-- 1: where computers go that name no workspace.
ALTER TABLE workspaces ADD COLUMN is_default BIGINT NOT NULL DEFAULT 0;
ALTER TABLE workspaces ADD COLUMN updated_at BIGINT NOT NULL DEFAULT 0;
UPDATE workspaces SET is_default = CASE slug WHEN 'default' THEN 1 ELSE 0 END, updated_at = created_at;
CREATE UNIQUE INDEX workspaces_default ON workspaces (tenant_id) WHERE is_default = 1;
CREATE INDEX workspaces_by_external_id ON workspaces (tenant_id, external_workspace_id);

CREATE TABLE workspace_members (
    workspace_id TEXT NOT NULL REFERENCES workspaces (id) ON DELETE CASCADE,
    user_id      TEXT NOT NULL REFERENCES users (id) ON DELETE CASCADE,
    -- owner, admin, member, viewer
    role         TEXT NOT NULL,
    added_by     TEXT,
    joined_at    BIGINT NOT NULL,
    PRIMARY KEY (workspace_id, user_id)
);
CREATE INDEX workspace_members_by_user ON workspace_members (user_id);

ALTER TABLE projects ADD COLUMN description TEXT;
ALTER TABLE projects ADD COLUMN metadata TEXT NOT NULL DEFAULT '{}';
ALTER TABLE projects ADD COLUMN settings TEXT NOT NULL DEFAULT '{}';
ALTER TABLE projects ADD COLUMN external_project_id TEXT;
-- 1: where computers of the workspace go that name no project.
ALTER TABLE projects ADD COLUMN is_default BIGINT NOT NULL DEFAULT 0;
ALTER TABLE projects ADD COLUMN updated_at BIGINT NOT NULL DEFAULT 0;
UPDATE projects SET is_default = CASE slug WHEN 'default' THEN 1 ELSE 0 END, updated_at = created_at;
CREATE UNIQUE INDEX projects_default ON projects (workspace_id) WHERE is_default = 1;
CREATE INDEX projects_by_external_id ON projects (workspace_id, external_project_id);

CREATE INDEX computers_by_workspace ON computers (workspace_id);
CREATE INDEX computers_by_project ON computers (project_id);
CREATE INDEX computers_by_owner ON computers (owner_user_id);

-- user, admin, platform. Until now there were keys of administrators only.
ALTER TABLE api_keys ADD COLUMN kind TEXT NOT NULL DEFAULT 'admin';
-- key, or token: made for a while, for a program in a browser.
ALTER TABLE api_keys ADD COLUMN form TEXT NOT NULL DEFAULT 'key';
-- A JSON list.
ALTER TABLE api_keys ADD COLUMN scopes TEXT NOT NULL DEFAULT '["computers:read","computers:write","usage:read"]';
-- active, disabled
ALTER TABLE api_keys ADD COLUMN status TEXT NOT NULL DEFAULT 'active';
-- A key with one of these reaches nothing outside of it.
ALTER TABLE api_keys ADD COLUMN workspace_id TEXT REFERENCES workspaces (id);
ALTER TABLE api_keys ADD COLUMN external_user_id TEXT;
ALTER TABLE api_keys ADD COLUMN expires_at BIGINT;
ALTER TABLE api_keys ADD COLUMN last_used_at BIGINT;
ALTER TABLE api_keys ADD COLUMN metadata TEXT NOT NULL DEFAULT '{}';
CREATE INDEX api_keys_by_tenant ON api_keys (tenant_id, created_at);

-- Snapshots outlive their computer; this is whose they are then.
ALTER TABLE snapshots ADD COLUMN owner_user_id TEXT;
ALTER TABLE snapshots ADD COLUMN external_user_id TEXT;
UPDATE snapshots SET
    owner_user_id = (SELECT c.owner_user_id FROM computers c WHERE c.id = snapshots.computer_id),
    external_user_id = (SELECT c.external_user_id FROM computers c WHERE c.id = snapshots.computer_id);
