-- Environment variables that were given with a start and hold until the next one. Values are sealed.
CREATE TABLE start_env (
    computer_id TEXT NOT NULL REFERENCES computers (id) ON DELETE CASCADE,
    -- The generation of the start.
    generation  BIGINT NOT NULL,
    name        TEXT NOT NULL,
    value       TEXT NOT NULL,
    PRIMARY KEY (computer_id, name)
);
