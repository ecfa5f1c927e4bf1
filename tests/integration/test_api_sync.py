"""The operator's calls over HTTP: instruments, status, health, what runs by itself, and fetching now."""

import asyncio
import threading
from collections.abc import Awaitable, Callable, Iterator
from contextlib import contextmanager
from datetime import timedelta
from typing import Any, LiteralString

import msgspec
import psycopg
import pytest
from litestar.testing import TestClient
from psycopg import AsyncConnection

from service import heartbeat, ledger, status, tracking
from service.api import sync
from service.api.app import create_app
from service.api.scheduler import SchedulerAnswer
from service.api.status import DetailAnswer, StatusAnswer, SyncHealth
from service.api.symbols import InstrumentsAnswer
from service.api.sync import SyncAllAnswer, SyncAnswer
from service.bars import to_ms
from service.coverage import MINUTE
from service.db.connect import Database
from service.db.preflight import checked
from service.entitlements import Entitlement
from service.ranges import Range
from service.replay import ReplayConfig, running
from service.settings import load
from service.timeframes import EPOCH, Timeframe
from tests.integration.backfilling import KEY, environment, started
from tests.integration.marketdata import LATELY, NOW, REJECTED, SETTLED, at, filled, invent, minutes, only_active, put
from tests.integration.test_api import app_of, block, chosen, problem
from tests.integration.working import wait_until

EDGE = at("2024-03-05 12:07")
SYMBOLS = "/api/sync/symbols"
SYNC = "/api/sync/sync"


@pytest.fixture(scope="module", params=["plain", pytest.param("timescaledb", marks=pytest.mark.timescaledb)])
def readable(request: pytest.FixtureRequest) -> Iterator[Database]:
    """The filled database, which no test here changes."""
    with filled(request.getfixturevalue(f"{request.param}_server")) as db:
        yield db


@pytest.fixture(scope="module")
def client(readable: Database) -> Iterator[TestClient[Any]]:
    with TestClient(app_of(readable), raise_server_exceptions=False) as one:
        yield one


@pytest.fixture
def db(database: str, engine: str) -> Database:
    """A database that the test may change; EURUSD alone is active, and has nothing."""
    db = checked(database, engine)
    act(db, lambda conn: only_active(conn, "EURUSD"))
    return db


@pytest.fixture
def api(db: Database) -> Iterator[TestClient[Any]]:
    with TestClient(app_of(db), raise_server_exceptions=False) as one:
        yield one


def act(db: Database, *steps: Callable[[AsyncConnection[Any]], Awaitable[object]]) -> None:
    """Do something in the database as the worker would."""

    async def go() -> None:
        async with checked(db.url, db.engine.name) as other, other.connection() as conn:
            for step in steps:
                await step(conn)

    asyncio.run(go())


def rows(db: Database, query: LiteralString, *arguments: object) -> list[tuple[Any, ...]]:
    with psycopg.connect(db.url, autocommit=True) as conn:
        cursor = conn.execute(query, arguments)
        return cursor.fetchall() if cursor.description else []


def track(conn: AsyncConnection[Any]) -> Awaitable[None]:
    """A worker keeps the active symbols from now on."""
    return tracking.track(conn, LATELY.start, EDGE)


def begin(conn: AsyncConnection[Any]) -> Awaitable[None]:
    return heartbeat.begin(conn, NOW)


def fill(db: Database, start: str = "2024-03-04 00:00", symbol: str = "EURUSD") -> Callable[..., Awaitable[object]]:
    """Bars of every minute up to now, as a call at the edge brings them."""
    return lambda conn: put(conn, db.engine, symbol, at(start), EDGE, now=NOW, kind="edge")


@contextmanager
def heard(db: Database) -> Iterator[list[str]]:
    """Names the channel of each notification that was sent meanwhile."""
    found: list[str] = []
    with psycopg.connect(db.url, autocommit=True) as conn:
        conn.execute(f"LISTEN {ledger.REQUESTS}")
        yield found
        found += [one.channel for one in conn.notifies(timeout=0.2)]


# Instruments


def test_instruments_come_with_their_tickers_and_their_first_and_last_bars(client: TestClient[Any]) -> None:
    answer = client.get(SYMBOLS)
    assert answer.status_code == 200
    found = {one.symbol: one for one in msgspec.json.decode(answer.content, type=InstrumentsAnswer).symbols}
    assert list(found) == sorted(found)
    assert len(found) == 45
    assert found["EURUSD"].ticker == "C:EURUSD"
    assert found["EURUSD"].last_bar == to_ms(LATELY.end - MINUTE)
    assert (found["BTCUSD"].first_bar, found["BTCUSD"].last_bar) == (None, None)


@pytest.mark.parametrize(
    ("query", "count"),
    [
        ("asset_type=forex", 28),
        ("asset_type=Crypto", 11),
        ("asset_type=stock", 0),
        ("active=true", 1),
        ("active=false", 44),
        ("asset_type=forex&active=false", 27),
    ],
)
def test_instruments_can_be_chosen(client: TestClient[Any], query: str, count: int) -> None:
    assert len(client.get(f"{SYMBOLS}?{query}").json()["symbols"]) == count


def test_one_instrument_is_found_in_any_case(client: TestClient[Any]) -> None:
    body = client.get(f"{SYMBOLS}/eurusd").json()
    assert (body["symbol"], body["asset_type"], body["active"]) == ("EURUSD", "forex", True)


@pytest.mark.parametrize(
    ("method", "path"),
    [
        ("GET", f"{SYMBOLS}/eurosd"),
        ("PATCH", f"{SYMBOLS}/eurosd"),
        ("DELETE", f"{SYMBOLS}/eurosd"),
        ("POST", f"{SYNC}/eurosd"),
        ("GET", "/api/sync/status/eurosd"),
    ],
)
def test_an_unknown_symbol_is_refused_with_the_nearest(client: TestClient[Any], method: str, path: str) -> None:
    body = {"name": "x"} if method == "PATCH" else {}
    found = problem(client.request(method, path, json=body), 404)
    assert found.error == "unknown_symbol"
    assert found.allowed[0] == "EURUSD"
    problem(client.request(method, path.replace("eurosd", "%C3%9F%00"), json=body), 404)


@pytest.mark.parametrize(
    ("method", "path", "allowed"),
    [
        ("GET", f"{SYMBOLS}?asset_type=fx", "forex"),
        ("GET", f"{SYMBOLS}?active=yes", "true"),
        ("GET", f"{SYMBOLS}?type=forex", "asset_type"),
        ("GET", f"{SYMBOLS}/EURUSD?active=true", None),
        ("DELETE", f"{SYMBOLS}/EURUSD?purge=1", "false"),
        ("POST", f"{SYNC}/EURUSD?wait=121", None),
        ("POST", f"{SYNC}-all?wait=soon", None),
        ("POST", f"{SYNC}/EURUSD?waits=1", "wait"),
        ("GET", "/api/sync/status?symbol=EURUSD", None),
        ("GET", "/api/sync/health?x=1", None),
        ("GET", "/scheduler/status?x=1", None),
    ],
)
def test_a_parameter_that_cannot_be_used_is_refused_with_what_can(
    client: TestClient[Any], method: str, path: str, allowed: str | None
) -> None:
    found = problem(client.request(method, path), 400)
    assert found.error == "bad_request"
    assert allowed is None or allowed in found.allowed


@pytest.mark.parametrize(
    ("path", "body", "words"),
    [
        (SYMBOLS, b"", "ticker"),
        (SYMBOLS, b"{", "no JSON"),
        (SYMBOLS, b"ticker=AAPL", "no JSON"),
        (SYMBOLS, b"null", "object"),
        (SYMBOLS, b'"AAPL"', "object"),
        (SYMBOLS, b'{"ticker": null}', "str"),
        (SYMBOLS, b'{"ticker": "AAPL", "tiker": 1}', "tiker"),
        (SYMBOLS, b'{"ticker": "aapl"}', "'aapl'"),
        (SYMBOLS, b'{"ticker": "AAPL", "symbol": "A B"}', "'A B'"),
        (SYMBOLS, b'{"ticker": "AAPL", "symbol": ""}', "''"),
        (SYMBOLS, b'{"ticker": "AAPL", "symbol": "\\u0000"}', "symbol"),
        (SYMBOLS, b'{"ticker": "AAPL", "name": " "}', "name"),
        (SYMBOLS, b'{"ticker": "AAPL", "name": "\\u0000"}', "name"),
        (SYMBOLS, b'{"ticker": "\\ud800"}', "body"),
        (SYMBOLS, b'{"ticker": "\xff"}', "body"),
        (SYMBOLS, b"[" * 10_000, "body"),
        (SYMBOLS, b'{"ticker": "' + b"A" * 20_000 + b'"}', "longer than 16384 bytes"),
        (f"{SYNC}/EURUSD", b'{"asset_type": "crypto"}', "forex"),
        (f"{SYNC}/EURUSD", b'{"asset_type": "fx"}', "fx"),
        (f"{SYNC}/EURUSD", b'{"timeframe": "2h"}', "2h"),
        (f"{SYNC}/EURUSD", b'{"backfill_days": 0}', "backfill_days"),
        (f"{SYNC}/EURUSD", b'{"backfill_days": "3"}', "int"),
        (f"{SYNC}/EURUSD", b'{"backfill_days": 3, "from": "2024-03-01"}', "not both"),
        (f"{SYNC}/EURUSD", b'{"to": "2024-03-01"}', "to needs from"),
        (f"{SYNC}/EURUSD", b'{"from": "2024-03-02", "to": "2024-03-01"}', "must lie before"),
        (f"{SYNC}/EURUSD", b'{"from": "2024-03-06"}', "lies in the future"),
        (f"{SYNC}/EURUSD", b'{"from": "yesterday"}', "yesterday"),
        (f"{SYNC}/EURUSD", b'{"from": 1709546400}', "no instant"),
        (f"{SYNC}/EURUSD", b'{"from": true}', "bool"),
        (f"{SYNC}/EURUSD", b'{"from": ' + b"9" * 5000 + b"}", "body"),
        (f"{SYNC}-all", b'{"symbol": "EURUSD"}', "symbol"),
        (f"{SYNC}-all", b"[]", "object"),
    ],
)
def test_a_body_that_cannot_be_used_is_refused_with_what_is_wrong(
    client: TestClient[Any], path: str, body: bytes, words: str
) -> None:
    found = problem(client.post(path, content=body), 400)
    assert found.error == "bad_request"
    assert words in found.message + " ".join(found.allowed)


@pytest.mark.parametrize(
    ("body", "symbol", "asset_type", "name"),
    [
        ({"ticker": "AAPL"}, "AAPL", "stock", "AAPL"),
        ({"ticker": "BRK.A", "symbol": "brka", "name": " Berkshire\tHathaway "}, "BRKA", "stock", "Berkshire Hathaway"),
        ({"ticker": "C:XPTUSD"}, "XPTUSD", "commodity", "XPT / USD"),
        ({"ticker": "X:SHIBUSD"}, "SHIBUSD", "crypto", "SHIBUSD"),
        ({"ticker": "I:VIX"}, "VIX", "index", "VIX"),
        ({"ticker": "SPX", "symbol": "SPX.stock"}, "SPX.STOCK", "stock", "SPX"),
    ],
)
def test_an_instrument_is_added_switched_on_and_the_worker_hears_of_it(  # noqa: PLR0917 - fixtures and parameters
    api: TestClient[Any], db: Database, body: dict[str, str], symbol: str, asset_type: str, name: str
) -> None:
    with heard(db) as channels:
        answer = api.post(SYMBOLS, json=body)
    assert answer.status_code == 201
    added = answer.json()
    assert (added["symbol"], added["ticker"], added["active"]) == (symbol, body["ticker"], True)
    assert (added["asset_type"], added["name"], added["first_bar"]) == (asset_type, name, None)
    assert channels == [ledger.REQUESTS]
    assert api.get(f"{SYMBOLS}/{symbol.lower()}").json() == added
    assert api.get(f"/api/sync/status/{symbol}").json()["state"] == "new"
    assert api.get(f"/api/candles/{symbol}").json()["no_data"] is True


def test_a_name_or_a_ticker_that_is_taken_is_a_conflict_that_says_by_what(api: TestClient[Any]) -> None:
    """Nothing is changed by it."""
    assert api.post(SYMBOLS, json={"ticker": "SPX"}).status_code == 201
    taken = problem(api.post(SYMBOLS, json={"ticker": "I:SPX"}), 409)
    assert (taken.error, taken.allowed) == ("conflict", ["SPX500"])
    assert "as SPX500 (index)" in taken.message
    assert "taken by SPX (stock)" in problem(api.post(SYMBOLS, json={"ticker": "I:COMP", "symbol": "spx"}), 409).message
    assert len(api.get(SYMBOLS).json()["symbols"]) == 46


def test_switched_off_an_instrument_is_no_longer_kept_but_served(api: TestClient[Any], db: Database) -> None:
    act(db, track, fill(db))
    answer = api.patch(f"{SYMBOLS}/eurusd", json={"active": False})
    assert (answer.status_code, answer.json()["active"]) == (200, False)
    tracked = "SELECT tracked_from, tracked_since, asked_to FROM market_data.sync_state WHERE symbol = 'EURUSD'"
    assert rows(db, tracked) == [(None, None, None)]
    found = api.get("/api/sync/status/EURUSD").json()
    assert (found["state"], found["lag_seconds"]) == ("inactive", None)
    assert len(api.get("/api/candles/EURUSD?limit=5").json()["candles"]) == 5
    with heard(db) as channels:
        assert api.patch(f"{SYMBOLS}/EURUSD", json={"active": True, "name": "Fiber"}).json()["name"] == "Fiber"
        assert api.patch(f"{SYMBOLS}/EURUSD", json={"active": True}).json()["name"] == "Fiber"
    assert channels == [ledger.REQUESTS]


def test_a_change_of_nothing_is_refused(api: TestClient[Any]) -> None:
    assert problem(api.patch(f"{SYMBOLS}/EURUSD", json={}), 400).allowed == ["active", "name"]
    problem(api.patch(f"{SYMBOLS}/EURUSD", json={"active": None}), 400)


def test_an_instrument_without_bars_is_removed(api: TestClient[Any]) -> None:
    assert api.delete(f"{SYMBOLS}/DAX40").status_code == 204
    problem(api.get(f"{SYMBOLS}/DAX40"), 404)
    problem(api.delete(f"{SYMBOLS}/DAX40"), 404)


def test_an_instrument_with_bars_is_removed_only_together_with_them(api: TestClient[Any], db: Database) -> None:
    """And with all that is kept about it; others keep theirs, and caches learn of it."""
    corrected = invent(minutes(at("2024-03-04 01:00"), at("2024-03-04 02:00")), 7)

    async def correct(conn: AsyncConnection[Any]) -> None:
        await put(conn, db.engine, "EURUSD", at("2024-03-04 01:00"), at("2024-03-04 02:00"), now=NOW, bars=corrected)
        await db.engine.refresh(conn, {}, NOW)
        await put(conn, db.engine, "EURUSD", at("2024-03-03 01:00"), at("2024-03-03 02:00"), now=NOW)

    act(db, fill(db), fill(db, symbol="GBPUSD"), correct)
    assert "purge=true" in problem(api.delete(f"{SYMBOLS}/EURUSD"), 409).message
    problem(api.delete(f"{SYMBOLS}/EURUSD?purge=false"), 409)
    assert api.get("/api/sync/status/EURUSD").json()["revisions"] == 60
    assert api.delete(f"{SYMBOLS}/eurusd?purge=true").status_code == 204
    problem(api.get(f"{SYMBOLS}/EURUSD"), 404)
    for table in (*(timeframe.table for timeframe in Timeframe), "bar_revisions", "rejected_bars", "sync_state"):
        query = psycopg.sql.SQL("SELECT count(*) FROM {} WHERE symbol = %s")
        with psycopg.connect(db.url) as conn:
            named = query.format(psycopg.sql.Identifier("market_data", table))
            assert conn.execute(named, ["EURUSD"]).fetchone() == (0,), table
    pending = "SELECT count(*) FROM market_data.pending_refreshes JOIN market_data.changes ON id = change_id"
    assert rows(db, pending + " WHERE symbol = 'EURUSD'") == [(0,)]
    last = "SELECT symbol, lower(range), upper(range) FROM market_data.changes ORDER BY id DESC LIMIT 1"
    assert rows(db, last) == [("EURUSD", EPOCH, at("9999-01-01"))]
    assert len(api.get("/api/candles/GBPUSD?timeframe=1h&limit=9").json()["candles"]) == 9
    again = api.post(SYMBOLS, json={"ticker": "C:EURUSD"})
    assert (again.status_code, again.json()["first_bar"]) == (201, None)
    assert api.get("/api/candles/EURUSD").json()["no_data"] is True


# Status


def test_status_has_totals_and_every_symbol(client: TestClient[Any]) -> None:
    answer = client.get("/api/sync/status")
    found = msgspec.json.decode(answer.content, type=StatusAnswer)
    assert (found.now, found.totals.symbols, found.totals.active) == (to_ms(NOW), 45, 1)
    assert found.totals.missing_minutes == sum(one.missing_minutes for one in found.symbols)
    assert {state: count for state, count in found.totals.states.items() if count} == {"ok": 1, "inactive": 44}
    missing = {one.symbol: one.missing_minutes for one in found.symbols if one.missing_minutes}
    assert missing == {"GBPUSD": 2880, "BTCUSD": (NOW - timedelta(hours=36) - LATELY.start) // MINUTE}
    assert found.totals.requests == 2


def test_a_symbol_in_full_says_what_is_covered_and_what_is_missing(client: TestClient[Any]) -> None:
    found = msgspec.json.decode(client.get("/api/sync/status/gbpusd").content, type=DetailAnswer)
    spans = [[(one.start, one.end) for one in part] for part in (found.wanted, found.covered)]
    begins = to_ms(at("2024-03-03"))
    assert spans == [[(to_ms(LATELY.start), to_ms(EDGE))], [(begins, to_ms(SETTLED))]]
    assert [(gap.start, gap.end, gap.reason) for gap in found.missing] == [(to_ms(LATELY.start), begins, "pending")]
    assert found.progress == pytest.approx((SETTLED - at("2024-03-03")) / (SETTLED - LATELY.start))
    rejected = msgspec.json.decode(client.get("/api/sync/status/USDJPY").content, type=DetailAnswer)
    assert (rejected.rejected, rejected.missing_minutes, rejected.progress) == (1, 0, 1)
    assert [(gap.start, gap.reason) for gap in rejected.missing] == [(to_ms(REJECTED), "unavailable")]
    nothing = msgspec.json.decode(client.get("/api/sync/status/ETHUSD").content, type=DetailAnswer)
    assert (nothing.wanted, nothing.missing, nothing.progress) == ([], [], 1)


def test_a_symbol_in_full_says_how_far_each_timeframe_reaches(client: TestClient[Any], readable: Database) -> None:
    """On plain PostgreSQL every candle is stored; on TimescaleDB those above the watermark are computed when read."""
    levels = msgspec.json.decode(client.get("/api/sync/status/EURUSD").content, type=DetailAnswer).timeframes
    assert [one.timeframe for one in levels] == [one.value for one in Timeframe]
    for level, timeframe in zip(levels, Timeframe, strict=True):
        last = timeframe.floor(LATELY.end - MINUTE)
        assert level.last_candle == to_ms(last), timeframe
        whole = readable.engine.name == "plain" or timeframe is Timeframe.M1
        stored_to = last + timeframe.length if whole else timeframe.floor(SETTLED)
        assert level.materialized_to == to_ms(stored_to), timeframe
    without = msgspec.json.decode(client.get("/api/sync/status/ETHUSD").content, type=DetailAnswer).timeframes
    assert {level.last_candle for level in without} == {None}


@pytest.mark.parametrize("retention", ["off", "3 days"])
def test_both_ways_of_counting_what_is_missing_agree(readable: Database, retention: str) -> None:
    """The database's for all symbols, and ours for one; below the floor, and where closed time is not wanted yet."""
    later = NOW + timedelta(days=4, hours=7)
    app = create_app(
        checked(readable.url, readable.engine.name), chosen(readable, RETENTION_1M=retention), lambda: later
    )
    with TestClient(app) as one:
        for found in one.get("/api/sync/status").json()["symbols"]:
            full = one.get(f"/api/sync/status/{found['symbol']}").json()
            assert {name: full[name] for name in found} == found
            lacking = [gap for gap in full["missing"] if gap["reason"] == "pending"]
            assert sum(gap["to"] - gap["from"] for gap in lacking) == found["missing_minutes"] * 60_000


def test_states_follow_the_work(api: TestClient[Any], db: Database) -> None:
    """From new over backfilling to ok, failed, refused, and behind."""

    def state() -> str:
        found: str = api.get("/api/sync/status/EURUSD").json()["state"]
        return found

    async def fail(conn: AsyncConnection[Any]) -> None:
        await ledger.note_failure(conn, "EURUSD", "HTTP 500", now=NOW)

    async def refuse(conn: AsyncConnection[Any]) -> None:
        await ledger.note_failure(conn, "EURUSD", "not entitled", now=NOW, refused=True, rest=timedelta(days=1))

    assert state() == "new"
    act(db, track)
    assert state() == "new"
    totals = api.get("/api/sync/status").json()["totals"]
    assert (totals["requests"], totals["expected_lag_seconds"]) == (1, 15)
    act(db, fill(db))
    assert state() == "backfilling"
    act(db, lambda conn: put(conn, db.engine, "EURUSD", LATELY.start, at("2024-03-04"), now=NOW))
    assert state() == "ok"
    act(db, fail)
    assert state() == "failed"
    act(db, refuse)
    found = api.get("/api/sync/status/EURUSD").json()
    assert (found["state"], found["error"]) == ("refused", "not entitled")
    assert found["next_attempt_at"] == to_ms(NOW + timedelta(days=1))
    act(db, fill(db))
    assert state() == "ok"
    with TestClient(create_app(checked(db.url, db.engine.name), chosen(db), lambda: NOW + timedelta(hours=2))) as later:
        found = later.get("/api/sync/status/EURUSD").json()
    assert (found["state"], found["lag_seconds"]) == ("behind", 7200)


# Health


def healthy(db: Database) -> None:
    act(db, track, fill(db), begin)


def test_health_is_200_while_all_is_well(api: TestClient[Any], db: Database) -> None:
    healthy(db)
    answer = api.get("/api/sync/health")
    assert answer.status_code == 200
    assert msgspec.json.decode(answer.content, type=SyncHealth) == SyncHealth(
        status="ok",
        reasons=[],
        worker_alive=True,
        provider="ok",
        late_symbols=0,
        worst_lag_seconds=0,
        worst_symbol="EURUSD",
    )


def test_health_is_503_with_every_reason(api: TestClient[Any], db: Database) -> None:
    answer = api.get("/api/sync/health")
    assert answer.status_code == 503
    found = msgspec.json.decode(answer.content, type=SyncHealth)
    assert (found.status, found.worker_alive, found.provider) == ("unhealthy", False, None)
    assert "candlewick worker" in found.reasons[0]
    healthy(db)

    async def unauthorized(conn: AsyncConnection[Any]) -> None:
        await heartbeat.beat(conn, NOW, timedelta(seconds=100))
        await heartbeat.provider_is(conn, "unauthorized", "Unknown API Key", NOW, None)
        await conn.execute("UPDATE market_data.sync_state SET tracked_since = now() - interval '90 years'")
        await ledger.note_failure(conn, "EURUSD", "HTTP 500", now=NOW)
        await conn.execute("UPDATE market_data.sync_state SET last_bar = NULL, covered = '{}', asked_to = NULL")

    act(db, unauthorized)
    found = msgspec.json.decode(api.get("/api/sync/health").content, type=SyncHealth)
    for word, reason in zip(("POLYGON_API_KEY", "NTP", "EURUSD"), found.reasons, strict=True):
        assert word in reason
    assert "(HTTP 500)" in found.reasons[2]
    assert (found.late_symbols, found.worst_symbol, found.worker_alive) == (1, "EURUSD", True)


def test_while_the_database_is_down_health_keeps_its_shape_and_other_calls_say_so(
    db: Database, engine: str, request: pytest.FixtureRequest
) -> None:
    """503, not 500, and later all works again."""
    admin = request.getfixturevalue(f"{engine}_server").admin
    name = str(psycopg.conninfo.conninfo_to_dict(db.url)["dbname"])
    db.pool.timeout = 0.5
    with TestClient(create_app(db, chosen(db), lambda: NOW), raise_server_exceptions=False) as one:
        assert one.get("/api/sync/status").status_code == 200
        block(admin, name, allow=False)
        try:
            for path in (
                SYMBOLS,
                f"{SYMBOLS}/EURUSD",
                "/api/sync/status",
                "/api/sync/status/EURUSD",
                "/scheduler/status",
            ):
                assert problem(one.get(path), 503).error == "unavailable"
            assert problem(one.post(f"{SYNC}/EURUSD"), 503).error == "unavailable"
            answer = one.get("/api/sync/health")
        finally:
            block(admin, name, allow=True)
        assert answer.status_code == 503
        found = msgspec.json.decode(answer.content, type=SyncHealth)
        assert found.reasons == status.UNREACHABLE.reasons
        db.pool.timeout = 10
        assert one.get("/api/sync/status").status_code == 200


# What runs by itself


def test_the_scheduler_says_what_runs_and_how_it_went(api: TestClient[Any], db: Database) -> None:
    empty = msgspec.json.decode(api.get("/scheduler/status").content, type=SchedulerAnswer)
    assert (empty.worker, empty.jobs, empty.plan, empty.rate.used, empty.rate.limit) == (None, [], [], 0, 5)

    async def work(conn: AsyncConnection[Any]) -> None:
        await heartbeat.begin(conn, NOW)
        await heartbeat.job_scheduled(conn, "sync", "every minute", EDGE)
        await heartbeat.job_scheduled(conn, "recheck", "every hour", NOW + timedelta(hours=1))
        await heartbeat.job_started(conn, "sync", NOW)
        done = NOW + timedelta(milliseconds=1500)
        await heartbeat.job_finished(conn, "sync", done, outcome=("ok", "calls: 3 edge"), next_run_at=None)
        await heartbeat.job_started(conn, "recheck", NOW)
        for seconds in (70, 50, 10):
            await ledger.record_call(conn, NOW - timedelta(seconds=seconds), timedelta(minutes=5))
        await tracking.save_entitlements(
            conn, {"forex": Entitlement(kind="delayed", delay=timedelta(minutes=15), seen_at=NOW)}
        )

    act(db, work)
    found = msgspec.json.decode(api.get("/scheduler/status").content, type=SchedulerAnswer)
    assert found.worker is not None
    assert (found.worker.alive, found.worker.beat_at, found.worker.provider) == (True, to_ms(NOW), "ok")
    recheck, pass_ = found.jobs
    assert (pass_.name, pass_.seconds, pass_.result, pass_.message) == ("sync", 1.5, "ok", "calls: 3 edge")
    assert (recheck.seconds, recheck.result, recheck.started_at) == (None, None, to_ms(NOW))
    assert found.rate.used == 2
    assert [(one.asset_type, one.kind, one.delay_seconds, one.seen_at) for one in found.plan] == [
        ("forex", "delayed", 900, to_ms(NOW))
    ]


def test_the_scheduler_says_what_the_database_does_by_itself(db: Database) -> None:
    with psycopg.connect(db.url, autocommit=True) as conn:
        db.engine.age(conn, chosen(db, RETENTION_1M="400 days").retention, 30)
    with TestClient(app_of(db, POLYGON_RATE_LIMIT="unlimited")) as one:
        found = msgspec.json.decode(one.get("/scheduler/status").content, type=SchedulerAnswer)
    assert (found.rate.limit, found.rate.used) == (None, None)
    if db.engine.name == "plain":
        assert (found.database_jobs, "keeps everything" in found.database) == ([], True)
    else:
        settings = {(one.what, one.relation): one.setting for one in found.database_jobs}
        assert settings["retention", "candles_1m"] == "drop after 400 days"
        assert {"columnstore", "refresh"} <= {what for what, _ in settings}
        assert all(one.every_seconds > 0 for one in found.database_jobs)


# Fetching now


def test_asking_says_what_is_missing_and_how_long_it_takes(api: TestClient[Any], db: Database) -> None:
    act(db, fill(db))
    with heard(db) as channels:
        answer = api.post(f"{SYNC}/eurusd", json={"from": "2024-01-01", "to": "2024-03-04T10:00:30"})
    assert answer.status_code == 202
    found = msgspec.json.decode(answer.content, type=SyncAnswer)
    assert (found.symbol, found.start, found.end) == ("EURUSD", to_ms(at("2024-01-01")), to_ms(at("2024-03-04 10:01")))
    assert [(one.start, one.end) for one in found.missing] == [(to_ms(at("2024-01-01")), to_ms(at("2024-03-04")))]
    assert (found.requests, found.seconds, found.worker, found.result) == (3, 0, False, None)
    assert channels == [ledger.REQUESTS]
    asked = Range(at("2024-01-01"), at("2024-03-04 10:01"))
    known = "SELECT wanted @> tstzrange(%s, %s), requested @> tstzrange(%s, %s) FROM market_data.sync_state"
    assert rows(db, known + " WHERE symbol = 'EURUSD'", *asked, *asked) == [(True, True)]


@pytest.mark.parametrize("body", [None, b"", b"{}"])
def test_without_a_body_it_goes_on_where_the_coverage_ends(
    api: TestClient[Any], db: Database, body: bytes | None
) -> None:
    act(db, fill(db), begin)
    found = msgspec.json.decode(api.post(f"{SYNC}/EURUSD", content=body).content, type=SyncAnswer)
    assert (found.start, found.end) == (to_ms(SETTLED), to_ms(EDGE))
    assert (found.requests, found.worker) == (1, True)


def test_what_the_plan_cannot_have_yet_is_not_asked_for(api: TestClient[Any], db: Database) -> None:
    """A call for it would be refused, and the symbol with it."""
    plan = {"forex": Entitlement(kind="end-of-day", seen_at=NOW)}
    act(db, fill(db), lambda conn: tracking.save_entitlements(conn, plan))
    found = msgspec.json.decode(api.post(f"{SYNC}/EURUSD", json={"from": "2024-03-03"}).content, type=SyncAnswer)
    assert [(one.start, one.end) for one in found.missing] == [(to_ms(at("2024-03-03")), to_ms(at("2024-03-04")))]
    requested = "SELECT upper(requested) FROM market_data.sync_state WHERE symbol = 'EURUSD'"
    assert rows(db, requested) == [(at("2024-03-05 05:00"),)]


def test_below_the_floor_nothing_is_asked_for(db: Database) -> None:
    with TestClient(app_of(db, RETENTION_1M="40 days")) as one:
        answer = one.post(f"{SYNC}/EURUSD", json={"backfill_days": 50})
        if db.engine.name == "timescaledb":
            assert "RETENTION_1M" in problem(answer, 400).message
        else:
            assert answer.status_code == 202
        assert one.post(f"{SYNC}/EURUSD", json={"backfill_days": 40}).status_code == 202


@contextmanager
def answering(db: Database, reply: Callable[[AsyncConnection[Any]], Awaitable[object]]) -> Iterator[None]:
    """Stands in for the worker: replies once, as soon as somebody asks."""
    ready = threading.Event()

    def wait() -> None:
        with psycopg.connect(db.url, autocommit=True) as conn:
            conn.execute(f"LISTEN {ledger.REQUESTS}")
            ready.set()
            if list(conn.notifies(timeout=20, stop_after=1)):
                act(db, reply)

    thread = threading.Thread(target=wait)
    thread.start()
    ready.wait(20)
    yield
    thread.join()


@pytest.mark.parametrize(("timeframe", "candles"), [(None, 727), ("60min", 13), ("1d", 1)])
def test_who_waits_is_told_what_came(api: TestClient[Any], db: Database, timeframe: str | None, candles: int) -> None:
    """New bars, changed ones, and the candles of the timeframe, in every one of which they are readable by then."""
    start, noon = at("2024-03-05 00:00"), at("2024-03-05 11:59")
    early = noon + MINUTE / 2

    async def before(conn: AsyncConnection[Any]) -> None:
        await put(conn, db.engine, "EURUSD", start, noon, now=early, bars=invent(minutes(start, noon), 3))
        await db.engine.refresh(conn, {}, early)

    async def reply(conn: AsyncConnection[Any]) -> None:
        await put(conn, db.engine, "EURUSD", at("2024-03-05 11:44"), EDGE, now=NOW, kind="edge")
        await db.engine.refresh(conn, {}, NOW)

    act(db, before)
    body = {"from": "2024-03-05"} | ({"timeframe": timeframe} if timeframe else {})
    with answering(db, reply):
        answer = api.post(f"{SYNC}/EURUSD?wait=20", json=body)
    assert answer.status_code == 200, answer.text
    found = msgspec.json.decode(answer.content, type=SyncAnswer)
    assert found.result is not None
    assert (found.result.rows_new, found.result.rows_changed) == (8, 15)
    assert (found.result.complete, found.result.error) == (True, None)
    assert found.result.timeframe == Timeframe.parse(timeframe or "1m").value
    assert found.result.candles == candles


def test_who_waits_is_told_why_it_failed(api: TestClient[Any], db: Database) -> None:
    """And not what failed before he asked."""

    async def failed(conn: AsyncConnection[Any], words: str = "an old failure") -> None:
        await ledger.note_failure(conn, "EURUSD", words, now=NOW)

    act(db, failed)
    with answering(db, lambda conn: failed(conn, "HTTP 500")):
        answer = api.post(f"{SYNC}/EURUSD?wait=20", json={"backfill_days": 1})
    assert answer.status_code == 200
    assert answer.json()["result"]["error"] == "HTTP 500"
    assert answer.json()["result"]["complete"] is False


def test_who_waits_too_short_gets_202(api: TestClient[Any]) -> None:
    answer = api.post(f"{SYNC}/EURUSD?wait=1", json={"backfill_days": 1})
    assert (answer.status_code, answer.json()["result"]) == (202, None)


def test_what_is_there_already_is_done_at_once(api: TestClient[Any], db: Database) -> None:
    act(db, fill(db))
    asked = {"from": "2024-03-04", "to": "2024-03-05", "timeframe": "4hour"}
    answer = api.post(f"{SYNC}/EURUSD?wait=20", json=asked)
    assert answer.status_code == 200
    found = msgspec.json.decode(answer.content, type=SyncAnswer)
    assert (found.requests, found.missing) == (0, [])
    assert found.result is not None
    assert (found.result.complete, found.result.rows_new, found.result.candles) == (True, 0, 6)


def test_a_symbol_that_is_removed_meanwhile_has_no_result(api: TestClient[Any], db: Database) -> None:
    async def gone(conn: AsyncConnection[Any]) -> None:
        await conn.execute("DELETE FROM market_data.instruments WHERE symbol = 'EURUSD'")

    with answering(db, gone):
        answer = api.post(f"{SYNC}/EURUSD?wait=20", json={"backfill_days": 1})
    assert (answer.status_code, answer.json()["result"]) == (202, None)


def test_all_active_symbols_can_be_asked_for_at_once(api: TestClient[Any], db: Database) -> None:
    """Each from where its own coverage ends; or only those of one asset type."""
    act(db, lambda conn: only_active(conn, "EURUSD", "GBPUSD", "BTCUSD"), fill(db))
    answer = api.post(f"{SYNC}-all")
    assert answer.status_code == 202
    found = msgspec.json.decode(answer.content, type=SyncAllAnswer)
    starts = {one.symbol: one.start for one in found.symbols}
    assert starts == {"BTCUSD": to_ms(at("2024-02-04")), "EURUSD": to_ms(SETTLED), "GBPUSD": to_ms(at("2024-02-04"))}
    assert (found.requests, found.done, found.worker) == (sum(one.requests for one in found.symbols), False, False)
    requested = "SELECT symbol FROM market_data.sync_state WHERE NOT isempty(requested) ORDER BY symbol"
    assert rows(db, requested) == [("BTCUSD",), ("EURUSD",), ("GBPUSD",)]
    only = api.post(f"{SYNC}-all", json={"asset_type": "crypto", "backfill_days": 1}).json()
    assert [one["symbol"] for one in only["symbols"]] == ["BTCUSD"]


def test_who_waits_for_all_is_told_when_each_is_done(api: TestClient[Any], db: Database) -> None:
    act(db, lambda conn: only_active(conn, "EURUSD", "GBPUSD"), fill(db), fill(db, symbol="GBPUSD"))

    async def reply(conn: AsyncConnection[Any]) -> None:
        for symbol in ("EURUSD", "GBPUSD"):
            await put(conn, db.engine, symbol, SETTLED, EDGE, now=NOW, kind="edge")

    with answering(db, reply):
        answer = api.post(f"{SYNC}-all?wait=20")
    assert answer.status_code == 200
    found = msgspec.json.decode(answer.content, type=SyncAllAnswer)
    assert found.done
    assert [one.result is not None and one.result.complete for one in found.symbols] == [True, True]
    none = api.post(f"{SYNC}-all?wait=20", json={"asset_type": "stock"})
    assert (none.status_code, none.json()["symbols"]) == (200, [])


def test_waiting_holds_no_connection(db: Database, monkeypatch: pytest.MonkeyPatch) -> None:
    """As many wait as like: others are answered meanwhile."""
    monkeypatch.setattr(sync, "LONGEST_WAIT", 3)
    with TestClient(app_of(db)) as one:
        waiting = [
            threading.Thread(target=one.post, args=(f"{SYNC}/EURUSD?wait=3",), kwargs={"json": {"backfill_days": 1}})
            for _ in range(12)
        ]
        for thread in waiting:
            thread.start()
        assert one.get("/health").json()["database_ms"] < 2000
        assert any(thread.is_alive() for thread in waiting)
        for thread in waiting:
            thread.join()


def test_a_worker_fetches_what_was_asked_for_and_is_well(db: Database) -> None:
    """The whole way: API, database, worker, provider, database, API. An instrument that is added goes the same way."""
    with running(ReplayConfig(api_key=KEY)) as replay:
        env = environment(
            DATABASE_URL=db.url,
            ENGINE=db.engine.name,
            POLYGON_API_KEY=KEY,
            POLYGON_BASE_URL=replay.url,
            POLYGON_RATE_LIMIT="unlimited",
            BACKFILL_DAYS="3",
        )
        with started("worker", env=env), TestClient(create_app(db, load(env, env_file=None))) as one:
            wait_until(lambda: one.get("/scheduler/status").json()["worker"], "a worker is there")
            assert one.delete(f"{SYMBOLS}/BTCUSD").status_code == 204
            assert one.post(SYMBOLS, json={"ticker": "X:BTCUSD", "symbol": "BITCOIN"}).status_code == 201
            asked = {"backfill_days": 10, "timeframe": "1d"}
            answer = one.post(f"{SYNC}/BITCOIN?wait=60", json=asked)
            assert answer.status_code == 200, answer.text
            result = answer.json()["result"]
            assert (result["complete"], result["error"], answer.json()["worker"]) == (True, None, True)
            assert result["rows_new"] > 7 * 1440
            assert result["candles"] == 11
            answer = one.post(f"{SYNC}-all?wait=60")
            assert (answer.status_code, answer.json()["done"]) == (200, True)
            states = {found["symbol"]: found["state"] for found in one.get("/api/sync/status").json()["symbols"]}
            assert (states["EURUSD"], states["BITCOIN"]) == ("ok", "ok")
            healthy = one.get("/api/sync/health")
            assert healthy.status_code == 200, healthy.text
