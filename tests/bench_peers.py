"""`make bench-peers`: the same bars from Candlewick over HTTP, from DuckDB and from ArcticDB, in the same run.

Ten symbols with 700 days of one-minute bars each, so that everyone has to find its rows. Everyone is warmed and asked
in several ways, the fastest of which counts; their answers are compared before they are timed.
"""

import argparse
import asyncio
import statistics
import tempfile
import time
import urllib.request
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, ExitStack, contextmanager
from datetime import datetime, timedelta
from functools import partial
from pathlib import Path
from typing import Any

import arcticdb
import duckdb
import msgspec
import numpy as np
import pandas as pd
import pyarrow as pa
from numpy.typing import NDArray

from service.bars import to_ms
from service.coverage import MINUTE
from service.timeframes import Timeframe
from tests import bench, bench_bars
from tests.bench_bars import BIG, COINS, MILLION, Absent
from tests.bench_load import Client

DAYS = 700
QUESTIONS = {
    "5m": "the latest 500 candles of 5m",
    "1d": "500 daily candles out of 700 days",
    "1m": "1,000,000 one-minute bars to a pandas frame",
}
NAMES = ["open", "high", "low", "close", "volume", "vwap", "trades"]
Ways = Mapping[str, Callable[[], Any]]
"""What to call for one answer, by a word for it."""
Peer = Callable[[], AbstractContextManager[Mapping[str, Ways]]]
"""Opens it: the ways by the keys of `QUESTIONS`."""


def main() -> None:
    """Run it on every engine that this machine has."""
    parser = argparse.ArgumentParser(prog="make bench-peers", description=__doc__)
    parser.add_argument("--runs", type=int, default=9, help="of each measurement; the median counts (default 9)")
    parser.add_argument("--engine", choices=tuple(bench.PLACES), help="Candlewick on this engine only")
    args = parser.parse_args()
    versions = (f"DuckDB {duckdb.__version__}", f"ArcticDB {arcticdb.__version__}", f"pandas {pd.__version__}")
    print(f"{', '.join(versions)}; medians of {args.runs} runs", flush=True)
    for name, make in bench.PLACES.items():
        if args.engine in {None, name}:
            with make() as place, tempfile.TemporaryDirectory(prefix="cw-") as folder:
                if place is not None:
                    _compare(place, Path(folder), args.runs)


def _compare(place: bench.Place, folder: Path, runs: int) -> None:
    with bench._database(place, "peers") as url:
        end = asyncio.run(bench_bars.fill(url, place.engine, dict.fromkeys(COINS, DAYS)))
        _write(folder, end)
        peers: Mapping[str, Peer] = {
            f"Candlewick ({place.engine})": partial(_candlewick, url, place.engine, end),
            "DuckDB": partial(_duckdb, folder, end),
            "ArcticDB": partial(_arcticdb, folder, end),
        }
        with ExitStack() as stack:
            opened = {name: stack.enter_context(peer()) for name, peer in peers.items()}
            for key, question in QUESTIONS.items():
                _ask(question, {name: ways[key] for name, ways in opened.items()}, runs)
        print(f"{QUESTIONS['1m']}, the first time after opening", flush=True)
        for name, peer in peers.items():
            _first(name, peer, runs)


def _ask(question: str, peers: Mapping[str, Ways], runs: int) -> None:
    print(question, flush=True)
    expected: NDArray[np.float64] | None = None
    for name, ways in peers.items():
        times = {}
        for how, ask in ways.items():
            try:
                closes = _closes(ask())
            except Absent as exc:
                print(f"  {name}, {how}: NOT MEASURED, {exc}", flush=True)
                continue
            expected = closes if expected is None else expected
            if not np.array_equal(closes, expected):
                raise SystemExit(f"{name}, {how}, answers otherwise: {closes} and not {expected}")
            times[how] = statistics.median(_seconds(ask) for _ in range(runs))
        _say(name, times)


def _first(name: str, peer: Peer, runs: int) -> None:
    """In the first of its ways, by a process or a connection that has answered nothing large yet."""
    times, how = [], ""
    for _ in range(runs):
        with peer() as found:
            next(iter(found["5m"].values()))()
            how, ask = next(iter(found["1m"].items()))
            times.append(_seconds(ask))
    _say(name, {how: statistics.median(times)})


def _say(name: str, times: Mapping[str, float]) -> None:
    ways = ", ".join(f"{how} {seconds * 1000:.1f}" for how, seconds in sorted(times.items(), key=lambda one: one[1]))
    print(f"  {name}: {min(times.values(), default=float('nan')) * 1000:.1f} ms ({ways})", flush=True)


def _seconds(ask: Callable[[], Any]) -> float:
    began = time.perf_counter()
    ask()
    return time.perf_counter() - began


def _closes(found: Any) -> NDArray[np.float64]:  # noqa: ANN401 - each has an own form
    if isinstance(found, pd.DataFrame):
        return np.asarray(found["c" if "c" in found else "close"])
    return np.array([one["c"] if isinstance(one, dict) else one[4] for one in found])


@contextmanager
def _candlewick(url: str, engine: str, end: datetime) -> Iterator[Mapping[str, Ways]]:
    with bench_bars.serving(url, engine) as server:
        client = Client(server.url)
        found: dict[str, Ways] = {}
        for key in ("5m", "1d"):
            path = f"/api/candles/{BIG}?timeframe={key}&limit=500"
            found[key] = {
                "JSON to dicts": partial(_decoded, client, path),
                "Arrow to a frame": partial(_whole, client, f"{path}&format=arrow"),
            }
        start, stop = _million(end)
        path = f"/api/candles/{BIG}?timeframe=1m&from={to_ms(start)}&to={to_ms(stop)}&format=arrow"
        buffer = memoryview(bytearray(100 * MILLION))
        found["1m"] = {
            "one line with urllib": partial(_one_line, f"{server.url}{path}"),
            "http.client, streamed": partial(_streamed, client, path),
            "http.client, whole": partial(_whole, client, path),
            "into a buffer": partial(_buffered, client, path, buffer),
            "into a buffer, split blocks": partial(_buffered, client, path, buffer, split_blocks=True),
            "into a buffer, split blocks, self-destruct": partial(
                _buffered, client, path, buffer, split_blocks=True, self_destruct=True
            ),
        }
        yield found


def _decoded(client: Client, path: str) -> Any:  # noqa: ANN401 - dicts
    return msgspec.json.decode(client.ask(path).read())["candles"]


def _one_line(url: str) -> Any:  # noqa: ANN401 - a frame
    try:
        return pa.ipc.open_stream(urllib.request.urlopen(url)).read_pandas()  # noqa: S310 - our own
    except OSError as exc:
        raise Absent(str(exc)) from exc


def _streamed(client: Client, path: str) -> Any:  # noqa: ANN401 - a frame
    response = client.ask(path)
    frame = pa.ipc.open_stream(response).read_pandas()
    response.read()  # the end of the answer, behind that of the table
    return frame


def _whole(client: Client, path: str) -> Any:  # noqa: ANN401 - a frame
    return pa.ipc.open_stream(client.ask(path).read()).read_pandas()


def _buffered(client: Client, path: str, buffer: memoryview, **options: bool) -> Any:  # noqa: ANN401 - a frame
    """The memory that the answer is read into stays: it need not be made each time."""
    response, size = client.ask(path), 0
    while got := response.readinto(buffer[size:]):
        size += got
    return pa.ipc.open_stream(pa.py_buffer(buffer[:size])).read_all().to_pandas(**options)


def _million(end: datetime) -> tuple[datetime, datetime]:
    """A range that is closed, as all of it is settled."""
    stop = end - timedelta(days=2)
    return stop - MILLION * MINUTE, stop


def _write(folder: Path, end: datetime) -> None:
    library = _library(folder)
    with duckdb.connect(folder / "bars.duckdb") as conn:
        conn.execute(
            "CREATE TABLE bars (symbol VARCHAR, ts TIMESTAMP, open DOUBLE, high DOUBLE, low DOUBLE, close DOUBLE,"
            " volume DOUBLE, vwap DOUBLE, trades BIGINT)"
        )
        for symbol in sorted(COINS):
            frame = _frame(symbol, end)
            library.write(symbol, frame)
            conn.register("frame", frame.reset_index())
            conn.execute("INSERT INTO bars SELECT ?, * FROM frame ORDER BY ts", [symbol])
            conn.unregister("frame")


def _frame(symbol: str, end: datetime) -> Any:  # noqa: ANN401 - a frame
    pieces = [bench_bars.bars(piece) for piece in bench_bars.pieces({symbol: DAYS}, end)]
    columns = {name: np.concatenate([getattr(part, name) for part in reversed(pieces)]) for name in ["ts", *NAMES]}
    ts = pd.DatetimeIndex(columns.pop("ts").astype("datetime64[ms]").astype("datetime64[ns]"), name="ts")
    return pd.DataFrame(columns, index=ts)


@contextmanager
def _duckdb(folder: Path, end: datetime) -> Iterator[Mapping[str, Ways]]:
    """Its table is sorted by symbol and time, and it promises to keep that order."""
    with duckdb.connect(folder / "bars.duckdb", read_only=True) as conn:
        found: dict[str, Ways] = {}
        for key, bucket in {"5m": "time_bucket(INTERVAL '5 minutes', ts)", "1d": "ts::DATE"}.items():
            ways = {
                "first(... ORDER BY)": ("first(open ORDER BY ts)", "last(close ORDER BY ts)"),
                "arg_min": ("arg_min(open, ts)", "arg_max(close, ts)"),
            }
            found[key] = {
                f"{how}, {form}": partial(_rows, conn, _AGGREGATED.format(bucket, *ends), (BIG, _start(key, end)), form)
                for how, ends in ways.items()
                for form in ("fetchall", "df")
            }
        found["1m"] = {form: partial(_rows, conn, _BARS, (BIG, *_million(end)), form) for form in ("arrow", "df")}
        yield found


def _rows(conn: duckdb.DuckDBPyConnection, query: str, values: Sequence[Any], form: str) -> Any:  # noqa: ANN401 - as asked
    found = conn.sql(query, params=[one.replace(tzinfo=None) if isinstance(one, datetime) else one for one in values])
    if form == "arrow":
        return found.to_arrow_table().to_pandas(split_blocks=True, self_destruct=True)
    return getattr(found, form)()


_AGGREGATED = """
    SELECT
        {} AS t, {} AS open, max(high) AS high, min(low) AS low, {} AS close, sum(volume) AS volume,
        sum(vwap * volume) / sum(volume) AS vwap, sum(trades)::BIGINT AS trades
    FROM bars
    WHERE symbol = ? AND ts >= ?
    GROUP BY t
    ORDER BY t
"""
_BARS = "SELECT ts, open, high, low, close, volume, vwap, trades FROM bars WHERE symbol = ? AND ts >= ? AND ts < ?"


@contextmanager
def _arcticdb(folder: Path, end: datetime) -> Iterator[Mapping[str, Ways]]:
    library = _library(folder)
    found: dict[str, Ways] = {}
    for key, rule in {"5m": "5min", "1d": "1D"}.items():
        found[key] = {
            how: partial(resample, library, rule, _instant(_start(key, end)))
            for how, resample in {"QueryBuilder": _resampled, "pandas": _resampled_by_pandas}.items()
        }
    start, stop = _million(end)
    found["1m"] = {"date_range": partial(_ranged, library, _instant(start), _instant(stop - MINUTE))}
    yield found


def _resampled(library: Any, rule: str, start: Any) -> Any:  # noqa: ANN401 - no types
    query = arcticdb.QueryBuilder()
    query = query.apply("turnover", query["vwap"] * query["volume"])
    query = query.resample(rule).agg({name: (name, how) for name, how in _HOW.items()})
    return _averaged(library.read(BIG, date_range=(start, None), query_builder=query).data)


def _resampled_by_pandas(library: Any, rule: str, start: Any) -> Any:  # noqa: ANN401 - no types
    frame = library.read(BIG, date_range=(start, None)).data
    frame["turnover"] = frame["vwap"] * frame["volume"]
    return _averaged(frame.resample(rule).agg(_HOW))


def _averaged(frame: Any) -> Any:  # noqa: ANN401 - no types
    frame["vwap"] = frame.pop("turnover") / frame["volume"]
    return frame


def _ranged(library: Any, start: Any, last: Any) -> Any:  # noqa: ANN401 - no types
    return library.read(BIG, date_range=(start, last)).data


_HOW = {
    "open": "first",
    "high": "max",
    "low": "min",
    "close": "last",
    "volume": "sum",
    "turnover": "sum",
    "trades": "sum",
}


def _library(folder: Path) -> Any:  # noqa: ANN401 - no types
    return arcticdb.Arctic(f"lmdb://{folder}/arctic?map_size=8GB").get_library("bars", create_if_missing=True)


def _instant(at: datetime) -> Any:  # noqa: ANN401 - no types
    return pd.Timestamp(at.replace(tzinfo=None))


def _start(key: str, end: datetime) -> datetime:
    """Of the latest 500 candles."""
    timeframe = Timeframe.parse(key)
    return timeframe.ceil(end) - 500 * timeframe.length


if __name__ == "__main__":
    main()
