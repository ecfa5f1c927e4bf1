"""Bars as the bytes of PostgreSQL's binary COPY, written by numpy: row by row it would cost more than the database."""

from collections.abc import Iterable

import numpy as np
from numpy.typing import NDArray

from service.bars import Bars

COLUMNS = ("symbol", "ts", "open", "high", "low", "close", "volume", "vwap", "trades")
"""The columns of `candles_1m`, in the order in which they are encoded."""
_HEADER = b"PGCOPY\n\xff\r\n\0" + bytes(8)
_TRAILER = b"\xff\xff"
_EPOCH_US = 946_684_800_000_000
"""PostgreSQL counts microseconds from 2000-01-01 00:00 UTC."""
_NULLABLE = ("volume", "vwap", "trades")


def encode(series: Iterable[tuple[str, Bars]]) -> bytes:
    """A whole COPY stream of these symbols' bars. NaN volume and vwap and -1 trades become NULL.

    Of a symbol, rows with the same columns NULL stand together, each such group in the order of time.
    """
    return b"".join([_HEADER, *(_groups(symbol, bars) for symbol, bars in series), _TRAILER])


def _groups(symbol: str, bars: Bars) -> bytes:
    absent = {"volume": np.isnan(bars.volume), "vwap": np.isnan(bars.vwap), "trades": bars.trades < 0}
    pattern = sum(absent[name].astype(np.uint8) << bit for bit, name in enumerate(_NULLABLE))
    parts = []
    for found in np.unique(np.asarray(pattern)):
        nulls = {name for bit, name in enumerate(_NULLABLE) if found >> bit & 1}
        rows = bars if len(nulls) == 0 and not np.any(pattern) else bars.take(pattern == found)
        parts.append(_rows(symbol.encode(), rows, nulls))
    return b"".join(parts)


def _rows(symbol: bytes, bars: Bars, nulls: set[str]) -> bytes:
    fields: list[tuple[str, str]] = [("count", ">i2"), ("symbol_size", ">i4"), ("symbol", f"S{len(symbol)}")]
    values: dict[str, object] = {"count": len(COLUMNS), "symbol_size": len(symbol), "symbol": symbol}
    for name in COLUMNS[1:]:
        fields.append((f"{name}_size", ">i4"))
        values[f"{name}_size"] = -1 if name in nulls else 8
        if name not in nulls:
            column: NDArray[np.generic] = getattr(bars, name)
            fields.append((name, ">f8" if column.dtype.kind == "f" else ">i8"))
            values[name] = column * 1000 - _EPOCH_US if name == "ts" else column
    table = np.empty(len(bars), dtype=fields)
    for name, value in values.items():
        table[name] = value
    return table.tobytes()
