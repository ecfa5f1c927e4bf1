-- Ordinary tables; the transaction that writes bars recomputes what lies above them.
CREATE INDEX candles_1m_ts_idx ON market_data.candles_1m (ts DESC);
CREATE TABLE market_data.candles_5m (LIKE market_data.candles_1m INCLUDING ALL);
CREATE TABLE market_data.candles_15m (LIKE market_data.candles_1m INCLUDING ALL);
CREATE TABLE market_data.candles_1h (LIKE market_data.candles_1m INCLUDING ALL);
CREATE TABLE market_data.candles_4h (LIKE market_data.candles_1m INCLUDING ALL);
CREATE TABLE market_data.candles_1d (LIKE market_data.candles_1m INCLUDING ALL);
