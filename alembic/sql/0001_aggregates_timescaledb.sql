-- candles_1m as a hypertable of one-week chunks, and above it a hierarchy of real-time continuous aggregates.
SELECT create_hypertable('market_data.candles_1m', by_range('ts', INTERVAL '7 days'), create_default_indexes => false);
CREATE INDEX candles_1m_ts_idx ON market_data.candles_1m (ts DESC);

CREATE MATERIALIZED VIEW market_data.candles_5m
WITH (timescaledb.continuous, timescaledb.materialized_only = false) AS
SELECT
    symbol,
    time_bucket(INTERVAL '5 minutes', ts) AS ts,
    first(open, ts) AS open,
    max(high) AS high,
    min(low) AS low,
    last(close, ts) AS close,
    sum(volume) AS volume,
    CASE WHEN count(*) FILTER (WHERE volume > 0 AND vwap IS NULL) = 0
        THEN sum(vwap * volume) / nullif(sum(volume), 0) END AS vwap,
    sum(trades)::bigint AS trades
FROM market_data.candles_1m
GROUP BY 1, 2
WITH NO DATA;

CREATE MATERIALIZED VIEW market_data.candles_15m
WITH (timescaledb.continuous, timescaledb.materialized_only = false) AS
SELECT
    symbol,
    time_bucket(INTERVAL '15 minutes', ts) AS ts,
    first(open, ts) AS open,
    max(high) AS high,
    min(low) AS low,
    last(close, ts) AS close,
    sum(volume) AS volume,
    CASE WHEN count(*) FILTER (WHERE volume > 0 AND vwap IS NULL) = 0
        THEN sum(vwap * volume) / nullif(sum(volume), 0) END AS vwap,
    sum(trades)::bigint AS trades
FROM market_data.candles_5m
GROUP BY 1, 2
WITH NO DATA;

CREATE MATERIALIZED VIEW market_data.candles_1h
WITH (timescaledb.continuous, timescaledb.materialized_only = false) AS
SELECT
    symbol,
    time_bucket(INTERVAL '1 hour', ts) AS ts,
    first(open, ts) AS open,
    max(high) AS high,
    min(low) AS low,
    last(close, ts) AS close,
    sum(volume) AS volume,
    CASE WHEN count(*) FILTER (WHERE volume > 0 AND vwap IS NULL) = 0
        THEN sum(vwap * volume) / nullif(sum(volume), 0) END AS vwap,
    sum(trades)::bigint AS trades
FROM market_data.candles_15m
GROUP BY 1, 2
WITH NO DATA;

CREATE MATERIALIZED VIEW market_data.candles_4h
WITH (timescaledb.continuous, timescaledb.materialized_only = false) AS
SELECT
    symbol,
    time_bucket(INTERVAL '4 hours', ts) AS ts,
    first(open, ts) AS open,
    max(high) AS high,
    min(low) AS low,
    last(close, ts) AS close,
    sum(volume) AS volume,
    CASE WHEN count(*) FILTER (WHERE volume > 0 AND vwap IS NULL) = 0
        THEN sum(vwap * volume) / nullif(sum(volume), 0) END AS vwap,
    sum(trades)::bigint AS trades
FROM market_data.candles_1h
GROUP BY 1, 2
WITH NO DATA;

CREATE MATERIALIZED VIEW market_data.candles_1d
WITH (timescaledb.continuous, timescaledb.materialized_only = false) AS
SELECT
    symbol,
    time_bucket(INTERVAL '1 day', ts) AS ts,
    first(open, ts) AS open,
    max(high) AS high,
    min(low) AS low,
    last(close, ts) AS close,
    sum(volume) AS volume,
    CASE WHEN count(*) FILTER (WHERE volume > 0 AND vwap IS NULL) = 0
        THEN sum(vwap * volume) / nullif(sum(volume), 0) END AS vwap,
    sum(trades)::bigint AS trades
FROM market_data.candles_4h
GROUP BY 1, 2
WITH NO DATA;
