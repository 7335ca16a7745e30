-- From where API keys may be used, what happened to them, and scopes under a name.

-- A JSON list of addresses and networks; an empty one is every address.
ALTER TABLE api_keys ADD COLUMN allowed_ips TEXT NOT NULL DEFAULT '[]';

CREATE TABLE key_events (
    id           TEXT PRIMARY KEY,
    key_id       TEXT NOT NULL REFERENCES api_keys (id) ON DELETE CASCADE,
    -- created, changed, rotated, disabled, enabled, refused
    kind         TEXT NOT NULL,
    -- Who did it, and with which key.
    user_id      TEXT,
    actor_key_id TEXT,
    address      TEXT,
    -- A JSON object.
    details      TEXT NOT NULL,
    created_at   BIGINT NOT NULL
);
CREATE INDEX key_events_by_key ON key_events (key_id, created_at);

CREATE TABLE key_presets (
    tenant_id   TEXT NOT NULL REFERENCES tenants (id) ON DELETE CASCADE,
    name        TEXT NOT NULL,
    -- A JSON list.
    scopes      TEXT NOT NULL,
    description TEXT,
    created_at  BIGINT NOT NULL,
    PRIMARY KEY (tenant_id, name)
);
