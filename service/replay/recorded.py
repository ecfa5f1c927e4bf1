"""A market read from CSV files: real bars that were recorded elsewhere, served as they were published."""

import csv
import gzip
import io
from collections.abc import Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from service.bars import MINUTE_MS, Bars
from service.errors import UsageError
from service.replay.columns import between
from service.zones import DAY_MS

_NAMES = {"t": "ts", "o": "open", "h": "high", "l": "low", "c": "close", "v": "volume", "vw": "vwap", "n": "trades"}
_NEEDED = ("t", "o", "h", "l", "c")


class RecordedMarket:
    """The source of bars that holds only what its files hold."""

    name = "csv"

    def __init__(self, series: Mapping[str, Bars]) -> None:
        """series: by ticker."""
        self._series = dict(series)
        self._days = {ticker: np.unique(bars.ts // DAY_MS).tolist() for ticker, bars in self._series.items()}

    def __len__(self) -> int:
        return len(self._series)

    def knows(self, ticker: str) -> bool:
        """Whether the ticker exists."""
        return ticker in self._series

    def days(self, ticker: str, first: int, last: int) -> Sequence[int]:
        """The UTC days within [first, last], both counted from 1970-01-01, that hold bars; ascending."""
        return [day for day in self._days.get(ticker, ()) if first <= day <= last]

    def day(self, ticker: str, day: int) -> Bars:
        """All bars of a UTC day."""
        return between(self._series.get(ticker, Bars.empty()), day * DAY_MS, (day + 1) * DAY_MS)


def read_csv(path: Path) -> Bars:
    """The bars of a file with the columns t,o,h,l,c and optionally v,vw,n (t: start, Unix ms); in any order.

    UsageError names the option, the file and the line of whatever cannot be read; so does a minute that comes twice.
    """
    try:
        raw = path.read_bytes()
        text = (gzip.decompress(raw) if path.suffix == ".gz" else raw).decode("utf-8-sig")
    except (OSError, EOFError, UnicodeDecodeError) as exc:
        raise UsageError(f"--bars: cannot read {path}: {exc}") from exc
    rows = csv.DictReader(io.StringIO(text))
    if lacking := [name for name in _NEEDED if name not in (rows.fieldnames or ())]:
        raise UsageError(f"--bars: {path} has no column {', '.join(lacking)}; the first line must be t,o,h,l,c,v")
    table = np.array(list(_values(rows, path)), np.float64).reshape(-1, len(_NAMES))
    table = table[np.argsort(table[:, 0], kind="stable")]
    ts = table[:, 0].astype(np.int64)
    if (twice := ts[1:][np.diff(ts) == 0]).size:
        raise UsageError(f"--bars: {path} has t={twice[0]} more than once")
    columns: dict[str, Any] = dict(zip(_NAMES.values(), table.T, strict=True))
    return Bars(**{**columns, "ts": ts, "trades": np.nan_to_num(columns["trades"], nan=-1).astype(np.int64)})


def _values(rows: "csv.DictReader[str]", path: Path) -> Iterator[Iterable[float]]:
    """Each line as numbers in the order of _NAMES, NaN for what may be absent."""
    for row in rows:
        try:
            needed = [float(row[name]) for name in _NEEDED]
            values = needed + [float(row.get(name) or "nan") for name in ("v", "vw", "n")]
        except (TypeError, ValueError) as exc:
            raise UsageError(f"--bars: {path} line {rows.line_num}: {exc}") from exc
        if needed[0] % MINUTE_MS or not np.isfinite(needed).all():
            raise UsageError(f"--bars: {path} line {rows.line_num}: t must be the start of a minute, prices finite")
        yield values
