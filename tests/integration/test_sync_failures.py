"""The worker's passes when the provider refuses, fails or sends what cannot be: who rests, and who goes on."""

import logging
from collections import Counter
from collections.abc import Callable
from datetime import datetime, timedelta
from itertools import pairwise
from typing import Any

import msgspec
import psycopg
import pytest

from service import heartbeat
from service.coverage import MINUTE, minute_floor
from service.provider_calls.refusals import Answer, Refusal
from service.provider_calls.request import Request
from service.ranges import Range, Ranges
from service.replay import ReplayConfig
from service.settings import Settings
from tests.integration import backfilling
from tests.integration.backfilling import value
from tests.integration.marketdata import SETTLE, at
from tests.integration.simulation import Simulation, simulated

BEGIN = at("2024-06-12 14:30:02")
"""A Wednesday on which every market is open."""
SINCE = at("2024-06-11 00:00")
HOUR, DAY = timedelta(hours=1), timedelta(days=1)
TICKERS = {"BTCUSD": "X:BTCUSD", "ETHUSD": "X:ETHUSD", "EURUSD": "C:EURUSD", "SPX500": "I:SPX"}
MakeSettings = Callable[..., Settings]
on_plain = pytest.mark.parametrize("engine", ["plain"], indirect=True)
"""For what the worker decides before an engine comes into it."""


def url_of(life: Simulation) -> str:
    assert life.settings.database_url is not None
    return life.settings.database_url


def covered(life: Simulation, symbol: str) -> Ranges:
    return backfilling.ledger(url_of(life), symbol)["covered"]


def state(life: Simulation, symbol: str) -> tuple[Any, ...]:
    """Status, error message and next attempt."""
    with psycopg.connect(url_of(life)) as conn:
        row = conn.execute(
            "SELECT status, error_message, next_attempt_at FROM market_data.sync_state WHERE symbol = %s", [symbol]
        ).fetchone()
    assert row is not None
    return tuple(row)


def counted(life: Simulation, since: int) -> Counter[str]:
    """Requests by ticker, all but so many."""
    return Counter(ticker for ticker, _ in life.asked(since))


def answering(
    monkeypatch: pytest.MonkeyPatch, life: Simulation, ticker: str, falsely: Callable[[Request, Answer], Answer]
) -> None:
    """Let the provider answer about this ticker otherwise."""
    answer = life.replay.app.answer

    def answer_falsely(request: Request, fault: str | None = None) -> Answer:
        right = answer(request, fault)
        return falsely(request, right) if f"/{ticker}/" in request.path else right

    monkeypatch.setattr(life.replay.app, "answer", answer_falsely)


# Refusals


@on_plain
async def test_a_class_that_the_plan_does_not_cover_waits_a_day_and_the_others_go_on(settings: MakeSettings) -> None:
    """With the provider's own words; two calls find it out, and two more a day later."""
    config = ReplayConfig(denied=("I:",))
    async with simulated(settings, BEGIN, *TICKERS, config=config, BACKFILL_DAYS="40") as life, life.worker() as sync:
        await life.minutes(sync, 8)
        status, message, attempt = state(life, "SPX500")
        assert status == "refused"
        assert message.startswith("You are not entitled to this data.")
        assert attempt == BEGIN + DAY
        assert counted(life, 0)["I:SPX"] == 2
        others = [symbol for symbol in TICKERS if symbol != "SPX500"]
        assert [state(life, symbol)[0] for symbol in others] == ["ok"] * 3
        await life.assert_equal(at("2024-05-03 00:00"), *others, until=life.clock() - MINUTE)
        seen, life.clock.now = len(life.asked()), BEGIN + DAY - 3 * MINUTE
        await life.minutes(sync, 8)
        assert counted(life, seen)["I:SPX"] == 2
        assert state(life, "SPX500")[2] > BEGIN + 2 * DAY - MINUTE


@on_plain
async def test_a_refused_symbol_is_taken_up_when_the_plan_covers_it(settings: MakeSettings) -> None:
    config = ReplayConfig(denied=("I:",))
    async with simulated(settings, BEGIN, "SPX500", config=config) as life, life.worker() as sync:
        await life.minutes(sync, 2)
        life.replay.app._denied = ()
        life.clock.now = BEGIN + DAY
        await life.minutes(sync, 2)
        assert state(life, "SPX500") == ("ok", None, None)
        await life.assert_equal(SINCE, "SPX500", until=life.clock() - MINUTE)


@on_plain
async def test_an_unknown_key_is_said_once_and_tried_again_every_ten_minutes(
    settings: MakeSettings, caplog: pytest.LogCaptureFixture
) -> None:
    """No symbol is to blame; when the key works all goes on."""
    config = ReplayConfig(api_key="another")
    async with simulated(settings, BEGIN, *TICKERS, config=config) as life, life.worker() as sync:
        await life.minutes(sync, 35)
        assert len(life.asked()) == 4
        (told,) = [record for record in caplog.records if record.levelno == logging.ERROR]
        assert "POLYGON_API_KEY" in told.getMessage()
        async with life.db.connection() as conn:
            worker = await heartbeat.worker(conn)
        assert worker is not None
        assert (worker.provider, worker.paused_until) == ("unauthorized", BEGIN + 40 * MINUTE)
        assert "Unknown API Key" in (worker.provider_message or "")
        assert value(url_of(life), "SELECT count(*) FROM market_data.sync_state WHERE error_message IS NOT NULL") == 0
        life.replay.app._config = msgspec.structs.replace(life.replay.app._config, api_key="simulated")
        await life.minutes(sync, 10)
        async with life.db.connection() as conn:
            worker = await heartbeat.worker(conn)
        assert worker is not None
        assert (worker.provider, worker.provider_message, worker.paused_until) == ("ok", None, None)
        await life.assert_equal(SINCE, *TICKERS, until=life.clock() - MINUTE)


async def test_what_lies_before_a_plan_s_history_is_unavailable_and_never_asked_for_again(
    settings: MakeSettings,
) -> None:
    """All that there is is stored; the limit is searched once, and holds for all symbols of the class."""
    limit = at("2024-05-09 00:00")
    config = ReplayConfig(history_start=limit, history_refused=True)
    symbols = ("BTCUSD", "ETHUSD", "SOLUSD")
    async with simulated(settings, BEGIN, *symbols, config=config, BACKFILL_DAYS="80") as life, life.worker() as sync:
        await life.minutes(sync, 15)
        wanted = Range(at("2024-03-24 00:00"), limit)
        for symbol in symbols:
            found = backfilling.ledger(url_of(life), symbol)
            assert found["unavailable"] == Ranges([wanted])
            assert found["covered"].start == limit
            assert len(found["covered"]) == 1
            assert state(life, symbol)[0] == "ok"
        refused = [(ticker, span) for ticker, span in life.asked() if span.start < limit]
        assert {ticker for ticker, _ in refused} == {"X:BTCUSD"}
        assert len(refused) <= 7
        seen = len(life.asked())
        await life.minutes(sync, 5)
        assert counted(life, seen) == dict.fromkeys(("X:BTCUSD", "X:ETHUSD", "X:SOLUSD"), 5)
        await life.assert_equal(limit, *symbols, until=life.clock() - MINUTE)


@on_plain
async def test_a_history_limit_met_in_the_first_pass_is_not_a_refusal_of_the_symbol(settings: MakeSettings) -> None:
    """Without a limit of calls, edges and older work are asked for at the same time."""
    limit = at("2024-05-09 00:00")
    config = ReplayConfig(history_start=limit, history_refused=True)
    async with (
        simulated(
            settings, BEGIN, *TICKERS, config=config, BACKFILL_DAYS="120", POLYGON_RATE_LIMIT="unlimited"
        ) as life,
        life.worker() as sync,
    ):
        await life.minutes(sync, 3)
        assert [state(life, symbol) for symbol in TICKERS] == [("ok", None, None)] * 4
        assert value(url_of(life), "SELECT count(*) FROM market_data.sync_state WHERE NOT isempty(unavailable)") == 4
        await life.assert_equal(limit, *TICKERS, until=life.clock() - MINUTE)


# Outages


@pytest.mark.parametrize(
    ("faults", "most"),
    [
        (["server_error:503"], 40),
        (["rate_limited:empty", "broken_connection", "timeout"], 40),
        (["broken_json", "cut_json", "wrong_types"], 120),
    ],
    ids=["503", "429 and no answer", "broken bodies"],
)
async def test_after_an_hour_of_failures_the_edge_catches_up_by_itself(
    settings: MakeSettings, faults: list[str | None], most: int
) -> None:
    """With few calls meanwhile; nothing is lost, nothing doubled, nobody has to do anything."""
    config = ReplayConfig(fault_delay=0.01)
    async with simulated(settings, BEGIN, *TICKERS, config=config) as life, life.worker() as sync:
        await life.minutes(sync, 2)
        before, seen = covered(life, "BTCUSD"), len(life.asked())
        life.replay.faults[:] = faults * 500
        await life.live(sync, life.clock() + HOUR, 2 * MINUTE)
        assert counted(life, seen).total() <= most
        assert covered(life, "BTCUSD") == before
        life.replay.faults.clear()
        await life.live(sync, life.clock() + HOUR, 6 * MINUTE)
        assert [state(life, symbol) for symbol in TICKERS] == [("ok", None, None)] * 4
        await life.minutes(sync)
        await life.assert_equal(SINCE, *TICKERS, until=life.clock() - MINUTE)
        assert [len(covered(life, symbol)) for symbol in TICKERS] == [1] * 4
        assert value(url_of(life), "SELECT count(*) FROM market_data.bar_revisions") == 0


@on_plain
async def test_an_outage_is_noted_with_its_words_until_it_is_over(settings: MakeSettings) -> None:
    async with simulated(settings, BEGIN, "BTCUSD", "ETHUSD", "EURUSD") as life, life.worker() as sync:
        life.replay.faults[:] = ["server_error:503"] * 500
        await life.minutes(sync, 3)
        async with life.db.connection() as conn:
            worker = await heartbeat.worker(conn)
        assert worker is not None
        assert worker.provider == "unreachable"
        assert "HTTP 503: Service Unavailable" in (worker.provider_message or "")
        life.replay.faults.clear()
        await life.minutes(sync, 8)
        async with life.db.connection() as conn:
            worker = await heartbeat.worker(conn)
        assert worker is not None
        assert (worker.provider, worker.provider_message) == ("ok", None)


@on_plain
async def test_a_pause_noted_by_a_clock_that_ran_ahead_is_over_when_the_clock_is_right(settings: MakeSettings) -> None:
    """So is the rest of a symbol."""
    async with simulated(settings, BEGIN + 3 * DAY, "BTCUSD", BACKFILL_DAYS="5") as life, life.worker() as sync:
        life.clock.ahead = 3 * DAY
        life.replay.faults[:] = ["server_error:503"] * 500
        await life.minutes(sync, 5)
        assert sync._paused_until is not None
        assert state(life, "BTCUSD")[2] > BEGIN + 3 * DAY
        life.replay.faults.clear()
        life.clock.now -= 3 * DAY
        life.clock.ahead = timedelta()
        await life.minutes(sync, 3)
        assert life.said[-1].startswith("calls: 1 edge")


# Symbols that cannot be had


@on_plain
async def test_a_symbol_that_the_provider_does_not_know_rests_ever_longer(settings: MakeSettings) -> None:
    """And costs the others nothing."""
    async with simulated(settings, BEGIN, "BTCUSD", "ETHUSD") as life, life.worker() as sync:
        with psycopg.connect(url_of(life)) as conn:
            conn.execute("UPDATE market_data.instruments SET ticker = 'X:E/TH' WHERE symbol = 'ETHUSD'")
        attempts: list[datetime] = []
        for _ in range(65):
            seen = len(life.replay.requests)
            await life.minutes(sync)
            fresh = life.replay.requests[seen:]
            attempts += [life.clock() - MINUTE for served in fresh if "X:E/TH" in served.path]
        rests = [(later - earlier) // MINUTE for earlier, later in pairwise(attempts)]
        assert rests == sorted(rests)
        assert rests[0] <= 2
        assert rests[-1] >= 16
        status, message, _ = state(life, "ETHUSD")
        assert (status, message.startswith("HTTP 404")) == ("failed", True)
        await life.assert_equal(SINCE, "BTCUSD", until=life.clock() - MINUTE)


@on_plain
async def test_a_body_that_cannot_be_of_one_symbol_does_not_keep_the_others(
    settings: MakeSettings, monkeypatch: pytest.MonkeyPatch
) -> None:
    async with simulated(settings, BEGIN, "BTCUSD", "ETHUSD", "EURUSD") as life, life.worker() as sync:
        answering(monkeypatch, life, "X:ETHUSD", lambda _, right: msgspec.structs.replace(right, body=b"{"))
        await life.minutes(sync, 20)
        assert counted(life, 0)["X:BTCUSD"] == counted(life, 0)["C:EURUSD"] == 20
        assert counted(life, 0)["X:ETHUSD"] <= 6 * 3
        assert state(life, "ETHUSD")[0] == "failed"
        assert covered(life, "ETHUSD") == Ranges()
        await life.assert_equal(SINCE, "BTCUSD", "EURUSD", until=life.clock() - MINUTE)
        monkeypatch.undo()
        await life.live(sync, life.clock() + 40 * MINUTE, 5 * MINUTE)
        await life.minutes(sync)
        await life.assert_equal(SINCE, "BTCUSD", "ETHUSD", "EURUSD", until=life.clock() - MINUTE)


@on_plain
async def test_a_piece_of_the_past_that_never_comes_keeps_no_other_piece_waiting(
    settings: MakeSettings, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Neither older ones of the same symbol nor those of others; the present goes on as well."""
    bad = at("2024-05-12 00:00")

    def falsely(request: Request, right: Answer) -> Answer:
        *_, start, end = request.path.split("/")
        return Refusal(400, "no").answer() if int(start) <= bad.timestamp() * 1000 <= int(end) else right

    async with simulated(settings, BEGIN, "BTCUSD", "ETHUSD", BACKFILL_DAYS="70") as life, life.worker() as sync:
        answering(monkeypatch, life, "X:BTCUSD", falsely)
        await life.minutes(sync, 25)
        assert covered(life, "ETHUSD") == Ranges.of(
            at("2024-04-03 00:00"), minute_floor(life.clock()) - MINUTE - SETTLE
        )
        hole = Ranges.of(at("2024-05-09 00:00"), at("2024-05-15 14:30"))
        assert covered(life, "BTCUSD") == covered(life, "ETHUSD") - hole
        tries = [span for _, span in life.asked() if bad >= span.start and bad < span.end and span.length < 27 * DAY]
        assert len(tries) <= 5
        monkeypatch.undo()
        await life.live(sync, life.clock() + 40 * MINUTE, 5 * MINUTE)
        assert len(covered(life, "BTCUSD")) == 1
