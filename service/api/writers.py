"""From candles to the bytes of an answer: one interface for the forms that are text and those that are tables."""

from collections.abc import Iterator, Sequence
from itertools import count
from typing import Any, Protocol
from urllib.parse import quote, urlencode

import msgspec

from service.api import rows
from service.api.asking import Asked
from service.api.rows import CandlesAnswer, Proof
from service.bars import to_ms
from service.frames import Frame
from service.proof import Head
from service.tables import ArrowStream, CsvText, ParquetFile, schema

PIECE = 250
"""Candles that are turned into text at once, for which everybody else waits: about a quarter of a millisecond."""
_encode = msgspec.json.Encoder().encode
_TABLES: dict[str, type[CsvText] | type[ArrowStream] | type[ParquetFile]] = {
    "csv": CsvText,
    "arrow": ArrowStream,
    "parquet": ParquetFile,
}


class Writer(Protocol):
    """Writes one answer: begin, then for each symbol its frames in their order between `open` and `close`, then end."""

    threaded: bool
    """Whether its pieces take long, without the interpreter's lock: then they belong into a thread."""

    def begin(self) -> bytes:
        """What stands before everything."""

    def open(self, head: Head) -> bytes:
        """What stands before a symbol's candles."""

    def write(self, head: Head, frame: Frame) -> Iterator[bytes]:
        """Some of its candles, in pieces."""

    def close(self, head: Head) -> bytes:
        """What stands behind them."""

    def end(self) -> bytes:
        """What stands behind everything."""


def writer_of(asked: Asked, heads: Sequence[Head]) -> Writer:
    """The writer of an answer of these heads."""
    if asked.form in _TABLES:
        return TableWriter(asked, heads)
    return JsonWriter(asked)


def next_page(asked: Asked, head: Head) -> str | None:
    """Path and query of a symbol's next page; None at the end."""
    if head.more is None:
        return None
    start, end = (head.more, head.asked.end) if asked.order == "asc" else (asked.start, head.more)
    given: dict[str, object] = {"timeframe": head.span.name}
    if head.span.zone != "UTC":
        given["tz"] = head.span.zone
    if start is not None:
        given["from"] = to_ms(start)
    given |= {"to": to_ms(end), "limit": asked.limit, "order": asked.order}
    if asked.fill != "none":
        given["fill"] = asked.fill
    if asked.form_given:
        given["format"] = asked.form
    if asked.require_complete:
        given["require_complete"] = "true"
    return f"/api/candles/{quote(head.symbol)}?{urlencode(given)}"


class JsonWriter:
    """JSON: an object for each candle, or an array for each column."""

    threaded = False

    def __init__(self, asked: Asked) -> None:
        self._asked = asked
        self._columns = asked.form == "columns"
        self._symbols = count()
        self._pieces = count()
        self._rest = b""

    def begin(self) -> bytes:
        """The beginning of a list, unless a single symbol was asked for."""
        return b"" if self._asked.alone else b'{"symbols":['

    def open(self, head: Head) -> bytes:
        """All fields before the candles."""
        text = _encode(
            CandlesAnswer(
                **rows.proof(head),
                candles=[],
                next=next_page(self._asked, head),
                no_data=True if head.no_data else msgspec.UNSET,
            )
        )
        before, _, self._rest = text.partition(b'"candles":[]')
        self._pieces = count()
        comma = b"," if next(self._symbols) else b""
        return comma + before + (b'"candles":' if self._columns else b'"candles":[')

    def write(self, head: Head, frame: Frame) -> Iterator[bytes]:  # noqa: ARG002 - the writers share one signature
        """Some objects at a time, or column by column (of a whole page, once)."""
        if self._columns:
            yield from self._write_columns(frame)
            return
        for start in range(0, len(frame), PIECE):
            text = _encode(rows.candles(frame.part(slice(start, start + PIECE))))
            yield (b"," if next(self._pieces) else b"") + memoryview(text)[1:-1]

    def _write_columns(self, frame: Frame) -> Iterator[bytes]:
        opening = b"{"
        for name, column in rows.columns(frame).items():
            yield b'%b"%b":%b' % (opening, name.encode(), _encode(column))
            opening = b","
        yield b"}"

    def close(self, head: Head) -> bytes:  # noqa: ARG002 - as above
        """The fields behind the candles."""
        return self._rest if self._columns else b"]" + self._rest

    def end(self) -> bytes:
        """The end of the list."""
        return b"" if self._asked.alone else b"]}"


class TableWriter:
    """CSV, Arrow or Parquet: one table, of whose rows each names its symbol."""

    def __init__(self, asked: Asked, heads: Sequence[Head]) -> None:
        symbols = [head.symbol for head in heads]
        about: dict[str, Any] = {
            "source": heads[0].state.source,
            "symbols": msgspec.to_builtins([Proof(**rows.proof(head)) for head in heads]),
        }
        self._table = _TABLES[asked.form](symbols, schema(symbols, about, filled=asked.fill != "none"))
        self.threaded = asked.form != "arrow"

    def begin(self) -> bytes:
        """The table's own beginning."""
        return self._table.begin()

    def open(self, head: Head) -> bytes:  # noqa: ARG002 - the writers share one signature
        """Nothing."""
        return b""

    def write(self, head: Head, frame: Frame) -> Iterator[bytes]:
        """All of it."""
        yield self._table.write(head.symbol, frame)

    def close(self, head: Head) -> bytes:  # noqa: ARG002 - as above
        """Nothing."""
        return b""

    def end(self) -> bytes:
        """The table's own end."""
        return self._table.end()
