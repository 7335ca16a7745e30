-- Environment variables of computers. Values are sealed; what they are bound to is said where they are sealed.
CREATE TABLE env (
    computer_id TEXT NOT NULL REFERENCES computers (id) ON DELETE CASCADE,
    name        TEXT NOT NULL,
    value       TEXT NOT NULL,
    created_at  BIGINT NOT NULL,
    updated_at  BIGINT NOT NULL,
    PRIMARY KEY (computer_id, name)
);

-- Grows with every change of the set: the guest takes no older set after a newer one. 0: there never was one.
ALTER TABLE computers ADD COLUMN env_version BIGINT NOT NULL DEFAULT 0;
