-- Requests with an Idempotency-Key: that they were begun, and what they were answered.
CREATE TABLE idempotent_requests (
    -- SHA-256 of tenant, method, path and the caller's key, lower-case hex.
    id          TEXT PRIMARY KEY,
    -- SHA-256 of what else makes the request: who, the query, the body.
    fingerprint TEXT NOT NULL,
    -- Sealed, because some answers hold secrets that are shown once. Null: begun, and not known to have ended.
    answer      TEXT,
    created_at  BIGINT NOT NULL
);
CREATE INDEX idempotent_requests_by_age ON idempotent_requests (created_at);
