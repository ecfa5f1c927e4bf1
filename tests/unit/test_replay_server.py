import argparse
import shlex
import signal
import socket
import subprocess
import sys
from datetime import UTC, datetime, timedelta, timezone
from pathlib import Path
from typing import Any

import httpx
import pytest

from service.errors import UsageError
from service.replay import ReplayConfig, add_arguments, config_from, running

_NOW = datetime(2024, 5, 15, tzinfo=UTC)
_AT = datetime(2024, 5, 14, 10, 0, tzinfo=UTC)
_MINUTE = timedelta(minutes=1)
_HOUR = "/v2/aggs/ticker/C:EURUSD/range/{}/1715680800000/1715684399999?apiKey=k&limit=50000"


def _bar(url: str, span: str = "1/minute", place: int = 0) -> dict[str, Any]:
    bar: dict[str, Any] = httpx.get(url + _HOUR.format(span)).json()["results"][place]
    return bar


def _config(*words: str, api_key: str | None = None) -> ReplayConfig:
    parser = argparse.ArgumentParser()
    add_arguments(parser)
    return config_from(parser.parse_args(words), api_key)


def test_a_running_replay_lists_its_requests() -> None:
    """The context yields where the server listens and what it was asked; after it nothing listens there."""
    with running() as replay:
        assert httpx.get(f"{replay.url}/nothing?x=1").status_code == 401
        assert [(served.path, served.query) for served in replay.requests] == [("/nothing", {"x": "1"})]
    with pytest.raises(httpx.ConnectError):
        httpx.get(replay.url)


def test_bars_can_be_amended_while_it_runs() -> None:
    """A correction shows in the minute itself and in every coarser bar, at once, after the day was rendered."""
    with running(ReplayConfig(now=_NOW)) as replay:
        before = _bar(replay.url)
        replay.amend("EURUSD", _AT + timedelta(seconds=30), close=before["h"])
        replay.amend("EURUSD", _AT, volume=1e9, trades=5)
        assert _bar(replay.url) == {**before, "c": before["h"], "v": 1_000_000_000, "n": 5}
        assert _bar(replay.url, "1/hour")["v"] > 1e9
        assert replay.bars("EURUSD", _AT, _AT + _MINUTE).close.tolist() == [before["h"]]


def test_bars_can_be_removed_and_brought_back_while_it_runs() -> None:
    """A removed bar is gone; amending it brings it back, unchanged but for what is named."""
    with running(ReplayConfig(now=_NOW)) as replay:
        first, second = _bar(replay.url), _bar(replay.url, place=1)
        replay.remove("EURUSD", _AT)
        assert _bar(replay.url) == second
        replay.amend("EURUSD", _AT, trades=3)
        assert _bar(replay.url) == {**first, "n": 3}


def test_bars_can_be_added_to_a_closed_day_and_an_unknown_ticker() -> None:
    """A test may put bars where there are none: on a Saturday, or of a ticker that does not exist."""
    saturday = datetime(2024, 5, 11, 12, tzinfo=UTC)
    with running(ReplayConfig(now=_NOW)) as replay:
        with pytest.raises(ValueError, match="a new bar needs high, low"):
            replay.amend("EURUSD", saturday, open=1.0, close=1.0)
        for symbol in ("EURUSD", "X:NOSUCH"):
            replay.amend(symbol, saturday, open=1.0, high=2.0, low=1.0, close=2.0)
            assert len(replay.bars(symbol, saturday - _MINUTE, saturday + _MINUTE)) == 1
            ticker = {"EURUSD": "C:EURUSD"}.get(symbol, symbol)
            url = f"{replay.url}/v2/aggs/ticker/{ticker}/range/1/minute/2024-05-11/2024-05-11?apiKey=k"
            assert httpx.get(url).json()["resultsCount"] == 1


def test_an_amended_bar_does_not_form() -> None:
    """A correction of the minute that runs is shown as it was given."""
    with running(ReplayConfig(now=_AT + timedelta(seconds=30))) as replay:
        replay.amend("EURUSD", _AT, open=1.0, high=1.5, low=0.5, close=1.2)
        assert _bar(replay.url)["h"] == 1.5


def test_the_clock_can_be_moved() -> None:
    """`now` pins the time and may be set anew; None lets the real time count, and a clock of one's own overrides it."""
    with running(ReplayConfig(now=_AT)) as replay:
        start, end = datetime(2024, 5, 14, tzinfo=UTC), _NOW
        assert replay.bars("BTCUSD", start, end).ts[-1] < _AT.timestamp() * 1000
        replay.now = _AT + timedelta(hours=1)
        assert replay.bars("BTCUSD", start, end).ts[-1] > _AT.timestamp() * 1000
        replay.now = None
        assert len(replay.bars("BTCUSD", datetime.now(UTC) - timedelta(hours=1), datetime.now(UTC))) > 50
    with running(ReplayConfig(now=_AT), clock=lambda: _AT - timedelta(days=1)) as replay:
        assert not len(replay.bars("BTCUSD", start, end))


def test_a_port_in_use_is_a_usage_error() -> None:
    """The line names the option and the address."""
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
        with (
            pytest.raises(UsageError, match=rf"--port: cannot listen on 127\.0\.0\.1:{port}"),
            running(ReplayConfig(port=port)),
        ):
            pass


def test_it_listens_on_ipv6_too() -> None:
    """An address with colons is written in brackets in its URL."""
    try:
        socket.create_server(("::1", 0), family=socket.AF_INET6).close()
    except OSError:
        pytest.skip("this machine has no IPv6")
    with running(ReplayConfig(host="::1")) as replay:
        assert replay.url.startswith("http://[::1]:")
        assert httpx.get(replay.url).status_code == 401


@pytest.mark.parametrize(
    ("stop", "bars", "what"),
    [
        (signal.SIGINT, {}, "synthetic market of 45 instruments"),
        (signal.SIGTERM, {"EURUSD": "bars.csv", "GBPUSD": "bars.csv"}, "2 CSV series"),
    ],
)
def test_the_command_says_where_it_listens_and_ends_cleanly(
    stop: signal.Signals, bars: dict[str, str], what: str, tmp_path: Path
) -> None:
    """One line on stdout once it listens; SIGINT and SIGTERM end it with status 0 and without another word."""
    (tmp_path / "bars.csv").write_text("t,o,h,l,c,v\n60000,1,1,1,1,1\n")
    program = f"""
from pathlib import Path
from service.replay import ReplayConfig, run
run(ReplayConfig(bars={{symbol: Path(file) for symbol, file in {bars}.items()}}))
"""
    with subprocess.Popen(
        [sys.executable, "-c", program], stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, cwd=tmp_path
    ) as process:
        assert process.stdout is not None
        line = process.stdout.readline()
        assert line.startswith(f"replay: {what} on http://127.0.0.1:")
        assert httpx.get(line.split()[-1]).status_code == 401
        process.send_signal(stop)
        assert process.communicate(timeout=10) == ("", "")
        assert process.returncode == 0


def test_without_options_everything_is_at_its_default() -> None:
    """An empty command line is the default configuration, an empty key accepts any key."""
    assert _config(api_key="") == ReplayConfig()


def test_every_option_reaches_its_field() -> None:
    """Each option is read into the unit of its field; times without an offset are UTC."""
    assert _config(
        *shlex.split(
            "--bars EURUSD=a.csv --bars AAPL=b=c.csv.gz --seed 3 --now 2024-05-15 --host 0.0.0.0 --port 9"
            " --history-start 2024-01-01T02:00+02:00 --history-refused --bad-bar EURUSD@2024-01-02T10:00"
            " --latency 2.5 --cache-mb 1 --rate-limit 5 --delay 15 --end-of-day --today-refused --deny I: --deny AAPL"
            " --fault-rate 0.2 --fault-seed 7 --fault-kinds cut_json,server_error:502 --fault-delay 0.1"
        ),
        api_key="k",
    ) == ReplayConfig(
        bars={"EURUSD": Path("a.csv"), "AAPL": Path("b=c.csv.gz")},
        api_key="k",
        seed=3,
        now=_NOW,
        history_start=datetime(2024, 1, 1, 2, tzinfo=timezone(timedelta(hours=2))),
        history_refused=True,
        bad_bars=(("EURUSD", datetime(2024, 1, 2, 10, tzinfo=UTC)),),
        host="0.0.0.0",  # noqa: S104
        port=9,
        latency=2.5,
        cache_mb=1,
        rate_limit=5,
        delay=15,
        end_of_day=True,
        today_refused=True,
        denied=("I:", "AAPL"),
        fault_rate=0.2,
        fault_seed=7,
        fault_kinds=("cut_json", "server_error:502"),
        fault_delay=0.1,
    )


@pytest.mark.parametrize(
    ("words", "says"),
    [
        ("--port none", "--port: 'none' is not a whole number from 0 to 65535"),
        ("--port 70000", "--port: '70000'"),
        ("--rate-limit 0", "--rate-limit: '0'"),
        ("--delay -1", "--delay: '-1'"),
        ("--latency soon", "--latency: 'soon' is not a number"),
        ("--fault-rate 1.5", "--fault-rate: '1.5' is not a number from 0 to 1"),
        ("--fault-rate nan", "--fault-rate: 'nan'"),
        ("--fault-kinds cut_json,quake", "--fault-kinds: unknown fault 'quake'"),
        ("--now noon", "--now: 'noon' is not a time"),
        ("--bars EURUSD", "--bars: 'EURUSD' is not SYMBOL=CSV"),
        ("--bars EURUSD=a --bars EURUSD=b", "--bars: EURUSD is given twice"),
        ("--bad-bar 2024-01-02", "--bad-bar: '2024-01-02' is not SYMBOL@ISO"),
        ("--bad-bar EURUSD@noon", "--bad-bar: 'noon' is not a time"),
    ],
)
def test_a_bad_option_is_named(words: str, says: str) -> None:
    """What cannot be meant is one line that begins with the option."""
    with pytest.raises(UsageError) as caught:
        _config(*words.split())
    assert str(caught.value).startswith(says)
    assert "\n" not in str(caught.value)


def test_no_kinds_of_faults_are_all_of_them() -> None:
    """An empty list of kinds leaves the choice to chance."""
    assert _config("--fault-kinds", "").fault_kinds == ReplayConfig().fault_kinds
