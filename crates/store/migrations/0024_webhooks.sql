-- Addresses that are told of events, and what was sent to them.

CREATE TABLE webhooks (
    id             TEXT PRIMARY KEY,
    tenant_id      TEXT NOT NULL REFERENCES tenants (id),
    url            TEXT NOT NULL,
    -- A JSON list of patterns of types.
    events         TEXT NOT NULL,
    name           TEXT,
    -- Sealed: a JSON object. They may hold credentials of the receiver.
    headers        TEXT NOT NULL,
    -- Sealed.
    secret         TEXT NOT NULL,
    secret_preview TEXT NOT NULL,
    retry_count    BIGINT NOT NULL,
    active         BIGINT NOT NULL,
    metadata       TEXT NOT NULL,
    -- Events up to here are deliveries already, or are none of its business.
    place          BIGINT NOT NULL,
    created_at     BIGINT NOT NULL,
    updated_at     BIGINT NOT NULL
);
CREATE INDEX webhooks_by_tenant ON webhooks (tenant_id, created_at);

CREATE TABLE webhook_deliveries (
    id            TEXT PRIMARY KEY,
    webhook_id    TEXT NOT NULL REFERENCES webhooks (id) ON DELETE CASCADE,
    event_type    TEXT NOT NULL,
    payload       TEXT NOT NULL,
    -- The caller's own id of a replay.
    replay_id     TEXT,
    -- pending, delivered, failed
    state         TEXT NOT NULL,
    attempts      BIGINT NOT NULL,
    -- When the next attempt is due. While one is under way: when it counts as lost.
    next_at       BIGINT NOT NULL,
    -- 1: an attempt is under way.
    claimed       BIGINT NOT NULL,
    attempted_at  BIGINT,
    duration_ms   BIGINT,
    status_code   BIGINT,
    response_body TEXT,
    error         TEXT,
    created_at    BIGINT NOT NULL
);
CREATE INDEX webhook_deliveries_by_webhook ON webhook_deliveries (webhook_id, created_at);
CREATE INDEX webhook_deliveries_due ON webhook_deliveries (next_at) WHERE state = 'pending';
CREATE UNIQUE INDEX webhook_deliveries_by_replay ON webhook_deliveries (webhook_id, replay_id);
