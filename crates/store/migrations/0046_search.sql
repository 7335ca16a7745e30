-- What a search for a computer looks through: its name, slug and id in small letters, a line each. In an index of its
-- tenant, newest last, so that a search reads no row that it does not answer.
ALTER TABLE computers ADD COLUMN search_text TEXT NOT NULL DEFAULT '';
UPDATE computers SET search_text = LOWER(name || '
' || slug || '
' || id);

DROP INDEX computers_by_tenant;
CREATE INDEX computers_by_tenant ON computers (tenant_id, created_at, id, search_text);
