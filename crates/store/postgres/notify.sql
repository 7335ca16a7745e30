-- PostgreSQL only, run at every start: tells every server what any of them has changed, when it is committed.
-- Each line is a word and an id; `servers.rs` reads them.

CREATE OR REPLACE FUNCTION roost_changed() RETURNS trigger LANGUAGE plpgsql AS $$
DECLARE
    changed RECORD;
BEGIN
    IF TG_OP = 'DELETE' THEN changed := OLD; ELSE changed := NEW; END IF;
    IF TG_TABLE_NAME = 'computers' THEN
        PERFORM pg_notify('roost', CASE TG_OP WHEN 'DELETE' THEN 'gone ' ELSE 'computer ' END || changed.id);
    ELSIF TG_TABLE_NAME = 'workflows' THEN
        PERFORM pg_notify('roost', 'computer ' || changed.computer_id);
        IF TG_OP <> 'DELETE' AND changed.cancelled = 1 THEN
            PERFORM pg_notify('roost', 'cancelled ' || changed.computer_id);
        END IF;
    ELSIF TG_TABLE_NAME = 'snapshots' THEN
        PERFORM pg_notify('roost', 'snapshot ' || changed.id);
    END IF;
    RETURN NULL;
END
$$;

-- For what has no id that anybody waits for: the word is the trigger's own.
CREATE OR REPLACE FUNCTION roost_said() RETURNS trigger LANGUAGE plpgsql AS $$
BEGIN
    PERFORM pg_notify('roost', TG_ARGV[0]);
    RETURN NULL;
END
$$;

CREATE OR REPLACE TRIGGER roost_changed AFTER INSERT OR UPDATE OR DELETE ON computers
    FOR EACH ROW EXECUTE FUNCTION roost_changed();
CREATE OR REPLACE TRIGGER roost_changed AFTER INSERT OR UPDATE OR DELETE ON workflows
    FOR EACH ROW EXECUTE FUNCTION roost_changed();
CREATE OR REPLACE TRIGGER roost_changed AFTER INSERT OR UPDATE OR DELETE ON snapshots
    FOR EACH ROW EXECUTE FUNCTION roost_changed();
CREATE OR REPLACE TRIGGER roost_changed AFTER INSERT ON events
    FOR EACH STATEMENT EXECUTE FUNCTION roost_said('event');
CREATE OR REPLACE TRIGGER roost_changed AFTER UPDATE OF status, key_hash, scopes, allowed_ips OR DELETE ON api_keys
    FOR EACH STATEMENT EXECUTE FUNCTION roost_said('callers');
CREATE OR REPLACE TRIGGER roost_changed AFTER UPDATE OF role, removed_at ON users
    FOR EACH STATEMENT EXECUTE FUNCTION roost_said('callers');
CREATE OR REPLACE TRIGGER roost_changed AFTER INSERT OR UPDATE OR DELETE ON workspace_members
    FOR EACH STATEMENT EXECUTE FUNCTION roost_said('callers');
-- Whose a computer is decides who may have something of it open.
CREATE OR REPLACE TRIGGER roost_placed AFTER UPDATE OF workspace_id ON computers
    FOR EACH STATEMENT EXECUTE FUNCTION roost_said('callers');
CREATE OR REPLACE TRIGGER roost_changed AFTER DELETE ON servers
    FOR EACH STATEMENT EXECUTE FUNCTION roost_said('servers');
