-- What happened, in the order in which it became so.

-- One row. Its lock is held until the transaction that writes an event ends, so ids become visible in their order:
-- whoever has read up to an id has missed nothing before it.
CREATE TABLE event_log (
    id         BIGINT PRIMARY KEY,
    -- The newest event.
    last_id    BIGINT NOT NULL,
    -- The newest event that is not kept any more.
    removed_id BIGINT NOT NULL
);
INSERT INTO event_log (id, last_id, removed_id) VALUES (1, 0, 0);

-- Events outlive what they are about, so nothing here refers to another table.
CREATE TABLE events (
    id            BIGINT PRIMARY KEY,
    tenant_id     TEXT NOT NULL,
    workspace_id  TEXT,
    computer_id   TEXT,
    -- The caller's own id of an end user.
    external_user TEXT,
    -- `computer.created`, `status_changed` and so on.
    type          TEXT NOT NULL,
    -- What the type says beyond the columns: a JSON object.
    data          TEXT NOT NULL,
    created_at    BIGINT NOT NULL
);
CREATE INDEX events_by_tenant ON events (tenant_id, id);
CREATE INDEX events_by_computer ON events (computer_id, id);
