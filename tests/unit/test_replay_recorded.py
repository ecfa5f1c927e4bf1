import gzip
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import msgspec
import numpy as np
import pytest

from service.errors import UsageError
from service.provider_calls.request import Request
from service.replay.app import ReplayApp
from service.replay.config import ReplayConfig
from service.replay.market import market_of
from service.replay.recorded import RecordedMarket, read_csv

_DATA = Path(__file__).parents[3] / "shared" / "data"


def _file(name: str) -> Path:
    file = _DATA / name
    if not file.is_file():
        pytest.skip(f"golden data absent: {file}")
    return file


def _bars(bars: dict[str, Path], ticker: str, span: str) -> list[dict[str, Any]]:
    """All bars of a replayed file, through all of its pages."""
    config = ReplayConfig(bars=bars, now=datetime(2024, 1, 1, tzinfo=UTC))
    app = ReplayApp(config, market_of(config), clock=lambda: datetime(2024, 1, 1, tzinfo=UTC))
    path, query, found = f"/v2/aggs/ticker/{ticker}/range/{span}/0/2030-01-01", {"limit": "50000"}, []
    while path:
        answer = app.answer(Request(method="GET", path=path, query=query, base="", bearer="key"))
        page = msgspec.json.decode(answer.body)
        assert answer.status == 200
        found += page.get("results", [])
        path, _, cursor = page.get("next_url", "").partition("?cursor=")
        query = {"cursor": cursor}
    return found


def _lines(file: Path) -> list[list[str]]:
    return [line.split(",") for line in gzip.decompress(file.read_bytes()).decode().split()[1:]]


def test_recorded_minutes_come_out_as_published() -> None:
    """Every minute of the EURUSD file is served with its prices to the last digit, and no volume is invented."""
    file = _file("eurusd_fxcm_bid_1m.csv.gz")
    bars = _bars({"EURUSD": file}, "C:EURUSD", "1/minute")
    assert [[bar["t"], bar["o"], bar["h"], bar["l"], bar["c"]] for bar in bars] == [
        [int(t), *map(float, prices)] for t, *prices, _ in _lines(file)
    ]
    assert {key for bar in bars for key in bar} == {"t", "o", "h", "l", "c"}


def test_recorded_hours_equal_the_publisher_s_own() -> None:
    """Hourly bars made of the minutes are the hourly bars that the publisher made, 364 of 364."""
    bars = _bars({"EURUSD": _file("eurusd_fxcm_bid_1m.csv.gz")}, "C:EURUSD", "1/hour")
    hours = _lines(_file("eurusd_fxcm_bid_1h.csv.gz"))
    assert len(hours) == 364
    assert [[bar["t"], bar["o"], bar["h"], bar["l"], bar["c"]] for bar in bars] == [
        [int(t), *map(float, prices)] for t, *prices, _ in hours
    ]


def test_recorded_days_equal_the_publisher_s_own() -> None:
    """Daily bars of BTCUSD equal the publisher's, volume included; there is no vwap where the file has none."""
    bars = _bars({"X:BTCUSD": _file("btcusd_coinbase_1m.csv.gz")}, "X:BTCUSD", "1/day")
    days = _lines(_file("btcusd_coinbase_1d.csv.gz"))
    assert len(days) == 9
    for bar, (t, o, h, low, c, v) in zip(bars, days, strict=True):
        assert (bar["t"], bar["o"], bar["h"], bar["l"], bar["c"]) == (int(t), float(o), float(h), float(low), float(c))
        assert bar["v"] == pytest.approx(float(v), abs=1e-7)
        assert set(bar) == {"t", "o", "h", "l", "c", "v"}


def test_optional_columns_are_served_where_they_are_filled(tmp_path: Path) -> None:
    """A file may bring vw and n, in any order of columns and rows; a missing value is a missing key."""
    file = tmp_path / "bars.csv"
    file.write_text("n,vw,t,o,h,l,c,v\n,,120000,2,2,2,2,\n7,1.25,60000,1,1.5,1,1.5,3.5\n")
    first, second = _bars({"ANY": file}, "ANY", "1/minute")
    assert first == {"v": 3.5, "vw": 1.25, "o": 1.0, "c": 1.5, "h": 1.5, "l": 1.0, "t": 60_000, "n": 7}
    assert second == {"o": 2.0, "c": 2.0, "h": 2.0, "l": 2.0, "t": 120_000}


def test_only_the_files_exist(tmp_path: Path) -> None:
    """Beside recorded bars nothing is invented: other tickers are empty, and so are days without rows."""
    file = tmp_path / "bars.csv"
    file.write_text("t,o,h,l,c,v\n60000,1,1,1,1,1\n")
    assert not _bars({"EURUSD": file}, "C:GBPUSD", "1/minute")
    market = RecordedMarket({"C:EURUSD": read_csv(file)})
    assert (len(market), market.knows("C:EURUSD"), market.knows("C:GBPUSD")) == (1, True, False)
    assert market.days("C:EURUSD", 0, 10) == [0]
    assert not len(market.day("C:EURUSD", 1))


def test_a_recorded_minute_is_served_only_when_it_has_ended(tmp_path: Path) -> None:
    """The clock hides recorded bars that have not ended: none of them is shown as it forms."""
    file = tmp_path / "bars.csv"
    file.write_text("t,o,h,l,c,v\n" + "".join(f"{minute * 60_000},1,1,1,1,1\n" for minute in range(10)))
    config = ReplayConfig(bars={"EURUSD": file})
    market = market_of(config)
    view = market.view(datetime(1970, 1, 1, 0, 5, 30, tzinfo=UTC))
    assert market.bars("C:EURUSD", 0, view).ts.tolist() == [minute * 60_000 for minute in range(5)]


@pytest.mark.parametrize(
    ("text", "says"),
    [
        ("t,o,h,l\n1,1,1,1\n", "no column c"),
        ("", "no column t, o, h, l, c"),
        ("t,o,h,l,c,v\n60000,1,1,1,x,1\n", "line 2"),
        ("t,o,h,l,c,v\n60000,1,1,1\n", "line 2"),
        ("t,o,h,l,c,v\n60000,1,1,1,1,1\n60001,1,1,1,1,1\n", "line 3: t must be the start of a minute"),
        ("t,o,h,l,c,v\n60000,1,nan,1,1,1\n", "prices finite"),
        ("t,o,h,l,c,v\n60000,1,1,1,1,1\n60000,1,1,1,1,1\n", "t=60000 more than once"),
    ],
)
def test_a_file_that_cannot_be_served_is_refused(tmp_path: Path, text: str, says: str) -> None:
    """What is wrong with a file is said in one line that names the option, the file and the place."""
    file = tmp_path / "bars.csv"
    file.write_text(text)
    with pytest.raises(UsageError, match="--bars: ") as caught:
        read_csv(file)
    assert says in str(caught.value)
    assert str(file) in str(caught.value)
    assert "\n" not in str(caught.value)


def test_a_file_that_cannot_be_read_is_refused(tmp_path: Path) -> None:
    """A missing file and a broken archive are told as such."""
    broken = tmp_path / "bars.csv.gz"
    broken.write_bytes(b"no gzip")
    for file in (tmp_path / "absent.csv", broken):
        with pytest.raises(UsageError, match="--bars: cannot read"):
            read_csv(file)


def test_a_ticker_cannot_be_given_twice(tmp_path: Path) -> None:
    """A symbol and its own ticker are one series."""
    file = tmp_path / "bars.csv"
    file.write_text("t,o,h,l,c,v\n60000,1,1,1,1,1\n")
    with pytest.raises(UsageError, match="C:EURUSD is given twice"):
        market_of(ReplayConfig(bars={"EURUSD": file, "C:EURUSD": file}))


def test_an_empty_file_is_an_empty_series(tmp_path: Path) -> None:
    """A header without rows is a series without bars."""
    file = tmp_path / "bars.csv"
    file.write_text("t,o,h,l,c,v\n")
    assert len(read_csv(file)) == 0
    assert read_csv(file).ts.dtype == np.int64
