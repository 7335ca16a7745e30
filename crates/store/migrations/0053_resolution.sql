-- Of the screen, as the guest was last told.
ALTER TABLE computers ADD COLUMN resolution TEXT NOT NULL DEFAULT '1280x720';
