-- How long computers run, and what they run once.

-- Seconds after each start after which the computer is stopped; 0: never.
ALTER TABLE computers ADD COLUMN timeout_sec BIGINT NOT NULL DEFAULT 0;

-- waiting, running, completed, failed: how far its script is. Null: it has none.
ALTER TABLE computers ADD COLUMN setup_state TEXT;

-- A script that is run once, when the computer runs for the first time. Its text and what it said are sealed.
CREATE TABLE setups (
    computer_id TEXT PRIMARY KEY REFERENCES computers (id) ON DELETE CASCADE,
    script      TEXT NOT NULL,
    -- Null where it did not come to its end.
    exit_code   BIGINT,
    output      TEXT,
    -- Why it did not.
    error       TEXT,
    started_at  BIGINT,
    ended_at    BIGINT
);
