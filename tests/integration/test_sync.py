"""The worker's passes while the provider does as it should: what is asked for, and what is there in the end."""

import asyncio
from collections import Counter
from collections.abc import Callable
from datetime import datetime, timedelta
from typing import LiteralString

import psycopg
import pytest

from service import tracking
from service.coverage import GRID, MINUTE, minute_floor
from service.entitlements import Entitlement
from service.provider.client import Answer
from service.ranges import Range, Ranges
from service.replay import ReplayConfig
from service.settings import Settings
from service.sync import Sync
from tests.integration import backfilling
from tests.integration.backfilling import value
from tests.integration.marketdata import SETTLE, at
from tests.integration.simulation import Simulation, simulated

BEGIN = at("2024-06-12 14:30:02")
"""A Wednesday on which every market is open; New York's midnight was at 04:00."""
SINCE = at("2024-06-11 00:00")
"""Where a day of history begins."""
HOUR, DAY = timedelta(hours=1), timedelta(days=1)
TICKERS = {"BTCUSD": "X:BTCUSD", "EURUSD": "C:EURUSD", "SPX500": "I:SPX", "XAUUSD": "C:XAUUSD"}
MakeSettings = Callable[..., Settings]


def url_of(life: Simulation) -> str:
    assert life.settings.database_url is not None
    return life.settings.database_url


def covered(life: Simulation, symbol: str) -> Ranges:
    return backfilling.ledger(url_of(life), symbol)["covered"]


# The edge


async def test_a_pass_brings_exactly_what_the_provider_has(settings: MakeSettings) -> None:
    """And the next one, a minute later, asks only from what is covered to the present."""
    async with simulated(settings, BEGIN, *TICKERS) as life, life.worker() as sync:
        await life.minutes(sync)
        await life.assert_equal(SINCE, *TICKERS, until=BEGIN)
        assert [span for _, span in life.asked()] == [Range(SINCE, minute_floor(BEGIN))] * len(TICKERS)
        ends = {TICKERS[symbol]: covered(life, symbol).end for symbol in TICKERS}
        assert set(ends.values()) == {minute_floor(BEGIN) - SETTLE}
        now = minute_floor(life.clock())
        await life.minutes(sync)
        assert sorted(life.asked(len(TICKERS))) == sorted(
            (ticker, Range(end or now, now)) for ticker, end in ends.items()
        )
        await life.assert_equal(SINCE, *TICKERS, until=now)


@pytest.mark.parametrize(
    ("closes", "opens"),
    [
        ("2024-06-14 21:00", "2024-06-16 21:00"),
        ("2024-03-08 22:00", "2024-03-10 21:00"),
        ("2024-11-01 21:00", "2024-11-03 22:00"),
    ],
    ids=["an ordinary one", "New York's clocks go forward", "New York's clocks go back"],
)
async def test_a_week_end_costs_one_call(settings: MakeSettings, closes: str, opens: str) -> None:
    """The one that settles Friday's last minutes; the first call after the open covers all of it."""
    closed, opened = at(closes), at(opens)
    async with simulated(settings, closed - 2 * MINUTE, "EURUSD") as life, life.worker() as sync:
        await life.minutes(sync, 20)
        assert covered(life, "EURUSD").end == closed
        before = len(life.asked())
        await life.live(sync, opened - MINUTE, 3 * HOUR)
        life.clock.now = opened - 3 * MINUTE
        await life.minutes(sync, 4)
        assert life.asked(before) == []
        await life.minutes(sync)
        assert life.asked(before) == [("C:EURUSD", Range(closed, opened + MINUTE))]
        await life.minutes(sync, 20)
        assert len(covered(life, "EURUSD")) == 1
        await life.assert_equal(at(f"{closed - DAY:%Y-%m-%d}"), "EURUSD", until=life.clock() - MINUTE)


async def test_an_activated_symbol_gets_its_history_and_is_kept_up_to_date(settings: MakeSettings) -> None:
    """A deactivated one is left alone, and what it has stays."""
    async with simulated(settings, BEGIN, "BTCUSD", BACKFILL_DAYS="40") as life, life.worker() as sync:
        await life.minutes(sync, 2)
        async with life.db.connection() as conn:
            await conn.execute("UPDATE market_data.instruments SET active = symbol = 'EURUSD'")
        seen, kept = len(life.asked()), value(url_of(life), "SELECT count(*) FROM market_data.candles_1m")
        await life.minutes(sync, 20)
        tail = Range(minute_floor(BEGIN) + MINUTE - SETTLE, minute_floor(BEGIN) + MINUTE)
        assert [span for ticker, span in life.asked(seen) if ticker == "X:BTCUSD"] == [tail]
        state = backfilling.ledger(url_of(life), "EURUSD")
        assert state["wanted"].start == at("2024-05-03 00:00")
        assert state["covered"] == Ranges.of(at("2024-05-03 00:00"), minute_floor(life.clock()) - MINUTE - SETTLE)
        stored = value(url_of(life), "SELECT count(*) FROM market_data.candles_1m WHERE symbol = 'BTCUSD'")
        assert stored == kept


# What the plan gives


async def entitlement(life: Simulation, asset_type: str) -> Entitlement | None:
    async with life.db.connection() as conn:
        return (await tracking.entitlements(conn)).get(asset_type)


async def test_a_delayed_plan_is_recognised_and_nothing_that_did_not_come_is_covered(settings: MakeSettings) -> None:
    """From then on a call asks for what can be there, and brings it."""
    config = ReplayConfig(delay=15)
    async with simulated(settings, BEGIN, "BTCUSD", "EURUSD", config=config) as life, life.worker() as sync:
        for _ in range(20):
            await life.minutes(sync)
            visible = life.clock() - MINUTE - 15 * MINUTE
            for symbol in ("BTCUSD", "EURUSD"):
                assert (covered(life, symbol).end or BEGIN) <= visible
        found = await entitlement(life, "crypto")
        assert found is not None
        assert (found.kind, found.delay) == ("delayed", 15 * MINUTE)
        asked = [span for ticker, span in life.asked() if ticker == "X:BTCUSD"]
        assert len(asked) == 20
        ends = [BEGIN + number * MINUTE - 15 * MINUTE for number in range(1, 20)]
        assert [span.end for span in asked[1:]] == [minute_floor(end) for end in ends]
        await life.assert_equal(SINCE, "BTCUSD", "EURUSD", until=visible)


async def test_a_plan_given_at_the_end_of_the_day_costs_two_calls_a_day(settings: MakeSettings) -> None:
    """One soon after New York's midnight, which brings the day, and one for each class that looks for more."""
    config = ReplayConfig(end_of_day=True)
    async with simulated(settings, BEGIN, *TICKERS, config=config) as life, life.worker() as sync:
        await life.minutes(sync, 2)
        assert await entitlement(life, "crypto") == Entitlement(kind="end-of-day", seen_at=BEGIN)
        for midnight in (at("2024-06-13 04:00"), at("2024-06-14 04:00")):
            await life.live(sync, midnight - MINUTE, HOUR)
            life.clock.now = midnight - MINUTE
            seen = len(life.asked())
            await life.minutes(sync, 30)
            await life.live(sync, midnight + 20 * HOUR, HOUR)
            made = Counter(ticker for ticker, _ in life.asked(seen))
            assert made.keys() == set(TICKERS.values())
            assert max(made.values()) <= 2
            for symbol in TICKERS:
                last_open = midnight if symbol != "SPX500" else midnight - 8 * HOUR
                assert covered(life, symbol).end == last_open
        await life.assert_equal(SINCE, *TICKERS)


async def test_a_plan_that_refuses_the_running_day_is_asked_up_to_new_york_s_midnight(settings: MakeSettings) -> None:
    """No symbol counts as refused for it."""
    config = ReplayConfig(today_refused=True)
    midnight = at("2024-06-12 04:00")
    async with simulated(settings, BEGIN, "BTCUSD", "ETHUSD", config=config) as life, life.worker() as sync:
        await life.minutes(sync, 5)
        ends = [span.end for _, span in life.asked()]
        assert ends[:2] == [minute_floor(BEGIN), midnight]
        assert len(ends) <= 4
        assert await entitlement(life, "crypto") == Entitlement(kind="end-of-day", seen_at=BEGIN)
        assert value(url_of(life), "SELECT count(*) FROM market_data.sync_state WHERE error_message IS NOT NULL") == 0
        await life.assert_equal(SINCE, "BTCUSD", "ETHUSD", until=midnight)
        life.clock.now = midnight + DAY
        seen = len(life.asked())
        await life.minutes(sync, 40)
        await life.live(sync, midnight + DAY + 20 * HOUR, HOUR)
        assert len(life.asked(seen)) <= 4
        await life.assert_equal(SINCE, "BTCUSD", "ETHUSD", until=midnight + DAY)


# Restarts, clocks and sleep


async def test_a_worker_that_is_killed_at_any_point_loses_nothing_and_keeps_to_the_plan(settings: MakeSettings) -> None:
    """The provider itself counts the calls of any sixty seconds, and refuses the sixth."""
    symbols = ("BTCUSD", "ETHUSD", "EURUSD", "SPX500", "DAX40")
    config = ReplayConfig(rate_limit=5)
    async with simulated(settings, BEGIN, *symbols, config=config, BACKFILL_DAYS="30") as life:
        life.replay.app._uptime = lambda: life.clock().timestamp()
        for kill in (1, 3, 5, 2, 4, 6, 5, 7):
            async with life.worker() as sync:
                seen = len(life.asked())
                running = asyncio.create_task(sync.run_pass())
                # The provider runs in a thread of its own.
                while len(life.asked()) < seen + kill and not running.done():  # noqa: ASYNC110
                    await asyncio.sleep(0.002)
                running.cancel()
                await asyncio.gather(running, return_exceptions=True)
                life.clock.now += timedelta(seconds=life.dice.randrange(1, 20))
        async with life.worker() as sync:
            await life.minutes(sync, 8)
        statuses = [served.fault for served in life.replay.requests]
        assert statuses == [None] * len(statuses)
        assert not [said for said in life.said if "failed" in said]
        await life.assert_equal(at("2024-05-13 00:00"), *symbols, until=life.clock() - MINUTE)


@pytest.mark.parametrize("ahead", [HOUR, 3 * DAY], ids=["an hour", "three days"])
async def test_a_clock_that_runs_ahead_of_the_provider_leaves_no_gap(settings: MakeSettings, ahead: timedelta) -> None:
    """Nothing of the future is covered, no forming bar is stored; once the clock is right, all goes on as ever."""
    begin = BEGIN + ahead
    async with simulated(settings, begin, "BTCUSD", "EURUSD", BACKFILL_DAYS="5") as life, life.worker() as sync:
        life.clock.ahead = ahead
        for _ in range(20):
            await life.minutes(sync)
            true = life.clock() - ahead - MINUTE
            for symbol in ("BTCUSD", "EURUSD"):
                assert (covered(life, symbol).end or SINCE) <= true - SETTLE
        asked_to = value(url_of(life), "SELECT max(asked_to) FROM market_data.sync_state")
        assert asked_to == minute_floor(true)
        since = at(f"{begin - 5 * DAY:%Y-%m-%d}")
        await life.assert_equal(since, "BTCUSD", "EURUSD", until=true)
        life.clock.now -= ahead
        life.clock.ahead = timedelta()
        seen = len(life.asked())
        await life.minutes(sync, 20)
        assert Counter(ticker for ticker, _ in life.asked(seen)) == {"X:BTCUSD": 20, "C:EURUSD": 20}
        for symbol in ("BTCUSD", "EURUSD"):
            assert covered(life, symbol).end == minute_floor(life.clock()) - MINUTE - SETTLE
        await life.assert_equal(since, "BTCUSD", "EURUSD", until=life.clock() - MINUTE)


async def test_a_clock_that_is_set_back_makes_no_duplicate_and_no_gap(settings: MakeSettings) -> None:
    """As that of a machine that was ahead all the time; or that is behind from now on."""
    async with simulated(settings, BEGIN, "BTCUSD", "EURUSD") as life, life.worker() as sync:
        await life.minutes(sync, 5)
        life.clock.now -= HOUR
        life.clock.ahead = -HOUR
        await life.minutes(sync, 5)
        assert life.said[-1].startswith("calls: none due")
        life.clock.now += HOUR
        life.clock.ahead = timedelta()
        await life.minutes(sync, 20)
        await life.assert_equal(SINCE, "BTCUSD", "EURUSD", until=life.clock() - MINUTE)
        assert value(url_of(life), "SELECT count(*) FROM market_data.bar_revisions") == 0
        assert {len(covered(life, symbol)) for symbol in ("BTCUSD", "EURUSD")} == {1}


@pytest.mark.parametrize(("days", "older"), [(1, 0), (40, 2)])
async def test_a_sleep_costs_one_call_a_symbol_for_the_edge(settings: MakeSettings, days: int, older: int) -> None:
    """What lies further back than a page is older work, and follows; nothing is missing in the end."""
    async with simulated(settings, BEGIN, "BTCUSD", "EURUSD") as life, life.worker() as sync:
        await life.minutes(sync)
        await life.sleep(days * DAY)
        seen, now = len(life.asked()), minute_floor(life.clock())
        begins = max(minute_floor(BEGIN) - SETTLE, now - GRID)
        await life.minutes(sync)
        edges = life.asked(seen)[:2]
        assert sorted(edges) == [("C:EURUSD", Range(begins, now)), ("X:BTCUSD", Range(begins, now))]
        await life.minutes(sync, 4)
        past = [span for _, span in life.asked(seen) if span.end <= begins]
        assert len(past) >= older
        assert Ranges(past) == Ranges.of(minute_floor(BEGIN) - SETTLE, begins)
        await life.assert_equal(SINCE, "BTCUSD", "EURUSD", until=life.clock() - MINUTE)
        for symbol in ("BTCUSD", "EURUSD"):
            assert covered(life, symbol) == Ranges.of(SINCE, minute_floor(life.clock()) - MINUTE - SETTLE)


# Symbols that come and go, requests in between


def during(
    monkeypatch: pytest.MonkeyPatch, sync: Sync, ticker: str, happens: Callable[[], object], *, once: bool = True
) -> None:
    """Let something happen between the answer about a ticker and its storing."""
    fetch, left = sync._client.fetch_bars, [True]

    async def fetch_while_it_happens(asked: str, start: datetime, end: datetime) -> Answer:
        answer = await fetch(asked, start, end)
        if asked == ticker and left[0]:
            left[0] = not once
            happens()
        return answer

    monkeypatch.setattr(sync._client, "fetch_bars", fetch_while_it_happens)


@pytest.mark.parametrize(
    "statement",
    [
        "DELETE FROM market_data.instruments WHERE symbol = 'ETHUSD'",
        "UPDATE market_data.instruments SET active = false WHERE symbol = 'ETHUSD'",
    ],
    ids=["removed", "deactivated"],
)
async def test_a_symbol_that_goes_while_it_is_fetched_disturbs_nobody(
    settings: MakeSettings, statement: LiteralString, monkeypatch: pytest.MonkeyPatch
) -> None:
    """What a removed one got is not stored; a deactivated one keeps it, and is asked for no more."""
    async with simulated(settings, BEGIN, "BTCUSD", "ETHUSD", "EURUSD") as life, life.worker() as sync:
        with psycopg.connect(url_of(life), autocommit=True) as conn:
            during(monkeypatch, sync, "X:ETHUSD", lambda: conn.execute(statement))
            await life.minutes(sync, 3)
        assert life.said[-1] == "calls: 2 edge; bars: 2 new, 0 changed"
        assert Counter(ticker for ticker, _ in life.asked()) == {"X:BTCUSD": 3, "C:EURUSD": 3, "X:ETHUSD": 1}
        stored = "SELECT count(*) > 0 FROM market_data.candles_1m WHERE symbol = 'ETHUSD'"
        assert value(url_of(life), stored) == ("UPDATE" in statement)


async def test_what_somebody_asks_for_during_a_pass_comes_before_the_rest_of_it(
    settings: MakeSettings, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Once, though it is older work as well."""
    async with simulated(settings, BEGIN, "BTCUSD", "ETHUSD", "EURUSD") as life, life.worker() as sync:
        span = Range(at("2024-03-01 00:00"), at("2024-03-02 00:00"))

        def somebody_asks() -> None:
            with psycopg.connect(url_of(life)) as conn:
                conn.execute(_REQUEST, {"start": span.start, "end": span.end})
            sync.asked = True

        during(monkeypatch, sync, "X:BTCUSD", somebody_asks)
        await life.minutes(sync, 3)
        tickers = [ticker for ticker, _ in life.asked()]
        assert tickers[:4] == ["X:BTCUSD", "X:SOLUSD", "X:ETHUSD", "C:EURUSD"]
        assert life.asked()[1] == ("X:SOLUSD", span)
        assert tickers.count("X:SOLUSD") == 1
        assert covered(life, "SOLUSD") == Ranges([span])
        waiting = "SELECT count(*) FROM market_data.sync_state WHERE NOT isempty(requested)"
        assert value(url_of(life), waiting) == 0


_REQUEST = """
    UPDATE market_data.sync_state SET wanted = asked, requested = asked
    FROM tstzmultirange(tstzrange(%(start)s, %(end)s)) AS asked WHERE symbol = 'SOLUSD'
"""
