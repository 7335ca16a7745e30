-- Regions: pools of computers with a data directory each. What was made before there were any is in the first one.
ALTER TABLE computers ADD COLUMN region TEXT NOT NULL DEFAULT 'local';
ALTER TABLE snapshots ADD COLUMN region TEXT NOT NULL DEFAULT 'local';
ALTER TABLE layers ADD COLUMN region TEXT NOT NULL DEFAULT 'local';

-- A page of a list is found in the index alone, and so is how many there are.
DROP INDEX computers_by_tenant;
CREATE INDEX computers_by_tenant ON computers (tenant_id, created_at, id);
