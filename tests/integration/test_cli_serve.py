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

from service.replay import ReplayConfig, running
from tests.integration.backfilling import KEY, command, environment, started


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


def test_serving_ends_with_everything_that_it_started(short_tmp: Path) -> None:
    """Ctrl-C, and a service manager's TERM to it alone: no embedded server and no backfill stays behind."""
    with running(ReplayConfig(latency=300)) as replay:
        env = environment(
            DATA_DIR=str(short_tmp / "data"),
            POLYGON_API_KEY=KEY,
            POLYGON_BASE_URL=replay.url,
            POLYGON_RATE_LIMIT="unlimited",
            BACKFILL_DAYS="60",
            PORT="0",
        )
        assert command("migrate", env=env).returncode == 0
        for send, number in ((os.killpg, signal.SIGINT), (os.kill, signal.SIGTERM)):
            replay.requests.clear()
            with _serving("serve", "--backfill", env=env) as (process, url):
                assert _get(f"{url}/health")["engine"] == "plain"
                server = psutil.Process(int((short_tmp / "data/cluster/postmaster.pid").read_text().split()[0]))
                family = [server, *psutil.Process(process.pid).children(recursive=True)]
                assert any("backfill" in member.cmdline() for member in family)
                deadline = time.monotonic() + 20
                while not replay.requests:
                    assert time.monotonic() < deadline
                    time.sleep(0.05)
                send(process.pid, number)
                _, err = process.communicate(timeout=20)
                assert (process.returncode, err) == (130, "candlewick: stopped\n")
                _, alive = psutil.wait_procs(family, 5)
                assert alive == []


def test_it_serves_while_it_backfills(database: str, engine: str) -> None:
    """Answers come from the first moment on, and say that they are not complete until they are."""
    with running(ReplayConfig(latency=100)) as replay:
        env = environment(
            DATABASE_URL=database,
            ENGINE=engine,
            POLYGON_API_KEY=KEY,
            POLYGON_BASE_URL=replay.url,
            POLYGON_RATE_LIMIT="unlimited",
            BACKFILL_DAYS="2",
            PORT="0",
        )
        with _serving("serve", "--backfill", env=env) as (process, url):
            candles = f"{url}/api/candles/XRPUSD?timeframe=1h"
            before = _get(candles)
            assert (before["complete"], before["candles"], before["no_data"]) == (False, [], True)
            deadline = time.monotonic() + 30
            while not _get(candles)["complete"]:
                assert time.monotonic() < deadline
                time.sleep(0.1)
            assert len(_get(candles)["candles"]) > 48
            os.killpg(process.pid, signal.SIGINT)
            out, _ = process.communicate(timeout=20)
            assert process.returncode == 130
            assert "Backfill of 45 symbols, " in out


def test_a_replay_ends_on_ctrl_c_as_it_should() -> None:
    """With exit code 0: nothing is lost by stopping it."""
    with _serving("replay", "--now", "2024-06-13", env=environment()) as (process, url):
        assert httpx.get(url).status_code == 401
        process.send_signal(signal.SIGINT)
        _, err = process.communicate(timeout=20)
        assert (process.returncode, err) == (0, "")
