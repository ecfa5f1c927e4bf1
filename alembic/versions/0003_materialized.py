"""Beside each aggregate what of it is materialised, and up to where: a range below is planned in half the time

Revision ID: 0003
"""

from alembic import context, op

revision = "0003"
down_revision = "0002"

AGGREGATES = ("candles_5m", "candles_15m", "candles_1h", "candles_4h", "candles_1d")
CONTINUOUS = """
    SELECT format('%%I.%%I', h.schema_name, h.table_name), c.mat_hypertable_id
    FROM _timescaledb_catalog.continuous_agg AS c
    JOIN _timescaledb_catalog.hypertable AS h ON h.id = c.mat_hypertable_id
    WHERE c.user_view_schema = 'market_data' AND c.user_view_name = %(name)s
"""


def upgrade() -> None:
    op.execute("SET LOCAL lock_timeout = '10s'")
    engine = context.config.attributes["engine"]
    for name in AGGREGATES:
        relation, watermark = f"market_data.{name}", "'infinity'::timestamptz"
        if engine == "timescaledb":
            relation, number = op.get_bind().exec_driver_sql(CONTINUOUS, {"name": name}).one()
            mark = f"_timescaledb_functions.cagg_watermark({number})"
            watermark = f"_timescaledb_functions.to_timestamp(greatest({mark}, 0))"
        op.execute(
            f"CREATE VIEW market_data.{name}_materialized AS"  # noqa: S608 - our names, and the engine's own
            f" SELECT symbol, ts, open, high, low, close, volume, vwap, trades FROM {relation}"
        )
        op.execute(
            f"CREATE FUNCTION market_data.{name}_watermark() RETURNS timestamptz"
            f" LANGUAGE sql STABLE PARALLEL SAFE AS $$ SELECT {watermark} $$"
        )


def downgrade() -> None:
    op.execute("SET LOCAL lock_timeout = '10s'")
    for name in AGGREGATES:
        op.execute(f"DROP VIEW market_data.{name}_materialized")
        op.execute(f"DROP FUNCTION market_data.{name}_watermark()")
