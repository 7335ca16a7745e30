-- The servers that use this database at the same time, and what each is doing. On SQLite there is one.

CREATE TABLE servers (
    id          TEXT PRIMARY KEY,
    -- Until then the others leave alone what it is doing.
    lease_until BIGINT NOT NULL,
    started_at  BIGINT NOT NULL
);

-- Which server runs it; null: none has begun to.
ALTER TABLE workflows ADD COLUMN owner TEXT;
-- 1: whoever runs it is to give it up, for a delete.
ALTER TABLE workflows ADD COLUMN cancelled BIGINT NOT NULL DEFAULT 0;
-- The code of `error`, for a caller who waits at another server.
ALTER TABLE workflows ADD COLUMN error_code TEXT;

-- Each opens one event stream, at any of the servers.
CREATE TABLE tickets (
    -- SHA-256, lower-case hex. The ticket itself is kept nowhere.
    hash       TEXT PRIMARY KEY,
    api_key_id TEXT NOT NULL REFERENCES api_keys (id) ON DELETE CASCADE,
    expires_at BIGINT NOT NULL
);
CREATE INDEX tickets_by_expiry ON tickets (expires_at);
