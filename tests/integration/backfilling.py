"""What the tests of the backfill share: the command as users run it, and candles computed without the database."""

import os
import signal
import subprocess
import sysconfig
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from datetime import UTC, datetime
from pathlib import Path
from typing import LiteralString

import numpy as np
import psycopg
from numpy.typing import NDArray
from psycopg import sql

from service.backfill import backfill
from service.bars import Bars
from service.coverage import Piece
from service.db.connect import as_ranges
from service.db.preflight import checked
from service.plan import Plan, Summary
from service.ranges import Range, Ranges
from service.replay import ReplayServer
from service.settings import SETTINGS, Settings
from service.store import Stored
from service.timeframes import AGGREGATED, Timeframe

KEY = "k3y-that-nobody-may-see"
NOW = datetime(2024, 6, 13, 10, 30, tzinfo=UTC)
"""A Thursday; the clock of backfills within a test."""
TEN = ("EURUSD", "GBPUSD", "USDJPY", "XAUUSD", "SPX500", "DAX40", "BTCUSD", "ETHUSD", "SOLUSD", "DOGEUSD")
Picture = dict[tuple[str, str], Bars]
"""By symbol and timeframe: all candles of a database, or those that it should hold."""


def at(text: str) -> datetime:
    """An instant in UTC: `at("2024-06-01T10:00")`."""
    return datetime.fromisoformat(text).replace(tzinfo=UTC)


def span(start: str, end: str) -> Range:
    """A half-open range in UTC."""
    return Range(at(start), at(end))


class Recorder:
    """A watcher that keeps what it was told."""

    def __init__(self) -> None:
        self.plans: list[Plan] = []
        self.pieces: list[Piece] = []
        self.reasons: list[str] = []
        self.waited = False

    def planned(self, plan: Plan) -> None:
        self.plans.append(plan)

    def waiting(self) -> None:
        self.waited = True

    def stored(self, piece: Piece, stored: Stored) -> None:
        del stored
        self.pieces.append(piece)

    def failed(self, piece: Piece, reason: str) -> None:
        del piece
        self.reasons.append(reason)

    def refreshing(self) -> None:
        pass


async def run(
    settings: Settings,
    symbols: Sequence[str] | None,
    asked: Range,
    *,
    watcher: Recorder | None = None,
    clock: Callable[[], datetime] = lambda: NOW,
) -> Summary:
    """One backfill in this process."""
    assert settings.database_url is not None
    async with checked(settings.database_url, settings.engine) as db:
        return await backfill(db, settings, symbols, asked, watcher=watcher or Recorder(), clock=clock)


def picture(url: str) -> Picture:
    """All that the six relations hold."""
    found: Picture = {}
    with psycopg.connect(url) as conn:
        for timeframe in Timeframe:
            query = sql.SQL(_ALL).format(sql.Identifier("market_data", timeframe.table))
            rows = conn.execute(query, binary=True).fetchall()
            symbols = np.array([row[0] for row in rows])
            table = np.array([row[1:] for row in rows], np.float64).reshape(-1, 8)
            for symbol in np.unique(symbols):
                found[str(symbol), timeframe.value] = _bars(table[symbols == symbol])
    return found


def expected(replay: ReplayServer, symbols: Sequence[str], asked: Range) -> Picture:
    """What a database holds after all of this was fetched: computed by numpy from the minutes alone."""
    found: Picture = {}
    for symbol in symbols:
        minutes = replay.bars(symbol, asked.start, asked.end)
        found[symbol, Timeframe.M1.value] = minutes
        found |= {(symbol, timeframe.value): _aggregate(minutes, timeframe) for timeframe in AGGREGATED}
    return found


def assert_same(found: Picture, wanted: Picture) -> None:
    """Every candle there and no other; o h l c n to the last bit, v and vw to 1e-9."""
    assert sorted(found) == sorted(wanted)
    for key, bars in wanted.items():
        assert len(found[key]) == len(bars) > 0, key
        for name in Bars.__struct_fields__:
            tolerance = 1e-9 if name in {"volume", "vwap"} and key[1] != Timeframe.M1.value else 0.0
            np.testing.assert_allclose(
                getattr(found[key], name), getattr(bars, name), rtol=tolerance, atol=0, err_msg=f"{key} {name}"
            )


def ledger(url: str, symbol: str) -> dict[str, Ranges]:
    """The ledger's sets of one symbol."""
    with psycopg.connect(url) as conn:
        row = conn.execute(
            "SELECT wanted, covered, unavailable FROM market_data.sync_state WHERE symbol = %s", [symbol]
        ).fetchone()
    assert row is not None
    return dict(zip(("wanted", "covered", "unavailable"), map(as_ranges, row), strict=True))


def value(url: str, query: LiteralString, *arguments: object) -> object:
    """The one value that a query returns."""
    with psycopg.connect(url) as conn:
        row = conn.execute(query, arguments).fetchone()
    assert row is not None
    return row[0]


def asked_ranges(replay: ReplayServer) -> list[tuple[str, Range]]:
    """Ticker and range of every request, in the order of their arrival."""
    found = []
    for served in replay.requests:
        *_, ticker, _range, _one, _minute, first, last = served.path.split("/")
        start, end = (datetime.fromtimestamp(int(ms) / 1000, UTC) for ms in (int(first), int(last) + 60_000))
        found.append((ticker, Range(start, end)))
    return found


def environment(**changes: str) -> dict[str, str]:
    """The variables of a command: none of the settings but those given."""
    own = {setting.name for setting in SETTINGS}
    return {name: text for name, text in os.environ.items() if name not in own} | changes


@contextmanager
def started(*words: str, env: Mapping[str, str], output: int = subprocess.PIPE) -> Iterator["subprocess.Popen[str]"]:
    """`candlewick` with these words in a process group of its own; killed at the end if it is still there.

    Where the test fails meanwhile, what it has logged is in the report.
    """
    program = Path(sysconfig.get_path("scripts")) / "candlewick"
    with subprocess.Popen(
        [program, *words], env=env, text=True, stdout=output, stderr=subprocess.PIPE, start_new_session=True
    ) as process:
        try:
            yield process
        except BaseException:
            _kill(process)
            if process.stderr is not None and not process.stderr.closed:
                print(process.stderr.read())  # noqa: T201 - pytest shows it
            raise
        finally:
            _kill(process)


def _kill(process: "subprocess.Popen[str]") -> None:
    if process.poll() is None:
        os.killpg(process.pid, signal.SIGKILL)


def command(*words: str, env: Mapping[str, str], seconds: float = 60) -> "subprocess.CompletedProcess[str]":
    """`candlewick` with these words, run to its end."""
    with started(*words, env=env) as process:
        out, err = process.communicate(timeout=seconds)
        return subprocess.CompletedProcess(words, process.returncode, out, err)


def _bars(table: NDArray[np.float64]) -> Bars:
    ts, open_, high, low, close, volume, vwap, trades = table.T
    return Bars(
        ts=ts.astype(np.int64),
        open=open_,
        high=high,
        low=low,
        close=close,
        volume=volume,
        vwap=vwap,
        trades=np.nan_to_num(trades, nan=-1).astype(np.int64),
    )


def _aggregate(minutes: Bars, timeframe: Timeframe) -> Bars:
    length = round(timeframe.length.total_seconds() * 1000)
    starts, first = np.unique(minutes.ts // length * length, return_index=True)
    last = np.append(first[1:], len(minutes)) - 1
    volume = np.add.reduceat(minutes.volume, first)
    return Bars(
        ts=starts,
        open=minutes.open[first],
        high=np.maximum.reduceat(minutes.high, first),
        low=np.minimum.reduceat(minutes.low, first),
        close=minutes.close[last],
        volume=volume,
        vwap=np.add.reduceat(minutes.vwap * minutes.volume, first) / volume,
        trades=np.maximum(np.add.reduceat(minutes.trades, first), -1),
    )


_ALL: LiteralString = """
    SELECT symbol, extract(epoch FROM ts)::bigint * 1000, open, high, low, close, volume, vwap, trades
    FROM {} ORDER BY symbol, ts
"""
