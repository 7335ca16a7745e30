-- What others may reach of a computer: exposed ports, its viewer password, shares. Clones start without any.

CREATE TABLE ports (
    computer_id TEXT NOT NULL REFERENCES computers (id) ON DELETE CASCADE,
    port        BIGINT NOT NULL,
    -- public, private, protected
    visibility  TEXT NOT NULL,
    created_at  BIGINT NOT NULL,
    updated_at  BIGINT NOT NULL,
    PRIMARY KEY (computer_id, port)
);

CREATE TABLE viewer_passwords (
    computer_id TEXT PRIMARY KEY REFERENCES computers (id) ON DELETE CASCADE,
    -- Argon2id in PHC form. The password itself is kept nowhere.
    hash        TEXT NOT NULL,
    set_at      BIGINT NOT NULL
);

CREATE TABLE shares (
    id          TEXT PRIMARY KEY,
    computer_id TEXT NOT NULL REFERENCES computers (id) ON DELETE CASCADE,
    -- link, user
    kind        TEXT NOT NULL,
    -- viewer, editor
    role        TEXT NOT NULL,
    email       TEXT,
    -- SHA-256 of the token, lower-case hex.
    token_hash  TEXT NOT NULL UNIQUE,
    -- Null: until it is revoked.
    expires_at  BIGINT,
    created_at  BIGINT NOT NULL
);
CREATE INDEX shares_by_computer ON shares (computer_id, created_at);

-- Links that begin a browser's session at a port. Each works once, at any of the servers.
CREATE TABLE port_links (
    -- SHA-256 of the link's secret, lower-case hex.
    hash            TEXT PRIMARY KEY,
    computer_id     TEXT NOT NULL REFERENCES computers (id) ON DELETE CASCADE,
    port            BIGINT NOT NULL,
    -- Seconds since the Unix epoch, as tokens have it.
    session_ends_at BIGINT NOT NULL,
    expires_at      BIGINT NOT NULL
);
CREATE INDEX port_links_by_expiry ON port_links (expires_at);
