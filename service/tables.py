"""Candles as Arrow streams, Parquet files and CSV, written piece by piece: what was written is taken away at once."""

import json
from collections.abc import Mapping, Sequence
from typing import Any, Protocol

import numpy as np
import pyarrow as pa
from pyarrow import csv, parquet

from service.frames import Frame

TIME = pa.timestamp("ms", tz="UTC")
PRICES = ("open", "high", "low", "close", "volume", "vwap")
ROW_GROUP = 122_880
"""Candles of a Parquet row group, the number that readers cut their work by."""


class Writer(Protocol):
    """One table in the making; each call returns the bytes that it added."""

    def begin(self) -> bytes:
        """What stands before all candles."""

    def write(self, symbol: str, frame: Frame) -> bytes:
        """Some candles of a symbol."""

    def end(self) -> bytes:
        """What stands behind them. Without it the table is broken, and its readers see that (CSV excepted)."""


def schema(symbols: Sequence[str], about: Mapping[str, Any], *, filled: bool, symbol: bool = True) -> pa.Schema:
    """The columns: those of the SQL relations, and `final`; `filled` where gaps were filled.

    about: what the answer says of itself, kept as JSON in the schema's metadata under `candlewick`.
    symbol: whether it has the column `symbol`.
    """
    fields = [pa.field("ts", TIME, nullable=False), *(pa.field(name, pa.float64()) for name in PRICES)]
    fields += [pa.field("trades", pa.int64()), pa.field("final", pa.bool_(), nullable=False)]
    if symbol:
        fields.insert(0, pa.field("symbol", pa.dictionary(pa.int16(), pa.string()), nullable=False))
    if filled:
        fields.append(pa.field("filled", pa.bool_(), nullable=False))
    return pa.schema(fields, metadata={"candlewick": json.dumps(about), "symbols": ",".join(symbols)})


def batch(frame: Frame, place: int, symbols: Sequence[str], form: pa.Schema) -> pa.RecordBatch:
    """Candles of the symbol at a place of `symbols` in the given form; absent values become nulls."""
    bars = frame.candles
    columns: dict[str, Any] = {
        "ts": pa.array(bars.ts).view(TIME),
        "trades": pa.array(bars.trades, mask=_absent(bars.trades < 0)),
        "final": pa.array(~frame.changing),
    }
    for name in PRICES:
        column = getattr(bars, name)
        columns[name] = pa.array(column, mask=_absent(np.isnan(column)))
    if frame.filled is not None:
        columns["filled"] = pa.array(frame.filled)
    if form.get_field_index("symbol") >= 0:
        indices = pa.array(np.full(len(frame), place, np.int16))
        columns["symbol"] = pa.DictionaryArray.from_arrays(indices, pa.array(symbols, pa.string()))
    return pa.record_batch([columns[name] for name in form.names], schema=form)


def _absent(mask: "np.typing.NDArray[np.bool_]") -> "np.typing.NDArray[np.bool_] | None":
    return mask if mask.any() else None


class Sink:
    """A file that only remembers what was written since it was last asked."""

    closed = False

    def __init__(self) -> None:
        self._parts: list[bytes] = []
        self._position = 0

    def write(self, data: Any) -> int:  # noqa: ANN401 - any buffer
        """Keep a copy."""
        part = bytes(data)
        self._parts.append(part)
        self._position += len(part)
        return len(part)

    def take(self) -> bytes:
        """Everything written since the last time."""
        taken, self._parts = b"".join(self._parts), []
        return taken

    def tell(self) -> int:
        """How much was written in all."""
        return self._position

    def writable(self) -> bool:
        """Nothing else is possible."""
        return True

    def readable(self) -> bool:
        """It is not."""
        return False

    def seekable(self) -> bool:
        """Neither."""
        return False

    def flush(self) -> None:
        """Nothing to do."""

    def close(self) -> None:
        """Nothing to do: what is left can still be taken."""


class ArrowStream:
    """Arrow's streaming format: a record batch for each frame."""

    def __init__(self, symbols: Sequence[str], form: pa.Schema) -> None:
        self._symbols, self._form = symbols, form
        self._sink = Sink()
        self._writer = pa.ipc.new_stream(pa.PythonFile(self._sink, mode="w"), form)

    def begin(self) -> bytes:
        """The schema."""
        return self._sink.take()

    def write(self, symbol: str, frame: Frame) -> bytes:
        """A record batch."""
        self._writer.write_batch(batch(frame, self._symbols.index(symbol), self._symbols, self._form))
        return self._sink.take()

    def end(self) -> bytes:
        """The mark of the end."""
        self._writer.close()
        return self._sink.take()


class ParquetFile:
    """A Parquet file, compressed with zstd, in row groups of about ROW_GROUP candles of one symbol."""

    def __init__(self, symbols: Sequence[str], form: pa.Schema) -> None:
        self._symbols, self._form = symbols, form
        self._sink = Sink()
        # Prices hardly repeat: dictionaries of them make a file up to twice as large, and slower.
        options = {"compression": "zstd", "use_dictionary": ["symbol"]}
        self._writer = parquet.ParquetWriter(pa.PythonFile(self._sink, mode="w"), form, **options)
        self._waiting: list[pa.RecordBatch] = []

    def begin(self) -> bytes:
        """The file's first bytes."""
        return self._sink.take()

    def write(self, symbol: str, frame: Frame) -> bytes:
        """Row groups, as soon as one is full."""
        self._waiting.append(batch(frame, self._symbols.index(symbol), self._symbols, self._form))
        if sum(map(len, self._waiting)) >= ROW_GROUP:
            self._flush()
        return self._sink.take()

    def end(self) -> bytes:
        """The last row group, and the index of all."""
        self._flush()
        self._writer.close()
        return self._sink.take()

    def _flush(self) -> None:
        if self._waiting:
            self._writer.write_table(pa.Table.from_batches(self._waiting), row_group_size=2 * ROW_GROUP)
            self._waiting = []


class CsvText:
    """CSV with a header line: times as `2024-03-05 12:07:00Z`, nothing where a value is absent."""

    def __init__(self, symbols: Sequence[str], form: pa.Schema) -> None:
        self._symbols, self._form = symbols, form
        seconds = pa.timestamp("s", tz="UTC")
        self._written = pa.schema([field.with_type(seconds) if field.type == TIME else field for field in form])
        self._sink = Sink()
        options = csv.WriteOptions(quoting_style="needed")
        self._writer = csv.CSVWriter(pa.PythonFile(self._sink, mode="w"), self._written, write_options=options)

    def begin(self) -> bytes:
        """The header."""
        return self._sink.take()

    def write(self, symbol: str, frame: Frame) -> bytes:
        """Lines."""
        rows = batch(frame, self._symbols.index(symbol), self._symbols, self._form)
        self._writer.write_batch(rows.cast(self._written))
        return self._sink.take()

    def end(self) -> bytes:
        """Nothing more."""
        self._writer.close()
        return self._sink.take()
