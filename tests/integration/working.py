"""What the tests of the worker share: a few symbols to keep up to date, and what must be there in the end."""

import subprocess
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from datetime import datetime
from typing import LiteralString

import psycopg

from service.db.connect import FETCHER_LOCK
from service.ledger import REQUESTS
from service.ranges import Range
from service.replay import ReplayServer
from tests.integration.backfilling import Picture, assert_same, expected, picture, started, value

SYMBOLS = ("BTCUSD", "DAX40", "EURUSD", "SPX500")
AWAITED = 60.0
"""Seconds after which something that should have happened counts as missing; far more than it takes."""


def wait_until(happened: Callable[[], object], what: str, seconds: float = AWAITED) -> float:
    """Poll until it happened; how many seconds that took."""
    began = time.monotonic()
    while not happened():
        assert time.monotonic() - began < seconds, f"not within {seconds:.0f} s: {what}"
        time.sleep(0.02)
    return time.monotonic() - began


def keep_only(url: str, symbols: Sequence[str] = SYMBOLS) -> str:
    """Switch all other symbols off."""
    with psycopg.connect(url) as conn:
        conn.execute("UPDATE market_data.instruments SET active = symbol = ANY(%s)", [list(symbols)])
    return url


@contextmanager
def working(env: dict[str, str], url: str) -> Iterator["subprocess.Popen[str]"]:
    """`candlewick worker`, from the moment on at which it is the one that calls."""
    with started("worker", env=env) as process:
        holds(url, process.pid)
        yield process


def holds(url: str, pid: int) -> float:
    """Wait until this process is the one that calls; how many seconds that took."""
    return wait_until(lambda: holder(url) == pid, f"process {pid} is the worker")


def holder(url: str) -> object:
    """The process that said last that it is the worker."""
    return value(url, "SELECT (SELECT pid FROM market_data.worker)")


def calls_made(replay: ReplayServer, count: int) -> None:
    """Wait until the provider was asked so often."""
    wait_until(lambda: len(replay.requests) >= count, f"{count} calls")


def end(process: "subprocess.Popen[str]", number: int) -> tuple[float, str]:
    """End a worker by a signal; how many seconds it took, and what it logged."""
    began = time.monotonic()
    process.send_signal(number)
    process.wait(30)
    took = time.monotonic() - began
    out, err = process.communicate(timeout=20)
    assert (process.returncode, out) == (130, "Stopped.\n")
    assert "Traceback" not in err
    return took, err


def up_to_date(url: str) -> bool:
    """Whether all that can be settled is covered for every active symbol, and every aggregate shows it."""
    return value(url, _UP_TO_DATE) is True


def finish(url: str) -> None:
    """Wait until all is up to date."""
    wait_until(lambda: up_to_date(url), "all is up to date")


def assert_undisturbed(url: str, replay: ReplayServer) -> None:
    """Bars and candles are the provider's own up to the last look at each symbol, each stored once. Nobody writes."""
    wanted: Picture = {}
    for symbol, start, stop in _tracked(url):
        wanted |= expected(replay, [symbol], Range(start, stop))
    assert_same(picture(url), wanted)
    assert value(url, "SELECT count(*) FROM market_data.pending_refreshes") == 0
    assert value(url, "SELECT count(*) FROM market_data.bar_revisions") == 0
    changes = "SELECT count(*) - count(DISTINCT (symbol, range)) FROM market_data.changes"
    assert value(url, changes) == 0, "something was written twice"


def break_lock(url: str) -> None:
    """End the connection of the process that calls."""
    with psycopg.connect(url, autocommit=True) as conn:
        assert conn.execute(_BREAK_LOCK, [FETCHER_LOCK]).fetchall() == [(True,)]


def ask_further_back(url: str, days: int) -> None:
    """Widen what is wanted of every active symbol, and tell the worker."""
    with psycopg.connect(url) as conn:
        conn.execute(_WIDEN, [days])
        conn.execute(f"NOTIFY {REQUESTS}")


def _tracked(url: str) -> list[tuple[str, datetime, datetime]]:
    with psycopg.connect(url) as conn:
        return conn.execute(_TRACKED).fetchall()


_TRACKED: LiteralString = """
    SELECT symbol, lower(wanted), asked_to
    FROM market_data.sync_state JOIN market_data.instruments USING (symbol) WHERE active ORDER BY symbol
"""
_WIDEN: LiteralString = """
    UPDATE market_data.sync_state AS s SET wanted = s.wanted
        + tstzmultirange(tstzrange(lower(s.wanted) - make_interval(days => %s), upper(s.wanted)))
    FROM market_data.instruments AS i WHERE i.symbol = s.symbol AND active AND NOT isempty(wanted)
"""
# By the clock of the last look: what has settled since then is the next pass's.
_UP_TO_DATE: LiteralString = """
    SELECT NOT EXISTS (
        SELECT FROM market_data.sync_state JOIN market_data.instruments USING (symbol)
        WHERE active AND (asked_at IS NULL OR NOT isempty(
            wanted * tstzmultirange(tstzrange(NULL, greatest(
                asked_at - interval '36 hours 1 minute',
                least(date_trunc('minute', asked_at - interval '15 minutes'), last_bar + interval '1 minute')
            ))) - covered - unavailable))
    ) AND NOT EXISTS (SELECT FROM market_data.pending_refreshes)
"""
_BREAK_LOCK: LiteralString = """
    SELECT pg_terminate_backend(pid) FROM pg_locks
    WHERE locktype = 'advisory' AND granted AND (classid::bigint << 32) + objid::bigint = %s
        AND database = (SELECT oid FROM pg_database WHERE datname = current_database())
"""
