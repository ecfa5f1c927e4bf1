"""What storing an answer leaves behind: bars, what changed, and the ledger; all of it or nothing."""

import asyncio
from collections.abc import AsyncIterator
from datetime import datetime, timedelta
from typing import Any, LiteralString

import msgspec
import numpy as np
import psycopg
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from psycopg import AsyncConnection, sql
from psycopg.types.multirange import Multirange
from psycopg.types.range import Range as PgRange

from service import ledger, merge
from service.bars import Bars, RejectedBar, to_ms
from service.coverage import MINUTE, Ledger, Piece
from service.db.connect import Database
from service.db.engines import Engine
from service.db.preflight import checked
from service.errors import SourceMismatch, UnknownSymbol
from service.ranges import Range, Ranges
from service.store import Answered, Stored, store
from tests.integration.marketdata import SETTLE, SOURCE, at, invent, minutes, put, wrong_candles

NOW = at("2024-03-05 12:07:30")
TEN, ELEVEN, TWELVE = (at(f"2024-03-05 {hour}:00") for hour in (10, 11, 12))
SETTLED = at("2024-03-05 11:52")
THIS_MINUTE = at("2024-03-05 12:07")


@pytest.fixture
async def db(database: str, engine: str) -> AsyncIterator[Database]:
    async with checked(database, engine) as opened:
        yield opened


@pytest.fixture
async def conn(db: Database) -> AsyncIterator[AsyncConnection[Any]]:
    async with db.connection() as one:
        yield one


async def rows(conn: AsyncConnection[Any], query: LiteralString, *arguments: object) -> list[tuple[Any, ...]]:
    return await (await conn.execute(query, arguments, binary=True)).fetchall()


async def known(conn: AsyncConnection[Any], symbol: str = "EURUSD") -> Ledger:
    (found,) = await ledger.ledgers(conn, [symbol])
    return found


async def changes(conn: AsyncConnection[Any]) -> list[tuple[str, datetime, datetime]]:
    return await rows(conn, "SELECT symbol, lower(range), upper(range) FROM market_data.changes ORDER BY id")


def with_close(bars: Bars, place: int, close: float) -> Bars:
    """The same bars, one of them closing otherwise."""
    closes = bars.close.copy()
    closes[place] = close
    return Bars(**{name: getattr(bars, name) for name in Bars.__struct_fields__} | {"close": closes})


def refused(at_: datetime, reason: str = "high below low") -> RejectedBar:
    return RejectedBar(ts=to_ms(at_), raw='{"h":1,"l":2}', reason=reason)


# Bars


async def test_new_bars_are_stored_as_they_came(db: Database, conn: AsyncConnection[Any]) -> None:
    bars = invent(minutes(TEN, ELEVEN))
    stored = await put(conn, db.engine, "EURUSD", TEN, ELEVEN, now=NOW, bars=bars)
    assert stored == Stored(new=60)
    found = await rows(conn, "SELECT * FROM market_data.candles_1m ORDER BY ts")
    names = ("open", "high", "low", "close", "volume", "vwap", "trades")
    columns = [getattr(bars, name).tolist() for name in names]
    assert found == [
        ("EURUSD", minute, *values)
        for minute, values in zip(minutes(TEN, ELEVEN), zip(*columns, strict=True), strict=True)
    ]
    assert await changes(conn) == [("EURUSD", TEN, ELEVEN)]


async def test_bars_of_a_range_that_is_known_to_be_new_go_straight_into_the_table(
    db: Database, conn: AsyncConnection[Any]
) -> None:
    """Twice as fast as the way by a staging table, which the second answer takes."""
    for staged, start in ((None, TEN), (None, ELEVEN), ("staged_bars", TEN)):
        await put(conn, db.engine, "EURUSD", start, start + timedelta(hours=1), now=NOW)
        assert await rows(conn, "SELECT to_regclass('pg_temp.staged_bars')::text") == [(staged,)]


async def test_the_same_answer_again_changes_nothing(db: Database, conn: AsyncConnection[Any]) -> None:
    """No row is written, and no change told: caches and aggregates stay as they are."""
    physical: LiteralString = "SELECT ts, xmin::text, ctid::text FROM market_data.candles_1m ORDER BY ts"
    await put(conn, db.engine, "EURUSD", TEN, TWELVE, now=NOW)
    before = await rows(conn, physical)
    told = await changes(conn)
    stored = await put(conn, db.engine, "EURUSD", TEN, TWELVE, now=NOW)
    assert stored == Stored(unchanged=120)
    assert await rows(conn, physical) == before
    assert await changes(conn) == told
    assert await rows(conn, "SELECT count(*) FROM market_data.bar_revisions") == [(0,)]
    assert (await rows(conn, "SELECT last_sync_rows FROM market_data.sync_state WHERE symbol = 'EURUSD'")) == [(0,)]


async def test_new_changed_and_unchanged_bars_of_one_answer_are_told_apart(
    db: Database, conn: AsyncConnection[Any]
) -> None:
    """The change that is told reaches from the first bar that differs to the last one."""
    await put(conn, db.engine, "EURUSD", TEN, ELEVEN, now=NOW, bars=invent(minutes(TEN, TEN + 50 * MINUTE)))
    bars = with_close(with_close(invent(minutes(TEN, ELEVEN)), 20, 1.5), 30, 1.6)
    stored = await put(conn, db.engine, "EURUSD", TEN, ELEVEN, now=NOW, bars=bars)
    assert stored == Stored(new=10, changed=2, unchanged=48)
    assert (await changes(conn))[1:] == [("EURUSD", TEN + 20 * MINUTE, ELEVEN)]
    assert (await rows(conn, "SELECT count(*), max(close) FROM market_data.candles_1m")) == [(60, 1.6)]
    await db.engine.refresh(conn, {}, NOW)
    assert await wrong_candles(conn) == []


async def test_only_a_settled_bar_that_is_replaced_is_kept_as_a_revision(
    db: Database, conn: AsyncConnection[Any]
) -> None:
    """What was not covered yet was never promised to anyone."""
    bars = invent(minutes(TEN, THIS_MINUTE))
    await put(conn, db.engine, "EURUSD", TEN, THIS_MINUTE, now=NOW, bars=bars)
    settled = (SETTLED - TEN) // MINUTE - 1
    corrected = with_close(with_close(bars, settled, 1.5), settled + 1, 1.6)
    stored = await put(conn, db.engine, "EURUSD", TEN, THIS_MINUTE, now=NOW, bars=corrected)
    assert stored == Stored(changed=2, unchanged=len(bars) - 2)
    old = [getattr(bars, name)[settled].item() for name in ("open", "high", "low", "close", "volume", "vwap", "trades")]
    assert await rows(
        conn, "SELECT symbol, ts, open, high, low, close, volume, vwap, trades FROM market_data.bar_revisions"
    ) == [("EURUSD", SETTLED - MINUTE, *old)]


async def test_a_bar_of_another_symbol_is_never_taken_for_ours(db: Database, conn: AsyncConnection[Any]) -> None:
    await put(conn, db.engine, "BTCUSD", TEN, ELEVEN, now=NOW, bars=invent(minutes(TEN, ELEVEN), 7))
    assert await put(conn, db.engine, "EURUSD", TEN, ELEVEN, now=NOW) == Stored(new=60)
    assert await put(conn, db.engine, "EURUSD", TEN, ELEVEN, now=NOW) == Stored(unchanged=60)
    assert await rows(conn, "SELECT count(*) FROM market_data.candles_1m WHERE symbol = 'BTCUSD'") == [(60,)]
    assert await rows(conn, "SELECT count(*) FROM market_data.bar_revisions") == [(0,)]


mixtures = st.lists(st.tuples(st.booleans(), st.booleans(), st.booleans()), min_size=1, max_size=20)


@settings(max_examples=8, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(first=mixtures, second=mixtures)
async def test_what_a_source_does_not_have_is_null_whatever_the_mixture(
    database: str, engine: str, first: list[tuple[bool, bool, bool]], second: list[tuple[bool, bool, bool]]
) -> None:
    """Volume, average and count of trades each by itself; straight or by way of the staging table."""

    def mixed(which: list[tuple[bool, bool, bool]]) -> Bars:
        whole = invent(minutes(TEN, TEN + len(which) * MINUTE))
        none = np.array(which, np.bool_)
        absent = {
            "volume": np.where(none[:, 0], np.nan, whole.volume),
            "vwap": np.where(none[:, 1], np.nan, whole.vwap),
            "trades": np.where(none[:, 2], -1, whole.trades),
        }
        return Bars(**{name: getattr(whole, name) for name in Bars.__struct_fields__} | absent)

    async with checked(database, engine) as db, db.connection() as conn, conn.transaction(force_rollback=True):
        for which in (first, second):
            await put(conn, db.engine, "SPX500", TEN, ELEVEN, now=NOW, bars=mixed(which))
        found = await rows(
            conn, "SELECT volume IS NULL, vwap IS NULL, trades IS NULL FROM market_data.candles_1m ORDER BY ts"
        )
        assert found == second + first[len(second) :]


async def test_a_bar_that_the_settling_answer_does_not_have_any_more_is_withdrawn(
    db: Database, conn: AsyncConnection[Any]
) -> None:
    """It was served before it was settled; it is kept as a revision, and no candle shows it."""
    young = SETTLED + MINUTE
    await put(conn, db.engine, "EURUSD", TEN, THIS_MINUTE, now=NOW)
    await db.engine.refresh(conn, {}, NOW)
    later = NOW + timedelta(hours=1)
    bars = invent([minute for minute in minutes(ELEVEN, TWELVE + 30 * MINUTE) if minute not in (ELEVEN, young)])
    stored = await put(conn, db.engine, "EURUSD", ELEVEN, TWELVE + 30 * MINUTE, now=later, bars=bars)
    assert stored.new == 23
    assert await rows(conn, "SELECT ts FROM market_data.bar_revisions") == [(young,)]
    found = await rows(conn, "SELECT ts FROM market_data.candles_1m WHERE ts >= %s ORDER BY ts", SETTLED)
    assert [ts for (ts,) in found] == [one for one in minutes(SETTLED, TWELVE + 30 * MINUTE) if one != young]
    assert (await changes(conn))[-1] == ("EURUSD", young, TWELVE + 30 * MINUTE)
    await db.engine.refresh(conn, {}, later)
    assert await wrong_candles(conn) == []


async def test_an_answer_takes_away_nothing_before_its_first_bar_and_after_its_last(
    db: Database, conn: AsyncConnection[Any]
) -> None:
    """A cut answer is no proof that bars are gone; nor is one about minutes that are settled already."""
    await put(conn, db.engine, "EURUSD", TEN, THIS_MINUTE, now=NOW)
    later = NOW + timedelta(hours=1)
    for bars in (invent([]), invent([SETTLED + 5 * MINUTE]), invent([ELEVEN, SETTLED - MINUTE])):
        await put(conn, db.engine, "EURUSD", TEN, THIS_MINUTE, now=later, bars=bars)
    assert await rows(conn, "SELECT count(*) FROM market_data.candles_1m") == [(127,)]
    assert await rows(conn, "SELECT count(*) FROM market_data.bar_revisions") == [(0,)]


# Bars that cannot be


async def test_what_no_bar_can_be_is_kept_aside_and_its_minute_is_unavailable(
    db: Database, conn: AsyncConnection[Any]
) -> None:
    """Neither covered nor asked for again."""
    bad = TEN + 7 * MINUTE
    bars = invent([minute for minute in minutes(TEN, ELEVEN) if minute != bad])
    stored = await put(conn, db.engine, "EURUSD", TEN, ELEVEN, now=NOW, bars=bars, rejected=[refused(bad)])
    assert stored == Stored(new=59, rejected=1)
    found = await known(conn)
    assert found.unavailable == Ranges.of(bad, bad + MINUTE)
    assert found.covered == Ranges.of(TEN, ELEVEN) - found.unavailable
    assert found.work(Ranges.of(TEN, TWELVE)) == Ranges()
    assert await rows(conn, "SELECT symbol, ts, raw, reason FROM market_data.rejected_bars") == [
        ("EURUSD", bad, '{"h":1,"l":2}', "high below low")
    ]


async def test_a_minute_rejected_before_it_settled_is_asked_for_again(db: Database, conn: AsyncConnection[Any]) -> None:
    young = SETTLED + MINUTE
    await put(conn, db.engine, "EURUSD", TEN, THIS_MINUTE, now=NOW, rejected=[refused(young)])
    found = await known(conn)
    assert found.unavailable == Ranges()
    assert young in found.work(Ranges.of(TEN, THIS_MINUTE))


async def test_a_rejected_bar_that_comes_right_later_is_there(db: Database, conn: AsyncConnection[Any]) -> None:
    bad = TEN + 7 * MINUTE
    bars = invent([minute for minute in minutes(TEN, ELEVEN) if minute != bad])
    for reason in ("high below low", "no close"):
        await put(conn, db.engine, "EURUSD", TEN, ELEVEN, now=NOW, bars=bars, rejected=[refused(bad, reason)])
    assert await rows(conn, "SELECT reason FROM market_data.rejected_bars") == [("no close",)]
    assert await put(conn, db.engine, "EURUSD", TEN, ELEVEN, now=NOW) == Stored(new=1, unchanged=59)
    found = await known(conn)
    assert (found.covered, found.unavailable) == (Ranges.of(TEN, ELEVEN), Ranges())


# Coverage


@pytest.mark.parametrize("engine", ["plain"], indirect=True)
@pytest.mark.parametrize(
    ("piece", "last_bar", "covered"),
    [
        ((TEN, THIS_MINUTE), THIS_MINUTE - MINUTE, (TEN, SETTLED)),
        ((TEN, ELEVEN), ELEVEN - MINUTE, (TEN, ELEVEN)),
        ((TEN, THIS_MINUTE), ELEVEN, (TEN, ELEVEN + MINUTE)),
        ((TEN, THIS_MINUTE), None, None),
        ((at("2024-02-01 00:00"), at("2024-02-02 00:00")), None, (at("2024-02-01 00:00"), at("2024-02-02 00:00"))),
        ((at("2024-03-03 22:00"), THIS_MINUTE), None, (at("2024-03-03 22:00"), at("2024-03-04 00:07"))),
        ((SETTLED, THIS_MINUTE), THIS_MINUTE - MINUTE, None),
    ],
    ids=[
        "the youngest minutes are not settled",
        "a past range is settled whole",
        "an empty tail may still fill",
        "an empty answer about today says nothing",
        "an empty past range is known to be empty",
        "an empty tail counts after 36 hours",
        "nothing is settled yet",
    ],
)
async def test_coverage_reaches_up_to_the_settled_edge(
    db: Database,
    conn: AsyncConnection[Any],
    piece: tuple[datetime, datetime],
    last_bar: datetime | None,
    covered: tuple[datetime, datetime] | None,
) -> None:
    bars = invent([] if last_bar is None else {*minutes(piece[0], last_bar, 3), last_bar})
    await put(conn, db.engine, "EURUSD", *piece, now=NOW, bars=bars)
    assert (await known(conn)).covered == (Ranges() if covered is None else Ranges([covered]))


async def test_an_empty_range_is_settled_once_a_later_bar_exists(db: Database, conn: AsyncConnection[Any]) -> None:
    await put(conn, db.engine, "EURUSD", ELEVEN, THIS_MINUTE, now=NOW)
    await put(conn, db.engine, "EURUSD", TEN, ELEVEN, now=NOW, bars=Bars.empty())
    found = await known(conn)
    assert found.covered == Ranges.of(TEN, SETTLED)
    assert (found.first_bar, found.last_bar) == (ELEVEN, THIS_MINUTE - MINUTE)


async def test_coverage_is_judged_at_the_time_of_the_question(db: Database, conn: AsyncConnection[Any]) -> None:
    """An answer that waited an hour to be stored says nothing about that hour."""
    await put(conn, db.engine, "EURUSD", TEN, THIS_MINUTE, now=TEN + 30 * MINUTE)
    assert (await known(conn)).covered == Ranges.of(TEN, TEN + 15 * MINUTE)


async def test_a_success_clears_what_the_last_failure_left(db: Database, conn: AsyncConnection[Any]) -> None:
    told: LiteralString = (
        "SELECT status, error_message, next_attempt_at, last_sync_rows, last_sync_at IS NOT NULL"
        " FROM market_data.sync_state WHERE symbol = 'EURUSD'"
    )
    hour = timedelta(hours=1)
    assert await ledger.note_failure(conn, "EURUSD", "no such ticker", now=NOW - hour, rest=hour) == 1
    assert await rows(conn, told) == [("failed", "no such ticker", NOW, None, False)]
    await put(conn, db.engine, "EURUSD", TEN, ELEVEN, now=NOW)
    assert await rows(conn, told) == [("ok", None, None, 60, True)]


async def test_pieces_of_one_symbol_stored_at_once_are_all_in_the_ledger(db: Database) -> None:
    """Two writers: neither forgets what the other covered."""
    starts = [TEN - timedelta(hours=hour) for hour in range(8)]

    async def one(start: datetime) -> None:
        async with db.connection() as conn:
            await put(conn, db.engine, "EURUSD", start, start + timedelta(hours=1), now=NOW)

    await asyncio.gather(*map(one, starts))
    async with db.connection() as conn:
        found = await known(conn)
        assert found.covered == found.wanted == Ranges.of(starts[-1], ELEVEN)
        assert (found.first_bar, found.last_bar) == (starts[-1], ELEVEN - MINUTE)
        await db.engine.refresh(conn, {}, NOW)
        assert await wrong_candles(conn) == []


# All or nothing


class Failing:
    """An engine that fails after the bars were written."""

    def __init__(self, engine: Engine, step: str) -> None:
        self._engine = engine
        self._step = step

    def __getattr__(self, name: str) -> Any:  # noqa: ANN401 - whatever the engine has
        if name == self._step:
            raise RuntimeError("the disk is full")
        return getattr(self._engine, name)


@pytest.mark.parametrize("step", ["derive", "note"])
async def test_a_failure_after_the_bars_were_written_leaves_nothing_of_the_answer(
    db: Database, conn: AsyncConnection[Any], step: str
) -> None:
    """Neither bars nor changes, rejected bars, revisions, coverage or source; the same answer fits later."""
    failing: Any = Failing(db.engine, step)
    await ledger.want(conn, ["EURUSD"], Range(TEN, ELEVEN))
    before = await known(conn)
    with pytest.raises(RuntimeError, match="the disk is full"):
        await put(conn, failing, "EURUSD", TEN, ELEVEN, now=NOW, rejected=[refused(TEN)])
    assert await known(conn) == before
    for table in ("candles_1m", "candles_5m", "candles_1d", "changes", "pending_refreshes", "rejected_bars"):
        query = sql.SQL("SELECT count(*) FROM {}").format(sql.Identifier("market_data", table))
        assert await (await conn.execute(query)).fetchone() == (0,), table
    assert await ledger.source(conn) is None
    assert await put(conn, db.engine, "EURUSD", TEN, ELEVEN, now=NOW) == Stored(new=60)

    bars = with_close(invent(minutes(TEN, ELEVEN)), 30, 1.5)
    with pytest.raises(RuntimeError, match="the disk is full"):
        await put(conn, failing, "EURUSD", TEN, ELEVEN, now=NOW, bars=bars)
    assert await rows(conn, "SELECT count(*) FROM market_data.bar_revisions") == [(0,)]
    assert await put(conn, db.engine, "EURUSD", TEN, ELEVEN, now=NOW, bars=bars) == Stored(changed=1, unchanged=59)


async def test_bars_that_the_table_refuses_are_an_error_and_not_a_part_of_an_answer(
    db: Database, conn: AsyncConnection[Any]
) -> None:
    """Two bars of one minute: no way in takes them, and nothing of them stays."""
    bars = invent(minutes(TEN, ELEVEN))
    twice = bars.take(np.array([0, 1, 1, 2]))
    with pytest.raises(psycopg.errors.CardinalityViolation):
        await put(conn, db.engine, "EURUSD", TEN, ELEVEN, now=NOW, bars=twice)
    assert await rows(conn, "SELECT count(*) FROM market_data.candles_1m") == [(0,)]
    assert (await known(conn)).covered == Ranges()


async def test_a_symbol_that_was_removed_meanwhile_stores_nothing(db: Database, conn: AsyncConnection[Any]) -> None:
    assert await put(conn, db.engine, "NOSUCH", TEN, ELEVEN, now=NOW) == Stored()
    assert await ledger.source(conn) is None
    assert await rows(conn, "SELECT count(*) FROM market_data.candles_1m") == [(0,)]


async def test_bars_of_two_sources_never_meet(db: Database, conn: AsyncConnection[Any]) -> None:
    """The first answer names the source of a database; one from elsewhere stores nothing."""
    await put(conn, db.engine, "EURUSD", TEN, ELEVEN, now=NOW, source="replay:synthetic")
    with pytest.raises(SourceMismatch, match=r"holds bars of 'replay:synthetic' .* answers as 'polygon'"):
        await put(conn, db.engine, "BTCUSD", TEN, ELEVEN, now=NOW, source="polygon")
    assert await ledger.source(conn) == "replay:synthetic"
    assert await rows(conn, "SELECT DISTINCT symbol FROM market_data.candles_1m") == [("EURUSD",)]
    assert (await known(conn, "BTCUSD")).covered == Ranges()


# Changes


async def test_ids_of_changes_follow_the_order_of_the_commits(db: Database) -> None:
    """A reader that has seen an id has seen all smaller ones: no change comes in behind it."""
    async with db.connection() as first, db.connection() as second, db.connection() as reader:
        async with first.transaction():
            await put(first, db.engine, "EURUSD", TEN, ELEVEN, now=NOW)
            later = asyncio.create_task(put(second, db.engine, "BTCUSD", TEN, ELEVEN, now=NOW, source="replay:csv"))
            await asyncio.sleep(0.3)
            assert not later.done()
            assert await changes(reader) == []
        await later
        assert [symbol for symbol, _, _ in await changes(reader)] == ["EURUSD", "BTCUSD"]


# The ledger's other statements


async def test_asking_for_a_range_widens_what_is_wanted_and_asking_again_changes_nothing(
    conn: AsyncConnection[Any],
) -> None:
    written: LiteralString = "SELECT symbol, xmin::text FROM market_data.sync_state ORDER BY symbol"
    await ledger.want(conn, ["EURUSD", "BTCUSD"], Range(TEN, ELEVEN))
    await ledger.want(conn, ["EURUSD"], Range(TEN, TWELVE))
    before = await rows(conn, written)
    await ledger.want(conn, ["EURUSD", "BTCUSD"], Range(TEN, ELEVEN))
    assert await rows(conn, written) == before
    assert (await known(conn, "EURUSD")).wanted == Ranges.of(TEN, TWELVE)
    assert (await known(conn, "BTCUSD")).wanted == Ranges.of(TEN, ELEVEN)
    assert (await known(conn, "ETHUSD")).wanted == Ranges()


async def test_ledgers_come_in_the_order_asked_for_or_all_active_ones(conn: AsyncConnection[Any]) -> None:
    await conn.execute("UPDATE market_data.instruments SET active = false WHERE symbol = 'BTCUSD'")
    asked = await ledger.ledgers(conn, ["SPX500", "BTCUSD", "EURUSD"])
    assert [(one.symbol, one.ticker, one.asset_type) for one in asked] == [
        ("SPX500", "I:SPX", "index"),
        ("BTCUSD", "X:BTCUSD", "crypto"),
        ("EURUSD", "C:EURUSD", "forex"),
    ]
    active = [one.symbol for one in await ledger.ledgers(conn)]
    assert len(active) == 44
    assert "BTCUSD" not in active
    assert active == sorted(active)


async def test_symbols_are_known_in_any_case_and_a_wrong_one_is_told_with_the_nearest(
    conn: AsyncConnection[Any],
) -> None:
    assert await ledger.known(conn, ["btcusd", "EURUSD", "BTCUSD"]) == ["BTCUSD", "EURUSD"]
    with pytest.raises(UnknownSymbol) as caught:
        await ledger.known(conn, ["EURUSD", "eurosd"])
    assert caught.value.nearest[0] == "EURUSD"
    with pytest.raises(UnknownSymbol, match=r"^unknown symbol 'ZZZZZ9'$"):
        await ledger.known(conn, ["zzzzz9"])


async def test_calls_of_the_last_minutes_are_remembered_and_older_ones_forgotten(conn: AsyncConnection[Any]) -> None:
    for minute in (0, 1, 5):
        await ledger.record_call(conn, NOW + minute * MINUTE, keep=2 * MINUTE)
    assert await ledger.recent_calls(conn, NOW + 3 * MINUTE) == [NOW + 5 * MINUTE]
    assert await rows(conn, "SELECT at FROM market_data.provider_calls") == [(NOW + 5 * MINUTE,)]


async def test_a_bar_that_appeared_meanwhile_is_merged_and_not_an_error(
    db: Database, conn: AsyncConnection[Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    """As when the users' own tools write into the table."""
    await put(conn, db.engine, "EURUSD", TEN, TEN + MINUTE, now=NOW)

    async def untouched(*_: object) -> bool:
        return True

    monkeypatch.setattr(merge, "_untouched", untouched)
    assert await put(conn, db.engine, "EURUSD", TEN, ELEVEN, now=NOW) == Stored(new=59, unchanged=1)


# Answers of several symbols at once, and of other kinds


def answer(symbol: str, bars: Bars, start: datetime = TEN, end: datetime = THIS_MINUTE, **other: Any) -> Answered:  # noqa: ANN401
    piece = Piece(symbol=symbol, ticker="", range=Range(start, end))
    usual = Answered(piece=piece, bars=bars, rejected=[], source=SOURCE, asked_at=NOW, kind="edge")
    return msgspec.structs.replace(usual, **other)


async def test_answers_of_several_symbols_are_told_apart(db: Database, conn: AsyncConnection[Any]) -> None:
    """Counts come in the order given; bars, revisions, changes, rejected bars and ledgers are each symbol's own."""
    bars = {symbol: invent(minutes(TEN, THIS_MINUTE), seed) for seed, symbol in enumerate(("BTCUSD", "EURUSD"))}
    whole = [answer(symbol, of) for symbol, of in bars.items()]
    assert await store(conn, db.engine, whole, settle=SETTLE) == [Stored(new=127)] * 2
    old = bars["BTCUSD"].close[5].item()
    again = [
        answer("XAUUSD", invent([]), rejected=[refused(TEN)]),
        answer("EURUSD", bars["EURUSD"]),
        answer("BTCUSD", with_close(bars["BTCUSD"], 5, 1.5)),
        answer("GBPUSD", invent(minutes(ELEVEN, TWELVE)), rejected=[refused(TEN + MINUTE)]),
    ]
    assert await store(conn, db.engine, again, settle=SETTLE) == [
        Stored(rejected=1),
        Stored(unchanged=127),
        Stored(changed=1, unchanged=126),
        Stored(new=60, rejected=1),
    ]
    assert await rows(conn, "SELECT symbol, ts, close FROM market_data.bar_revisions") == [
        ("BTCUSD", TEN + 5 * MINUTE, old)
    ]
    five = TEN + 5 * MINUTE
    assert sorted((await changes(conn))[2:]) == [("BTCUSD", five, five + MINUTE), ("GBPUSD", ELEVEN, TWELVE)]
    assert await rows(conn, "SELECT symbol, ts FROM market_data.rejected_bars ORDER BY symbol") == [
        ("GBPUSD", TEN + MINUTE),
        ("XAUUSD", TEN),
    ]
    assert [(await known(conn, symbol)).covered for symbol in ("EURUSD", "XAUUSD")] == [
        Ranges.of(TEN, SETTLED),
        Ranges(),
    ]
    bad = Ranges.of(TEN + MINUTE, TEN + 2 * MINUTE)
    assert (await known(conn, "GBPUSD")).covered == Ranges.of(TEN, SETTLED) - bad
    await db.engine.refresh(conn, {}, NOW)
    assert await wrong_candles(conn) == []


async def test_a_removed_symbol_takes_none_of_the_others_with_it(db: Database, conn: AsyncConnection[Any]) -> None:
    await conn.execute("DELETE FROM market_data.instruments WHERE symbol = 'ETHUSD'")
    bars = invent(minutes(TEN, THIS_MINUTE))
    batch = [answer(symbol, bars) for symbol in ("BTCUSD", "ETHUSD", "EURUSD")]
    assert await store(conn, db.engine, batch, settle=SETTLE) == [Stored(new=127), Stored(), Stored(new=127)]
    assert await rows(conn, "SELECT DISTINCT symbol FROM market_data.candles_1m ORDER BY symbol") == [
        ("BTCUSD",),
        ("EURUSD",),
    ]
    alone = [answer("ETHUSD", bars)]
    assert await store(conn, db.engine, alone, settle=SETTLE) == [Stored()]


async def test_an_answer_of_another_source_keeps_the_whole_batch_out(db: Database, conn: AsyncConnection[Any]) -> None:
    bars = invent(minutes(TEN, THIS_MINUTE))
    with pytest.raises(SourceMismatch):
        await store(conn, db.engine, [answer("BTCUSD", bars), answer("EURUSD", bars, source="polygon")], settle=SETTLE)
    assert await rows(conn, "SELECT count(*) FROM market_data.candles_1m") == [(0,)]
    assert await ledger.source(conn) is None


async def test_an_edge_is_remembered_as_the_last_look_at_the_present(db: Database, conn: AsyncConnection[Any]) -> None:
    """What a followed symbol is asked for is wanted of it, from where it is followed; older answers change none of it.

    Nobody can have asked for what was still to come: a clock that ran ahead is not believed.
    """
    look: LiteralString = "SELECT asked_to, asked_at, wanted FROM market_data.sync_state WHERE symbol = %s"
    await conn.execute("UPDATE market_data.sync_state SET tracked_from = %s WHERE symbol = 'EURUSD'", (TEN,))
    bars = invent(minutes(ELEVEN, THIS_MINUTE))
    tomorrow = THIS_MINUTE + timedelta(days=1)
    edges = [answer("EURUSD", bars, ELEVEN, tomorrow), answer("BTCUSD", bars, ELEVEN)]
    await store(conn, db.engine, edges, settle=SETTLE)
    wanted = tstzmultirange(TEN, THIS_MINUTE)
    assert await rows(conn, look, "EURUSD") == [(THIS_MINUTE, NOW, wanted)]
    assert await rows(conn, look, "BTCUSD") == [(THIS_MINUTE, NOW, Multirange())]
    earlier = NOW - timedelta(hours=1)
    for kind in ("edge", "backfill", "recheck"):
        await store(
            conn, db.engine, [answer("EURUSD", bars, ELEVEN, TWELVE, kind=kind, asked_at=earlier)], settle=SETTLE
        )
        assert await rows(conn, look, "EURUSD") == [(THIS_MINUTE, NOW, wanted)]


async def test_a_recheck_notes_what_it_misses_and_strikes_itself_off(db: Database, conn: AsyncConnection[Any]) -> None:
    """A bar goes when a second one, almost a day later, misses it too; coverage stays, whatever comes."""
    await put(conn, db.engine, "EURUSD", TEN, ELEVEN, now=NOW)
    gone = TEN + 30 * MINUTE
    bars = invent([minute for minute in minutes(TEN, ELEVEN) if minute != gone])
    for hours, left in ((0, 60), (19, 60), (20, 59)):
        await conn.execute(
            "UPDATE market_data.sync_state SET recheck = tstzmultirange(tstzrange(%s, %s)) WHERE symbol = 'EURUSD'",
            (TEN, ELEVEN),
        )
        now = NOW + timedelta(hours=hours)
        one = answer("EURUSD", bars, TEN, ELEVEN, kind="recheck", asked_at=now, rejected=[refused(TEN + MINUTE)])
        await store(conn, db.engine, [one], settle=SETTLE)
        assert await rows(conn, "SELECT count(*) FROM market_data.candles_1m") == [(left,)]
        state = await rows(conn, "SELECT recheck, rechecked_at FROM market_data.sync_state WHERE symbol = 'EURUSD'")
        assert state == [(Multirange(), now)]
        assert (await known(conn)).covered == Ranges.of(TEN, ELEVEN)
        assert (await known(conn)).unavailable == Ranges()
    assert await rows(conn, "SELECT ts FROM market_data.bar_revisions") == [(gone,)]
    await db.engine.refresh(conn, {}, NOW)
    assert await wrong_candles(conn) == []


def tstzmultirange(start: datetime, end: datetime) -> Multirange[datetime]:
    return Multirange([PgRange(start, end, "[)")])
