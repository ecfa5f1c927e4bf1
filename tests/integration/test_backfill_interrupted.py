import os
import signal
import subprocess
import time
from collections.abc import Iterator
from pathlib import Path

import psycopg
import pytest

from service.db import embedded
from service.replay import ReplayConfig, ReplayServer, running
from tests.integration.backfilling import (
    KEY,
    TEN,
    assert_same,
    command,
    environment,
    expected,
    picture,
    span,
    started,
    value,
)

WORDS = ("backfill", *TEN, "--from", "2024-01-01", "--to", "2024-06-11")
LIMIT = 2.0
"""Seconds; on a machine of its own it takes a third of one."""
GOES_ON = "Stopped. What was stored stays; the same command goes on from there."


@pytest.fixture
def replay() -> Iterator[ReplayServer]:
    """A provider that takes its time."""
    with running(ReplayConfig(latency=200)) as server:
        yield server


@pytest.fixture
def provider(replay: ReplayServer) -> dict[str, str]:
    """The variables that lead a command to the replay."""
    return {
        "POLYGON_API_KEY": KEY,
        "POLYGON_BASE_URL": replay.url,
        "POLYGON_RATE_LIMIT": "unlimited",
        "RETENTION_1M": "off",
    }


def _stopped_after(seconds: float, number: int, process: "subprocess.Popen[str]") -> float:
    """Send a signal to its process group, as a terminal does, so long after its plan; how long it took to end well."""
    assert process.stdout is not None
    assert process.stdout.readline().startswith("Backfill of ")
    time.sleep(seconds)
    began = time.monotonic()
    os.killpg(process.pid, number)
    out, err = process.communicate(timeout=20)
    took = time.monotonic() - began
    assert (process.returncode, err) == (130, "")
    assert out.splitlines()[-1] == GOES_ON
    return took


@pytest.mark.parametrize(
    ("engine", "number"),
    [
        ("plain", signal.SIGINT),
        ("plain", signal.SIGTERM),
        pytest.param("timescaledb", signal.SIGINT, marks=pytest.mark.timescaledb),
    ],
)
def test_ctrl_c_ends_it_within_a_second_and_says_how_to_go_on(
    database: str, engine: str, provider: dict[str, str], replay: ReplayServer, number: int
) -> None:
    """In the middle of writing and refreshing, by Ctrl-C or by TERM: exit code 130, and only whole pieces are there."""
    env = environment(**provider, DATABASE_URL=database, ENGINE=engine)
    for seconds in (0.2, 1.0):
        with started(*WORDS, env=env) as process:
            assert _stopped_after(seconds, number, process) < LIMIT
    with psycopg.connect(database) as conn:
        rows = conn.execute(_COVERED, [list(TEN)]).fetchall()
    for symbol, covered, bars in rows:
        assert bars == sum(len(replay.bars(symbol, part.lower, part.upper)) for part in covered)
    assert value(database, _CLIENTS) == 1, "we alone"


@pytest.mark.slow
def test_ctrl_c_stops_the_embedded_database_in_good_order(
    short_tmp: Path, provider: dict[str, str], replay: ReplayServer
) -> None:
    """Within the same second; the next start finds nothing to recover, and the same command ends what was begun."""
    cluster, few = short_tmp / "data/cluster", ("EURUSD", "SPX500", "BTCUSD")
    words = ("backfill", *few, "--from", "2024-05-01", "--to", "2024-06-11")
    env = environment(**provider, DATA_DIR=str(short_tmp / "data"))
    assert command("migrate", env=env).returncode == 0
    for seconds in (0.15, 0.35):
        with started(*words, env=env) as process:
            assert _stopped_after(seconds, signal.SIGINT, process) < LIMIT
        assert not (cluster / "postmaster.pid").exists()
        assert "database system is shut down" in (cluster / "server.log").read_text().splitlines()[-1]
    done = command(*words, env=env)
    assert (done.returncode, done.stderr) == (0, "")
    with embedded.start(short_tmp / "data") as held:
        assert_same(picture(held.url), expected(replay, few, span("2024-05-01", "2024-06-11")))
        assert "was not properly shut down" not in (cluster / "server.log").read_text()


_COVERED = """
    SELECT symbol, covered, (SELECT count(*) FROM market_data.candles_1m AS c WHERE c.symbol = s.symbol)
    FROM market_data.sync_state AS s WHERE s.symbol = ANY(%s)
"""
_CLIENTS = """
    SELECT count(*) FROM pg_stat_activity WHERE datname = current_database() AND backend_type = 'client backend'
"""
