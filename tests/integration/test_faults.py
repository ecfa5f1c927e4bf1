from collections.abc import Callable, Iterator
from datetime import timedelta
from functools import partial
from random import Random

import msgspec
import psycopg
import pytest

from service.bars import to_ms
from service.provider.client import open_client
from service.provider.transport import Retry
from service.ranges import Range, Ranges
from service.replay import HARMLESS, RANDOM_KINDS, ReplayConfig, ReplayServer, running
from service.settings import Settings
from tests.integration.backfilling import (
    KEY,
    NOW,
    TEN,
    assert_same,
    at,
    expected,
    ledger,
    picture,
    run,
    span,
    value,
)

MONTH = span("2024-05-12", "2024-06-11")
TWO_HOURS = span("2024-06-11T10:00", "2024-06-11T12:00")
IN_TRANSIT = (
    *(f"rate_limited:{variant}" for variant in ("plain", "0", "1", "empty")),
    *(f"server_error:{variant}" for variant in ("500", "502", "503")),
    "timeout",
    "broken_connection",
)
"""What a repetition mends; for good after five attempts."""
IN_THE_BODY = (
    *("broken_json", "cut_json", "wrong_types", "page_cycle", "off_minute", "out_of_range", "differing_duplicate"),
    *("nan_price", "high_below_low", "close_outside"),
)
"""Why a body is not to be trusted; for good after three tries, or six if only single bars are at fault."""


@pytest.fixture(autouse=True)
def _impatient(monkeypatch: pytest.MonkeyPatch) -> None:
    """Waits between attempts, and those for an answer, are short."""
    retry = Retry(base=0.01, longest=0.05, longest_asked=0.05, window=0.05)
    monkeypatch.setattr("service.backfill.open_client", partial(open_client, retry=retry, read_timeout=2.0))


@pytest.fixture
def replay() -> Iterator[ReplayServer]:
    """A market whose provider is at fault when a test says so."""
    with running(ReplayConfig(now=NOW, api_key=KEY, fault_delay=0.1)) as server:
        yield server


@pytest.fixture
def chosen(settings: Callable[..., Settings], replay: ReplayServer) -> Settings:
    """Settings for the test's database and the replay."""
    return settings(
        POLYGON_API_KEY=KEY, POLYGON_BASE_URL=replay.url, POLYGON_RATE_LIMIT="unlimited", RETENTION_1M="off"
    )


async def test_no_random_fault_leaves_a_trace(chosen: Settings) -> None:
    """Ten symbols, thirty days, every fault: after enough runs all is as if the provider had never failed."""
    every_kind = Random(1).sample(RANDOM_KINDS, len(RANDOM_KINDS))  # noqa: S311 - repeatable
    config = ReplayConfig(
        now=NOW, faults=tuple(every_kind), fault_rate=0.25, fault_seed=1, fault_delay=0.2, api_key=KEY
    )
    with running(config) as replay:
        faulty = msgspec.structs.replace(chosen, polygon_base_url=replay.url)
        runs = 1
        while (await run(faulty, TEN, MONTH)).failures:
            runs += 1
            assert runs < 10
        assert {(served.fault or "none").split(":")[0] for served in replay.requests} == {*RANDOM_KINDS, "none"}
        assert_same(picture(chosen.database_url or ""), expected(replay, TEN, MONTH))
        calls = len(replay.requests)
        assert (await run(faulty, TEN, MONTH)).requests == 0
        assert len(replay.requests) == calls
    url = chosen.database_url or ""
    for symbol in TEN:
        sets = {"wanted": Ranges([MONTH]), "covered": Ranges([MONTH]), "unavailable": Ranges()}
        assert ledger(url, symbol) == sets
    assert value(url, "SELECT count(*) FROM market_data.rejected_bars") == 0
    assert value(url, "SELECT count(*) FROM market_data.pending_refreshes") == 0
    assert value(url, "SELECT count(*) FROM market_data.sync_state WHERE error_message IS NOT NULL") == 0


async def test_each_fault_on_its_own_costs_a_call_and_nothing_else(chosen: Settings, replay: ReplayServer) -> None:
    """Whatever happens once is asked again, harmless oddities are put up with, and the bars are the provider's."""
    url = chosen.database_url or ""
    odd = [kind for kind in HARMLESS if kind != "vw_outside"]
    midnight, hour = at("2024-06-11"), timedelta(hours=1)
    for place, fault in enumerate((*IN_TRANSIT, *IN_THE_BODY, *odd)):
        replay.faults.append(fault)
        asked = Range(midnight + place * hour, midnight + (place + 1) * hour)
        done = await run(chosen, ["BTCUSD"], asked)
        assert (done.failures, done.stored.rejected) == ({}, 0), fault
        assert done.requests == (1 if fault in odd else 2), fault
        assert ledger(url, "BTCUSD")["covered"] == Ranges.of(midnight, asked.end), fault
    assert_same(picture(url), expected(replay, ["BTCUSD"], Range(midnight, asked.end)))


async def test_an_average_price_beyond_high_and_low_is_kept_as_sent(chosen: Settings, replay: ReplayServer) -> None:
    """The provider's averages count trades that its highs and lows leave out: such a bar is no fault."""
    replay.faults.append("vw_outside")
    done = await run(chosen, ["BTCUSD"], TWO_HOURS)
    assert (done.failures, done.requests, done.stored.rejected) == ({}, 1, 0)
    query = "SELECT count(*) FROM market_data.candles_1m WHERE vwap > high"
    assert value(chosen.database_url or "", query) == 1


async def test_a_fault_that_stays_is_told_and_nothing_is_stored(chosen: Settings, replay: ReplayServer) -> None:
    """The reason names the request and not the key; no bar, no coverage; what was asked for stays wanted."""
    url = chosen.database_url or ""
    first = to_ms(TWO_HOURS.start)
    for fault in (*IN_TRANSIT, *IN_THE_BODY):
        before = len(replay.requests)
        replay.faults[:] = [fault] * 20
        done = await run(chosen, ["BTCUSD"], TWO_HOURS)
        calls = len(replay.requests) - before
        assert calls == done.requests
        single_bars = fault in {"nan_price", "high_below_low", "close_outside"}
        assert calls == (5 if fault in IN_TRANSIT else 6 if single_bars else 3), fault
        reason = done.failures["BTCUSD"]
        assert f"[GET {replay.url}/v2/aggs/ticker/X:BTCUSD/range/1/minute/{first}/" in reason, fault
        assert KEY not in reason
        assert "\n" not in reason
        assert value(url, "SELECT error_message FROM market_data.sync_state WHERE symbol = 'BTCUSD'") == reason
    assert picture(url) == {}
    assert ledger(url, "BTCUSD") == {
        "wanted": Ranges([TWO_HOURS]),
        "covered": Ranges(),
        "unavailable": Ranges(),
    }
    assert value(url, "SELECT count(*) FROM market_data.changes") == 0
    replay.faults.clear()
    assert (await run(chosen, ["BTCUSD"], TWO_HOURS)).failures == {}
    assert_same(picture(url), expected(replay, ["BTCUSD"], TWO_HOURS))
    assert (
        value(url, "SELECT status || coalesce(error_message, '') FROM market_data.sync_state WHERE symbol = 'BTCUSD'")
        == "ok"
    )


async def test_a_bar_that_stays_impossible_costs_only_its_own_minute(chosen: Settings, replay: ReplayServer) -> None:
    """Seen three times alike it is kept as it came; its minute is unavailable, and the rest of the range is stored."""
    url, minute = chosen.database_url or "", at("2024-06-11T11:07")
    with running(ReplayConfig(now=NOW, bad_bars=(("BTCUSD", minute),))) as spoilt:
        faulty = msgspec.structs.replace(chosen, polygon_base_url=spoilt.url)
        done = await run(faulty, ["BTCUSD"], TWO_HOURS)
        assert (done.failures, done.requests, done.stored.rejected) == ({}, 3, 1)
        bad = Ranges.of(minute, minute + timedelta(minutes=1))
        assert ledger(url, "BTCUSD") == {
            "wanted": Ranges([TWO_HOURS]),
            "covered": Ranges([TWO_HOURS]) - bad,
            "unavailable": bad,
        }
        with psycopg.connect(url) as conn:
            rows = conn.execute("SELECT symbol, ts, raw, reason FROM market_data.rejected_bars").fetchall()
            ((symbol, ts, raw, reason),) = rows
        assert (symbol, ts) == ("BTCUSD", minute)
        assert "high is below low" in reason
        assert msgspec.json.decode(raw)["h"] < msgspec.json.decode(raw)["l"]
        assert (await run(faulty, ["BTCUSD"], TWO_HOURS)).requests == 0
    replay.remove("BTCUSD", minute)
    assert_same(picture(url), expected(replay, ["BTCUSD"], TWO_HOURS))
