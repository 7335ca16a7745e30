-- Events and webhooks reach only those who may see what they are about.

-- Who made the computer that an event is about. Null: none, or from before this column was there.
ALTER TABLE events ADD COLUMN owner_user_id TEXT;

-- For whom the webhook listens; null: for the tenant.
ALTER TABLE webhooks ADD COLUMN user_id TEXT REFERENCES users (id);
-- A webhook with one of these is told of nothing outside of it.
ALTER TABLE webhooks ADD COLUMN workspace_id TEXT REFERENCES workspaces (id) ON DELETE CASCADE;
ALTER TABLE webhooks ADD COLUMN external_user_id TEXT;
