-- The public status as `status.rs` has it of the rest of the row and of the workflow at work, written wherever that changes.
-- Empty in rows from before; they get theirs when the database is opened.
ALTER TABLE computers ADD COLUMN status TEXT NOT NULL DEFAULT '';

-- Those of one status in the order of the list: a page of them reads nothing else.
CREATE INDEX computers_by_status ON computers (tenant_id, status, created_at, id);
