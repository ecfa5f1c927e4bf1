"""Writes candles as Parquet files, one for each symbol and month, for programs that would rather read files than ask.

The database is read window by window, while a thread encodes and writes the month before; no more than a month is held.
"""

import asyncio
from collections.abc import Callable, Collection, Iterator, Sequence
from contextlib import aclosing
from datetime import datetime
from itertools import pairwise
from pathlib import Path
from typing import Protocol, TypeVar

import msgspec
import numpy as np

from service import ledger, query
from service.coverage import MINUTE, Missing
from service.db.connect import Database
from service.frames import Ask, Frame
from service.month_files import MonthFiles, about, claimed, month_of, range_of, refuse_mixture
from service.proof import Head, Terms
from service.ranges import Range, Ranges
from service.spans import Span
from service.tables import ParquetFile, schema

T = TypeVar("T")


class Job(msgspec.Struct, frozen=True, kw_only=True):
    """What is to be exported."""

    symbols: tuple[str, ...]
    """In our spelling, each once."""
    span: Span
    asked: Range
    """Candles that start in it."""
    out: Path
    require_complete: bool
    """Write nothing of a symbol of which something is missing."""
    terms: Terms


class Exported(msgspec.Struct, frozen=True, kw_only=True):
    """What became of a symbol."""

    head: Head
    """Judges the range asked for."""
    refused: bool = False
    """Nothing was written, for something is missing."""
    candles: int = 0
    files: int = 0
    size: int = 0
    """Bytes of these files."""
    kept: tuple[str, ...] = ()
    """Months whose earlier file was left as it was: the database does not have all that is in there."""


class Watcher(Protocol):
    """Is told how an export goes on."""

    def begun(self, symbol: str, months: int) -> None:
        """A symbol's turn has come; so many months are to be looked through."""

    def wrote(self, symbol: str, months: int, candles: int) -> None:
        """So far this was read of it, and at most the last of these months is not written yet."""

    def ended(self, done: Exported) -> None:
        """All of it is written, or it was refused."""


async def export(db: Database, job: Job, watcher: Watcher) -> list[Exported]:
    """Write the files of all symbols, one after the other, and remove those of months that are known to have no candle.

    A month's file never covers less than before: where an earlier export reached further into the first or the last
    month, that month is written as far as that one reached; where its candles have expired since, or the database
    was never asked for any, it stays as it is. Months outside the range stay. Cancelling it, and
    killing the process, leaves whole files only. Raises UsageError (the folder, an unknown symbol) and CannotWrite.
    """
    async with db.connection() as conn:
        source = await ledger.source(conn)
    done = []
    with claimed(job.out):
        await _in_thread(refuse_mixture, job.out, job.span, source)
        for symbol in job.symbols:
            one = await _export(db, job, symbol, watcher)
            watcher.ended(one)
            done.append(one)
    return done


async def _export(db: Database, job: Job, symbol: str, watcher: Watcher) -> Exported:
    files = MonthFiles(job.out, symbol)
    reach = await _in_thread(_reach, files, job.asked)
    ask = Ask(symbol=symbol, span=job.span, start=reach.start, end=reach.end)
    async with db.connection() as conn:
        stream = await query.stream(conn, db.connection, job.terms, ask)
    head = judged(stream.head, job.asked)
    if job.require_complete and not head.complete:
        return Exported(head=head, refused=True)
    expired = await _in_thread(_expired, files, stream.head.missing)
    writer, first = _Writer(files, stream.head, expired), _count(month_of(reach.start))
    watcher.begun(symbol, _count(month_of(_last(reach))) - first + 1)
    async with aclosing(stream.frames) as frames:
        async for frame in frames:
            month = await _in_thread(writer.write, frame)
            watcher.wrote(symbol, _count(month) - first + 1, writer.candles)
    await _in_thread(writer.end)
    kept = tuple(sorted(writer.kept))
    return Exported(head=head, candles=writer.candles, files=len(writer.written), size=writer.size, kept=kept)


class _Writer:
    """Cuts the candles of a symbol at the months (UTC, by a candle's start) and writes each month once it is over."""

    def __init__(self, files: MonthFiles, head: Head, kept: Collection[str]) -> None:
        self._files, self._head = files, head
        self._month = ""
        self._frames: list[Frame] = []
        self.written: list[str] = []
        self.kept = set(kept)
        """Months whose file is not touched."""
        self.candles = self.size = 0

    def write(self, frame: Frame) -> str:
        """Some candles; returns the month of the last of them."""
        for month, part in _by_month(frame):
            if month != self._month:
                self._finish()
                self._month = month
            if month not in self.kept:
                self._frames.append(part)
                self.candles += len(part)
        return self._month

    def end(self) -> None:
        """The last month. The files of months without candles go, unless something of them is missing."""
        self._finish()
        for month in set(self._files.months()) - set(self.written) - self.kept:
            part = self._part(month)
            if part.start < part.end:
                if judged(self._head, part).missing:
                    self.kept.add(month)
                else:
                    self._files.remove(month)

    def _finish(self) -> None:
        if not self._frames:
            return
        symbol = self._head.symbol
        told = msgspec.to_builtins(about(judged(self._head, self._part(self._month))))
        table = ParquetFile([symbol], schema([symbol], told, filled=False, symbol=False))
        data = [table.begin(), *(table.write(symbol, frame) for frame in self._frames), table.end()]
        self.size += self._files.put(self._month, data)
        self.written.append(self._month)
        self._frames = []

    def _part(self, month: str) -> Range:
        """What of a month lies in the range; where nothing does, it ends before it starts."""
        reached, there = self._head.asked, range_of(month)
        return Range(max(reached.start, there.start), min(reached.end, there.end))


def judged(head: Head, part: Range) -> Head:
    """The same judgement for a part of its range."""
    within = Ranges([part])
    missing = tuple(
        Missing(range=piece, reason=gap.reason) for gap in head.missing for piece in Ranges([gap.range]) & within
    )
    settled = None if head.settled_to is None else min(head.settled_to, part.end)
    complete = not head.no_data and not missing and settled is not None and part.start < settled
    return msgspec.structs.replace(head, asked=part, missing=missing, settled_to=settled, complete=complete)


def _reach(files: MonthFiles, asked: Range) -> Range:
    """The range asked for, widened to what the files of its first and its last month were made for."""
    told = [files.told(month) for month in (month_of(asked.start), month_of(_last(asked)))]
    ranges = [asked, *(one.range for one in told if one is not None)]
    return Range(min(one.start for one in ranges), max(one.end for one in ranges))


def _expired(files: MonthFiles, missing: Sequence[Missing]) -> list[str]:
    """The months with a file of candles that have expired since."""
    expired = Ranges(gap.range for gap in missing if gap.reason == "expired")
    found = []
    for month in files.months() if expired else []:
        told = files.told(month) if Ranges([range_of(month)]) & expired else None
        if told is not None and Ranges([told.range]) & expired:
            found.append(month)
    return found


def _by_month(frame: Frame) -> Iterator[tuple[str, Frame]]:
    months = frame.candles.ts.astype("datetime64[ms]").astype("datetime64[M]")
    cuts = [0, *(np.flatnonzero(months[1:] != months[:-1]) + 1).tolist(), len(months)]
    for start, end in pairwise(cuts):
        yield str(months[start]), frame.part(slice(start, end))


def _count(month: str) -> int:
    """The month's number, counted from the year 0."""
    year, number = month.split("-")
    return int(year) * 12 + int(number)


def _last(asked: Range) -> datetime:
    """An instant of the range's last minute."""
    return asked.end - MINUTE


async def _in_thread(work: Callable[..., T], *given: object) -> T:
    """Do work in a thread; where this is cancelled meanwhile, not before that work is done."""
    task = asyncio.ensure_future(asyncio.to_thread(work, *given))
    try:
        return await asyncio.shield(task)
    except asyncio.CancelledError:
        await asyncio.gather(task, return_exceptions=True)
        raise
