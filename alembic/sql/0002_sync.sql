-- What the worker needs to know after a restart, and what others may ask it.

ALTER TABLE market_data.sync_state
    -- Kept up to date from here on, and since when; NULL: nobody keeps it up to date.
    ADD COLUMN tracked_from timestamptz,
    ADD COLUMN tracked_since timestamptz,
    -- Up to where (exclusive), and when, the last good call at the edge asked.
    ADD COLUMN asked_to timestamptz,
    ADD COLUMN asked_at timestamptz,
    -- What somebody waits for: it goes first.
    ADD COLUMN requested tstzmultirange NOT NULL DEFAULT '{}',
    ADD COLUMN rechecked_at timestamptz,
    -- Failed attempts in a row.
    ADD COLUMN failures integer NOT NULL DEFAULT 0,
    ADD COLUMN last_sync_changed bigint,
    DROP CONSTRAINT sync_state_status_check,
    ADD CONSTRAINT sync_state_status_check CHECK (status IN ('new', 'ok', 'failed', 'refused'));
CREATE INDEX sync_state_requested_idx ON market_data.sync_state (symbol) WHERE NOT isempty(requested);

-- Stored bars that the last re-check did not find: the next one, a day later, decides.
CREATE TABLE market_data.missed_bars (
    symbol text COLLATE "C" NOT NULL,
    ts timestamptz NOT NULL,
    missed_at timestamptz NOT NULL,
    PRIMARY KEY (symbol, ts)
);

-- What the plan gives of an asset class, as recognised by its answers.
CREATE TABLE market_data.entitlements (
    asset_type text PRIMARY KEY,
    kind text NOT NULL CHECK (kind IN ('real-time', 'delayed', 'end-of-day')),
    delay interval NOT NULL DEFAULT '0',
    seen_at timestamptz NOT NULL
);

-- One row: the process that keeps this database up to date, as it said last.
CREATE TABLE market_data.worker (
    only_row boolean PRIMARY KEY DEFAULT true CHECK (only_row),
    host text NOT NULL,
    pid integer NOT NULL,
    started_at timestamptz NOT NULL,
    beat_at timestamptz NOT NULL,
    provider text NOT NULL DEFAULT 'ok' CHECK (provider IN ('ok', 'unreachable', 'unauthorized')),
    provider_message text,
    provider_since timestamptz,
    paused_until timestamptz,
    -- How far this machine's clock is ahead of the provider's; NULL: not known.
    clock_ahead interval
);

-- The last run of each of the worker's jobs.
CREATE TABLE market_data.jobs (
    name text PRIMARY KEY,
    every text NOT NULL,
    started_at timestamptz,
    finished_at timestamptz,
    result text CHECK (result IN ('ok', 'failed')),
    message text,
    next_run_at timestamptz
);
