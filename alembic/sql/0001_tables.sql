-- Tables that are the same on both engines. Every range is half-open, every instant aware UTC.

-- One row: what this database is. An engine never changes; a source is set with the first bar.
CREATE TABLE market_data.installation (
    only_row boolean PRIMARY KEY DEFAULT true CHECK (only_row),
    engine text NOT NULL,
    source text,
    created_at timestamptz NOT NULL DEFAULT now()
);

CREATE TABLE market_data.instruments (
    symbol text COLLATE "C" PRIMARY KEY,
    ticker text NOT NULL UNIQUE,
    source text NOT NULL DEFAULT 'polygon',
    asset_type text NOT NULL CHECK (asset_type IN ('forex', 'commodity', 'index', 'crypto', 'stock')),
    name text NOT NULL,
    active boolean NOT NULL DEFAULT true,
    created_at timestamptz NOT NULL DEFAULT now()
);

-- A bar: `ts` is the START of its minute. No foreign key: it would cost every ingested row.
CREATE TABLE market_data.candles_1m (
    symbol text COLLATE "C" NOT NULL,
    ts timestamptz NOT NULL,
    open double precision NOT NULL,
    high double precision NOT NULL,
    low double precision NOT NULL,
    close double precision NOT NULL,
    volume double precision,
    vwap double precision,
    trades bigint,
    PRIMARY KEY (symbol, ts)
);

-- The coverage ledger: work to do is wanted - covered - unavailable.
CREATE TABLE market_data.sync_state (
    symbol text COLLATE "C" PRIMARY KEY REFERENCES market_data.instruments ON DELETE CASCADE,
    wanted tstzmultirange NOT NULL DEFAULT '{}',
    covered tstzmultirange NOT NULL DEFAULT '{}',
    unavailable tstzmultirange NOT NULL DEFAULT '{}',
    recheck tstzmultirange NOT NULL DEFAULT '{}',
    first_bar timestamptz,
    last_bar timestamptz,
    status text NOT NULL DEFAULT 'new' CHECK (status IN ('new', 'ok', 'failed')),
    last_sync_at timestamptz,
    last_sync_rows bigint,
    error_message text,
    next_attempt_at timestamptz
);

-- Append-only: which bars became new or other, in the order of commit.
CREATE TABLE market_data.changes (
    id bigint GENERATED ALWAYS AS IDENTITY PRIMARY KEY,
    symbol text COLLATE "C" NOT NULL,
    range tstzrange NOT NULL,
    at timestamptz NOT NULL DEFAULT now()
);
CREATE INDEX changes_symbol_id_idx ON market_data.changes (symbol, id);

-- The changes whose range the aggregates do not show yet.
CREATE TABLE market_data.pending_refreshes (
    change_id bigint PRIMARY KEY REFERENCES market_data.changes ON DELETE CASCADE
);

-- What a settled bar was before a correction.
CREATE TABLE market_data.bar_revisions (
    id bigint GENERATED ALWAYS AS IDENTITY PRIMARY KEY,
    symbol text COLLATE "C" NOT NULL,
    ts timestamptz NOT NULL,
    open double precision NOT NULL,
    high double precision NOT NULL,
    low double precision NOT NULL,
    close double precision NOT NULL,
    volume double precision,
    vwap double precision,
    trades bigint,
    replaced_at timestamptz NOT NULL DEFAULT now()
);
CREATE INDEX bar_revisions_symbol_ts_idx ON market_data.bar_revisions (symbol, ts);

-- What the provider sent three times and no bar can be: its minute is unavailable.
CREATE TABLE market_data.rejected_bars (
    symbol text COLLATE "C" NOT NULL,
    ts timestamptz NOT NULL,
    raw text NOT NULL,
    reason text NOT NULL,
    rejected_at timestamptz NOT NULL DEFAULT now(),
    PRIMARY KEY (symbol, ts)
);

-- The provider calls of the last minute: a restart must not exceed the plan.
CREATE TABLE market_data.provider_calls (
    id bigint GENERATED ALWAYS AS IDENTITY PRIMARY KEY,
    at timestamptz NOT NULL
);
CREATE INDEX provider_calls_at_idx ON market_data.provider_calls (at);
