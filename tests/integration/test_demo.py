import os
import signal
import subprocess
from pathlib import Path

import httpx
import psutil
import pytest

from tests.integration.backfilling import command, environment, started

TIMEFRAMES = ("1m", "5m", "15m", "1h", "4h", "1d")
MARKETS = ("EURUSD", "XAUUSD", "BTCUSD", "SPX500")


def _until_it_serves(process: "subprocess.Popen[str]") -> tuple[list[str], str]:
    """What it says until then, and its URL."""
    assert process.stdout is not None
    said = []
    for line in process.stdout:
        said.append(line.rstrip("\n"))
        if line.startswith("candlewick "):
            return said, next(word for word in line.split() if word.startswith("http://"))
    raise AssertionError("\n".join(said))


@pytest.mark.slow
def test_the_demo_needs_nothing_and_leaves_nothing_running(short_tmp: Path) -> None:
    """Invented candles of all markets and timeframes that say so; on Ctrl-C all ends, and the next start goes on."""
    env = environment(DATA_DIR=str(short_tmp / "data"), PORT="0", BACKFILL_DAYS="7", POLYGON_API_KEY="never-used")
    with started("demo", env=env) as process:
        said, url = _until_it_serves(process)
        assert said[0].startswith("DEMO: every price is invented")
        assert said.count(said[0]) == 2, "before and after what scrolls by"
        assert said[1].startswith("Backfill of 45 symbols, ")
        assert f"Try {url}/api/candles/EURUSD?timeframe=1h" in said
        for symbol in MARKETS:
            for timeframe in TIMEFRAMES:
                answer = httpx.get(f"{url}/api/candles/{symbol}", params={"timeframe": timeframe, "limit": "3"})
                assert answer.headers["X-Data-Source"].startswith("synthetic (replay:synthetic): invented prices")
                assert len(answer.json()["candles"]) == 3, (symbol, timeframe)
        assert httpx.get(f"{url}/health").json()["source"] == "replay:synthetic"
        family = psutil.Process(process.pid).children(recursive=True)
        for word in ("replay", "worker"):
            assert any(word in member.cmdline() for member in family)
        family.append(psutil.Process(int((short_tmp / "data-demo/cluster/postmaster.pid").read_text().split()[0])))
        os.killpg(process.pid, signal.SIGINT)
        _, err = process.communicate(timeout=10)
        assert (process.returncode, err.splitlines()[-1]) == (130, "candlewick: stopped")
        assert "Traceback" not in err
        _, alive = psutil.wait_procs(family, 3)
        assert alive == []
    assert not (short_tmp / "data").exists(), "a folder of its own"

    with started("demo", env=env) as process:
        said, url = _until_it_serves(process)
        assert int(next(line.split()[1].replace(",", "") for line in said if line.startswith("Bars: "))) < 10_000
        assert httpx.get(f"{url}/api/candles/BTCUSD", params={"timeframe": "1d", "limit": "3"}).status_code == 200
        family = psutil.Process(process.pid).children(recursive=True)
        process.terminate()
        process.communicate(timeout=10)
        _, alive = psutil.wait_procs(family, 3)
        assert (process.returncode, alive) == (130, [])
        assert not (short_tmp / "data-demo/cluster/postmaster.pid").exists()


def test_the_demo_checks_its_settings_like_every_command() -> None:
    """A busy port or a wrong number ends it in one line, with exit code 2."""
    done = command("demo", env=environment(BACKFILL_DAYS="many"))
    assert (done.returncode, done.stderr.count("\n")) == (2, 1)
    assert done.stderr.startswith("candlewick: BACKFILL_DAYS: 'many' is refused")
