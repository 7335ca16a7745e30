-- Apps that were selected for computers, and how far their installation is. The guest knows what is installed; this is
-- what was asked for.
CREATE TABLE installations (
    computer_id TEXT NOT NULL REFERENCES computers (id) ON DELETE CASCADE,
    -- Its id in the catalogue.
    app         TEXT NOT NULL,
    -- In which order they are installed.
    position    BIGINT NOT NULL,
    -- waiting, installing, installed, failed
    state       TEXT NOT NULL,
    -- Percent.
    progress    BIGINT NOT NULL,
    error       TEXT,
    created_at  BIGINT NOT NULL,
    updated_at  BIGINT NOT NULL,
    PRIMARY KEY (computer_id, app)
);
CREATE INDEX installations_pending ON installations (computer_id) WHERE state IN ('waiting', 'installing');
