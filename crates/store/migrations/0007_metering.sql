-- Idle computers, what computers use, and what that costs.

-- When somebody last used the computer, as far as it is written down; null: not since this column is there.
ALTER TABLE computers ADD COLUMN last_active_at BIGINT;

-- CPU and memory of guests. A minute that was not measured has no row.
CREATE TABLE metrics (
    computer_id TEXT NOT NULL,
    -- How long the time is that a row sums up, in seconds.
    resolution  BIGINT NOT NULL,
    -- Its begin.
    at          BIGINT NOT NULL,
    -- How many measurements the sums are of.
    samples     BIGINT NOT NULL,
    -- Sums of hundredths of a percent.
    cpu         BIGINT NOT NULL,
    memory      BIGINT NOT NULL,
    PRIMARY KEY (computer_id, resolution, at)
);
CREATE INDEX metrics_by_age ON metrics (resolution, at);

-- What an hour of each size costs, in micro-credits: the configuration of the server that started last.
CREATE TABLE prices (
    size  TEXT PRIMARY KEY,
    price BIGINT NOT NULL
);

-- The times for which computers had the status `running`, written in the transactions that changed it. They outlive
-- their computers.
CREATE TABLE runs (
    id                  TEXT PRIMARY KEY,
    tenant_id           TEXT NOT NULL,
    workspace_id        TEXT NOT NULL,
    computer_id         TEXT NOT NULL,
    external_user_id    TEXT,
    external_project_id TEXT,
    size                TEXT NOT NULL,
    -- Micro-credits an hour, as it was when the run began.
    price               BIGINT NOT NULL,
    started_at          BIGINT NOT NULL,
    -- Null while it runs.
    ended_at            BIGINT,
    -- It ran until then for certain: the end of a run whose end nobody saw.
    proven_until        BIGINT NOT NULL,
    -- How far it was metered, and what it cost until then in micro-credits. For tenants with an account that much
    -- is in the ledger.
    metered_until       BIGINT NOT NULL,
    cost                BIGINT NOT NULL
);
CREATE UNIQUE INDEX runs_open ON runs (computer_id) WHERE ended_at IS NULL;
CREATE INDEX runs_by_tenant ON runs (tenant_id, started_at);
CREATE INDEX runs_by_computer ON runs (computer_id, started_at);

-- Tenants whose credits are counted. The others have no limit. Amounts are micro-credits.
CREATE TABLE credit_accounts (
    tenant_id  TEXT PRIMARY KEY REFERENCES tenants (id),
    -- The sum of the tenant's ledger.
    balance    BIGINT NOT NULL,
    earned     BIGINT NOT NULL,
    spent      BIGINT NOT NULL,
    -- 1: the tenant was told that little is left, and has got nothing since.
    warned     BIGINT NOT NULL,
    updated_at BIGINT NOT NULL
);

-- Every change of a balance, once. Rows are never changed.
CREATE TABLE ledger (
    id          TEXT PRIMARY KEY,
    tenant_id   TEXT NOT NULL,
    -- Positive: earned. Negative: spent.
    amount      BIGINT NOT NULL,
    -- The run that was paid for, from `since` to `until`.
    run_id      TEXT,
    computer_id TEXT,
    since       BIGINT,
    until       BIGINT,
    description TEXT NOT NULL,
    created_at  BIGINT NOT NULL
);
CREATE INDEX ledger_by_tenant ON ledger (tenant_id, created_at);
-- No time of a run is paid for twice.
CREATE UNIQUE INDEX ledger_by_run ON ledger (run_id, since);
