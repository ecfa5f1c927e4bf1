"""A month of the worker's life at each plan: week-ends, a change of the clocks, outages, corrections and restarts."""

import os
from collections import Counter
from collections.abc import Callable
from datetime import datetime, timedelta
from typing import Any

import numpy as np
import pytest
from psycopg import AsyncConnection

from service import coverage, ledger, query
from service.bars import Bars, from_ms
from service.coverage import MINUTE
from service.db.connect import Database
from service.db.preflight import checked
from service.frames import Ask
from service.instruments import SEED
from service.market_hours import market_of, open_time
from service.proof import Terms
from service.replay import ReplayConfig, ReplayServer, running
from service.settings import Settings
from service.spans import parse
from service.timeframes import Timeframe
from tests.integration.backfilling import asked_ranges
from tests.integration.marketdata import SETTLE, at, wrong_candles
from tests.integration.simulation import Clock, Simulation

BEGIN, END = at("2024-10-21 13:00:20"), at("2024-11-21 13:00:20")
"""Berlin changes its clocks on October 27, New York on November 3."""
KEPT_FROM = at("2024-10-20 00:00")
AWAKE = {"5": (20, 30), "100": (1, 3), "unlimited": (1, 3)}
"""So many passes in a row, a minute apart, before some hours without any: at 5 calls a minute a round takes nine."""
ROUND = {"5": 50, "100": 2, "unlimited": 1}
"""Passes; at 5 calls a minute one of them is a re-check's."""
RATES = ["5", "100", "unlimited"] if "EVERY_PLAN" in os.environ else ["unlimited"]
"""A month takes minutes, at few calls many: `make month` lives it at every plan, the other tests at one."""
OUTAGE_AFTER, OUTAGES = timedelta(days=9), 3


class Month(Simulation):
    """What happens in it."""

    async def run(self) -> None:
        """Live to the end, and three calm days more, in which two re-checks agree on what is gone."""
        outages = [BEGIN + OUTAGE_AFTER * number for number in range(1, OUTAGES + 1)]
        corrections = [BEGIN + timedelta(days=day, hours=5) for day in range(2, 28, 2)]
        while self.clock() < END:
            async with self.worker() as sync:
                for _ in range(self.dice.randrange(5, 30)):
                    if outages and self.clock() >= outages[0]:
                        outages.pop(0)
                        await self._outage(sync)
                    while corrections and self.clock() >= corrections[0]:
                        corrections.pop(0)
                        self._correct()
                    await self._awake(sync)
                    self.clock.now += timedelta(minutes=self.dice.choice([200, 1400]))
        async with self.worker() as sync:
            for rest in (24, 24, 24, 24, 1):
                await self._round(sync)
                self.clock.now += timedelta(hours=rest)
            await self._round(sync)

    async def _round(self, sync: Any) -> None:  # noqa: ANN401 - the worker's own state
        """So many passes, a minute apart, that every symbol's edge and re-check has its turn."""
        await self.live(
            sync, self.clock() + ROUND[str(self.settings.polygon_rate_limit or "unlimited")] * MINUTE, MINUTE
        )

    async def _awake(self, sync: Any) -> None:  # noqa: ANN401 - the worker's own state
        least, most = AWAKE[str(self.settings.polygon_rate_limit or "unlimited")]
        await self.live(sync, self.clock() + self.dice.randrange(least, most) * MINUTE, MINUTE)

    async def _outage(self, sync: Any) -> None:  # noqa: ANN401 - as above
        """Two hours of everything that can go wrong."""
        kinds = ("server_error:503", "rate_limited:empty", "broken_json", "broken_connection", "cut_json")
        self.replay.faults[:] = [self.dice.choice(kinds) for _ in range(5_000)]
        await self.live(sync, self.clock() + timedelta(hours=2), timedelta(minutes=20))
        self.replay.faults.clear()

    def _correct(self) -> None:
        """Bars of the last days change, go, or come; all of them settled long ago."""
        for _ in range(6):
            symbol = self.dice.choice(SEED).symbol
            end = self.clock() - timedelta(hours=12)
            start = max(KEPT_FROM, end - timedelta(days=1))
            bars = self.replay.bars(symbol, start, end)
            if len(bars) > 2:
                place = self.dice.randrange(1, len(bars) - 1)
                minute = from_ms(int(bars.ts[place]))
                if self.dice.random() < 0.5:
                    self.replay.remove(symbol, minute)
                else:
                    self.replay.amend(symbol, minute, close=float(bars.low[place]), open=float(bars.high[place]))


@pytest.mark.slow
@pytest.mark.timeout(1500)
@pytest.mark.parametrize("rate", RATES)
async def test_after_a_month_everything_is_there_and_no_call_was_wasted(
    settings: Callable[..., Settings], rate: str, capsys: pytest.CaptureFixture[str]
) -> None:
    """Every settled bar of 45 symbols as the provider has it by now, every candle as computed from them, no gap."""
    clock = Clock(BEGIN)
    with running(ReplayConfig(now=BEGIN), clock=clock) as replay:
        chosen = settings(
            POLYGON_API_KEY="k",
            POLYGON_BASE_URL=replay.url,
            POLYGON_RATE_LIMIT=rate,
            RETENTION_1M="off",
            BACKFILL_DAYS="1",
            RECHECK_DAYS="8",
        )
        assert chosen.database_url is not None
        async with checked(chosen.database_url, chosen.engine) as db:
            month = Month(db, chosen, replay, clock, seed=len(rate))
            await month.run()
            async with db.connection() as conn:
                await _all_equal(conn, replay, clock())
                assert await wrong_candles(conn, by_level=True) == []
                await _nothing_missing(db, conn, clock())
                corrected = await _one(conn, "SELECT count(*) FROM market_data.bar_revisions")
        assert corrected > 20
        told = _calls(replay, month)
    with capsys.disabled():
        print(f"\n{chosen.engine}, {rate} calls/min: {told}")


async def _all_equal(conn: AsyncConnection[Any], replay: ReplayServer, now: datetime) -> None:
    for one in SEED:
        known = (await ledger.ledgers(conn, [one.symbol]))[0]
        settled = coverage.settled_to(known, now, SETTLE)
        assert settled > now - timedelta(days=4)
        rows = await (
            await conn.execute(
                "SELECT (extract(epoch FROM ts) * 1000)::bigint, open, high, low, close, volume, vwap, trades"
                " FROM market_data.candles_1m WHERE symbol = %s AND ts >= %s AND ts < %s ORDER BY ts",
                (one.symbol, KEPT_FROM, settled),
                binary=True,
            )
        ).fetchall()
        found = np.array(rows, np.float64)
        wanted = replay.bars(one.symbol, KEPT_FROM, settled)
        assert len(found) == len(wanted) > 1000, one.symbol
        for place, name in enumerate(Bars.__struct_fields__):
            theirs = getattr(wanted, name)
            theirs = np.where(theirs < 0, np.nan, theirs) if name == "trades" else theirs
            np.testing.assert_array_equal(found[:, place], theirs.astype(np.float64), f"{one.symbol} {name}")


async def _nothing_missing(db: Database, conn: AsyncConnection[Any], now: datetime) -> None:
    assert await _one(conn, "SELECT count(*) FROM market_data.pending_refreshes") == 0
    assert await _one(conn, "SELECT count(*) FROM market_data.sync_state WHERE error_message IS NOT NULL") == 0
    terms = Terms(now=now, settle=SETTLE, floors=db.engine.floors({}, now))
    for one in SEED:
        for timeframe in (Timeframe.M1, Timeframe.D1):
            asked = Ask(symbol=one.symbol, span=parse(timeframe.value), start=KEPT_FROM, end=now, limit=10)
            answer = (await query.page(conn, terms, asked)).head
            assert (answer.missing, answer.complete) == ((), True), one.symbol


def _calls(replay: ReplayServer, month: Month) -> str:
    """What was asked, and that none of it was for closed or covered time alone."""
    tickers = {one.ticker: one for one in SEED}
    asked = asked_ranges(replay)
    good = sum(month.calls.values())
    closed = [
        (ticker, span) for ticker, span in asked if not open_time(market_of(tickers[ticker].asset_type, ticker), *span)
    ]
    assert closed == []
    rechecks = month.calls["recheck"]
    assert rechecks >= 20 * len(SEED)
    minutes: Counter[str] = Counter()
    for ticker, span in asked:
        minutes[ticker] += span.length // MINUTE
    return (
        f"{len(asked):,} requests, {good:,} of them good ({dict(month.calls)}); least possible for the passes made:"
        f" {month.least:,} edges"
    )


async def _one(conn: AsyncConnection[Any], text: Any) -> int:  # noqa: ANN401 - a literal
    row = await (await conn.execute(text)).fetchone()
    assert row is not None
    return int(row[0])
