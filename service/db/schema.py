"""The declared schema `market_data`, which the migrations must add up to (a test compares the two)."""

from sqlalchemy import (
    BigInteger,
    Boolean,
    CheckConstraint,
    Column,
    DateTime,
    Double,
    ForeignKey,
    Identity,
    Index,
    Integer,
    Interval,
    MetaData,
    Table,
    Text,
    text,
)
from sqlalchemy.dialects.postgresql import TSTZMULTIRANGE, TSTZRANGE

from service.timeframes import Timeframe

SCHEMA = "market_data"
metadata = MetaData(schema=SCHEMA)


def _symbol(*args: ForeignKey, primary_key: bool = False) -> Column[str]:
    return Column("symbol", Text(collation="C"), *args, primary_key=primary_key, nullable=False)


def _ts(name: str, *, default: str | None = None, nullable: bool = False, primary_key: bool = False) -> Column[object]:
    server_default = text(default) if default else None
    return Column(
        name, DateTime(timezone=True), server_default=server_default, nullable=nullable, primary_key=primary_key
    )


def _id() -> Column[int]:
    return Column("id", BigInteger, Identity(always=True), primary_key=True)


def _values() -> list[Column[object]]:
    required = [Column(name, Double, nullable=False) for name in ("open", "high", "low", "close")]
    return [*required, Column("volume", Double), Column("vwap", Double), Column("trades", BigInteger)]


installation = Table(
    "installation",
    metadata,
    Column("only_row", Boolean, CheckConstraint("only_row"), primary_key=True, server_default=text("true")),
    Column("engine", Text, nullable=False),
    Column("source", Text),
    _ts("created_at", default="now()"),
)

instruments = Table(
    "instruments",
    metadata,
    _symbol(primary_key=True),
    Column("ticker", Text, nullable=False, unique=True),
    Column("source", Text, nullable=False, server_default=text("'polygon'")),
    Column("asset_type", Text, nullable=False),
    Column("name", Text, nullable=False),
    Column("active", Boolean, nullable=False, server_default=text("true")),
    _ts("created_at", default="now()"),
)

candles = {
    timeframe: Table(
        timeframe.table,
        metadata,
        _symbol(primary_key=True),
        _ts("ts", primary_key=True),
        *_values(),
        Index(f"{timeframe.table}_ts_idx", text("ts DESC")),
    )
    for timeframe in Timeframe
}
"""One relation a timeframe; above 1m they are continuous aggregates on TimescaleDB, tables on plain PostgreSQL."""

sync_state = Table(
    "sync_state",
    metadata,
    _symbol(ForeignKey(instruments.c.symbol, ondelete="CASCADE"), primary_key=True),
    *(
        Column(name, TSTZMULTIRANGE, nullable=False, server_default=text("'{}'"))
        for name in ("wanted", "covered", "unavailable", "recheck", "requested")
    ),
    _ts("first_bar", nullable=True),
    _ts("last_bar", nullable=True),
    Column("status", Text, nullable=False, server_default=text("'new'")),
    _ts("last_sync_at", nullable=True),
    Column("last_sync_rows", BigInteger),
    Column("error_message", Text),
    *(_ts(name, nullable=True) for name in ("next_attempt_at", "tracked_from", "tracked_since")),
    *(_ts(name, nullable=True) for name in ("asked_to", "asked_at", "rechecked_at")),
    Column("failures", Integer, nullable=False, server_default=text("0")),
    Column("last_sync_changed", BigInteger),
    Index("sync_state_requested_idx", "symbol", postgresql_where=text("NOT isempty(requested)")),
)

changes = Table(
    "changes",
    metadata,
    _id(),
    _symbol(),
    Column("range", TSTZRANGE, nullable=False),
    _ts("at", default="now()"),
    Index("changes_symbol_id_idx", "symbol", "id"),
)

pending_refreshes = Table(
    "pending_refreshes",
    metadata,
    Column("change_id", BigInteger, ForeignKey(changes.c.id, ondelete="CASCADE"), primary_key=True),
)

bar_revisions = Table(
    "bar_revisions",
    metadata,
    _id(),
    _symbol(),
    _ts("ts"),
    *_values(),
    _ts("replaced_at", default="now()"),
    Index("bar_revisions_symbol_ts_idx", "symbol", "ts"),
)

rejected_bars = Table(
    "rejected_bars",
    metadata,
    _symbol(primary_key=True),
    _ts("ts", primary_key=True),
    Column("raw", Text, nullable=False),
    Column("reason", Text, nullable=False),
    _ts("rejected_at", default="now()"),
)

provider_calls = Table(
    "provider_calls",
    metadata,
    _id(),
    _ts("at"),
    Index("provider_calls_at_idx", "at"),
)

missed_bars = Table("missed_bars", metadata, _symbol(primary_key=True), _ts("ts", primary_key=True), _ts("missed_at"))

entitlements = Table(
    "entitlements",
    metadata,
    Column("asset_type", Text, primary_key=True),
    Column("kind", Text, nullable=False),
    Column("delay", Interval, nullable=False, server_default=text("'0'")),
    _ts("seen_at"),
)

worker = Table(
    "worker",
    metadata,
    Column("only_row", Boolean, CheckConstraint("only_row"), primary_key=True, server_default=text("true")),
    Column("host", Text, nullable=False),
    Column("pid", Integer, nullable=False),
    _ts("started_at"),
    _ts("beat_at"),
    Column("provider", Text, nullable=False, server_default=text("'ok'")),
    Column("provider_message", Text),
    _ts("provider_since", nullable=True),
    _ts("paused_until", nullable=True),
    Column("clock_ahead", Interval),
)

jobs = Table(
    "jobs",
    metadata,
    Column("name", Text, primary_key=True),
    Column("every", Text, nullable=False),
    _ts("started_at", nullable=True),
    _ts("finished_at", nullable=True),
    Column("result", Text),
    Column("message", Text),
    _ts("next_run_at", nullable=True),
)
