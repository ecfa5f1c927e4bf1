DROP TABLE market_data.candles_1d;
DROP TABLE market_data.candles_4h;
DROP TABLE market_data.candles_1h;
DROP TABLE market_data.candles_15m;
DROP TABLE market_data.candles_5m;
