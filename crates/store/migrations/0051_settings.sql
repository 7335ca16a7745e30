-- What clients keep with a tenant; it means nothing to the server.
CREATE TABLE tenant_settings (
    tenant_id  TEXT NOT NULL REFERENCES tenants (id) ON DELETE CASCADE,
    -- settings, branding
    kind       TEXT NOT NULL,
    -- A JSON object.
    value      TEXT NOT NULL,
    updated_at BIGINT NOT NULL,
    PRIMARY KEY (tenant_id, kind)
);
