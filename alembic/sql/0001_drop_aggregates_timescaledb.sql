DROP MATERIALIZED VIEW market_data.candles_1d;
DROP MATERIALIZED VIEW market_data.candles_4h;
DROP MATERIALIZED VIEW market_data.candles_1h;
DROP MATERIALIZED VIEW market_data.candles_15m;
DROP MATERIALIZED VIEW market_data.candles_5m;
