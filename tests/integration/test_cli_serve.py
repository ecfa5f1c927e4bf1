import os
import signal
import subprocess
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import httpx
import psutil
import pytest

from service.replay import ReplayConfig, ReplayServer, running
from tests.integration.backfilling import KEY, command, environment, started

AWAITED = 30.0
"""Seconds after which something that should have happened counts as missing."""


@pytest.fixture
def replay() -> Iterator[ReplayServer]:
    """A provider that takes its time."""
    with running(ReplayConfig(latency=100)) as server:
        yield server


@pytest.fixture
def env(replay: ReplayServer) -> dict[str, str]:
    """The variables of a server that fetches, but for the database."""
    return environment(
        POLYGON_API_KEY=KEY, POLYGON_BASE_URL=replay.url, POLYGON_RATE_LIMIT="unlimited", BACKFILL_DAYS="2", PORT="0"
    )


@contextmanager
def _serving(*words: str, env: dict[str, str]) -> Iterator[tuple["subprocess.Popen[str]", str]]:
    """A server and its URL, as told in its first line."""
    with started(*words, env=env) as process:
        assert process.stdout is not None
        yield process, next(word for word in process.stdout.readline().split() if word.startswith("http://"))


def _get(url: str) -> dict[str, Any]:
    answer = httpx.get(url, timeout=10)
    assert answer.status_code == 200, answer.text
    found: dict[str, Any] = answer.json()
    return found


def _workers(process: "subprocess.Popen[str]") -> list[psutil.Process]:
    return [child for child in psutil.Process(process.pid).children() if "worker" in child.cmdline()]


def _asked_for(replay: ReplayServer) -> None:
    deadline = time.monotonic() + AWAITED
    while not replay.requests:
        assert time.monotonic() < deadline, "nothing is fetched"
        time.sleep(0.05)


def test_serving_ends_with_everything_that_it_started(
    short_tmp: Path, env: dict[str, str], replay: ReplayServer
) -> None:
    """Ctrl-C, and a service manager's TERM to it alone: no embedded server and no worker stays behind."""
    env |= {"DATA_DIR": str(short_tmp / "data"), "BACKFILL_DAYS": "300"}
    assert command("migrate", env=env).returncode == 0
    for send, number in ((os.killpg, signal.SIGINT), (os.kill, signal.SIGTERM)):
        replay.requests.clear()
        with _serving("serve", env=env) as (process, url):
            assert _get(f"{url}/health")["engine"] == "plain"
            _asked_for(replay)
            server = psutil.Process(int((short_tmp / "data/cluster/postmaster.pid").read_text().split()[0]))
            family = [server, *psutil.Process(process.pid).children(recursive=True)]
            assert len(_workers(process)) == 1
            send(process.pid, number)
            _, err = process.communicate(timeout=20)
            assert process.returncode == 130
            *logged, last = err.splitlines()
            assert last == "candlewick: stopped"
            assert all(" INFO service." in line for line in logged), err
            _, alive = psutil.wait_procs(family, 5)
            assert alive == []
    assert not (short_tmp / "data/cluster/postmaster.pid").exists()


def test_ended_while_its_worker_begins_it_leaves_nothing_either(
    database: str, engine: str, env: dict[str, str]
) -> None:
    """However early the signal comes: the same one line, no traceback of the worker's, and no worker."""
    env |= {"DATABASE_URL": database, "ENGINE": engine}
    for seconds in (0.0, 0.2, 0.5):
        with _serving("serve", env=env) as (process, _):
            family = psutil.Process(process.pid).children(recursive=True)
            time.sleep(seconds)
            os.killpg(process.pid, signal.SIGINT)
            _, err = process.communicate(timeout=20)
            assert process.returncode == 130
            assert "Traceback" not in err
            assert err.splitlines().count("candlewick: stopped") >= 1
            _, alive = psutil.wait_procs(family, 5)
            assert alive == []


def test_it_serves_while_it_backfills(database: str, engine: str, env: dict[str, str]) -> None:
    """Answers come from the first moment on, and say that they are not complete until they are."""
    env |= {"DATABASE_URL": database, "ENGINE": engine}
    with _serving("serve", env=env) as (process, url):
        candles = f"{url}/api/candles/XRPUSD?timeframe=1h"
        before = _get(candles)
        assert (before["complete"], before["candles"], before["no_data"]) == (False, [], True)
        deadline = time.monotonic() + AWAITED
        while not _get(candles)["complete"]:
            assert time.monotonic() < deadline
            time.sleep(0.1)
        assert len(_get(candles)["candles"]) > 48
        os.killpg(process.pid, signal.SIGINT)
        process.communicate(timeout=20)
        assert process.returncode == 130


@pytest.mark.parametrize("engine", ["plain"])
def test_without_a_key_it_says_that_nothing_is_fetched(
    database: str, engine: str, env: dict[str, str], replay: ReplayServer
) -> None:
    """In one line before it serves what is there; no worker is started."""
    del env["POLYGON_API_KEY"]
    with started("serve", env=env | {"DATABASE_URL": database, "ENGINE": engine}) as process:
        assert process.stdout is not None
        told = process.stdout.readline()
        assert told == "POLYGON_API_KEY is not set: what is stored is served, and nothing is fetched.\n"
        url = next(word for word in process.stdout.readline().split() if word.startswith("http://"))
        assert _get(f"{url}/api/candles/EURUSD")["no_data"] is True
        assert psutil.Process(process.pid).children() == []
        process.terminate()
        _, err = process.communicate(timeout=20)
        assert (process.returncode, err, replay.requests) == (130, "candlewick: stopped\n", [])


@pytest.mark.parametrize("engine", ["plain"])
def test_a_scheduler_that_is_switched_off_starts_no_worker(
    database: str, engine: str, env: dict[str, str], replay: ReplayServer
) -> None:
    """ENABLE_SYNC_SCHEDULER=false: it serves, without a word about it, and never calls the provider."""
    env |= {"DATABASE_URL": database, "ENGINE": engine, "ENABLE_SYNC_SCHEDULER": "false"}
    with _serving("serve", env=env) as (process, url):
        assert _get(f"{url}/health")["status"] == "ok"
        assert psutil.Process(process.pid).children() == []
        process.terminate()
        out, err = process.communicate(timeout=20)
        assert (process.returncode, out, err, replay.requests) == (130, "", "candlewick: stopped\n", [])


def test_a_replay_ends_on_ctrl_c_as_it_should() -> None:
    """With exit code 0: nothing is lost by stopping it."""
    with _serving("replay", "--now", "2024-06-13", env=environment()) as (process, url):
        assert httpx.get(url).status_code == 401
        process.send_signal(signal.SIGINT)
        _, err = process.communicate(timeout=20)
        assert (process.returncode, err) == (0, "")
