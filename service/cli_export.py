"""`candlewick export`: reads what is asked for, shows how it goes on, sums up what was written and what is missing."""

import argparse
import sys
import time
from collections.abc import Callable, Sequence
from datetime import datetime, timedelta
from pathlib import Path
from typing import Self, TextIO

from rich.console import Console
from rich.markup import escape
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TaskID, TextColumn, TimeElapsedColumn

from service import ledger, spans
from service.cli_range import asked_range
from service.db.connect import Database
from service.errors import UsageError
from service.export import Exported, Job, export
from service.proof import Head, Terms
from service.settings import Settings
from service.spans import Span
from service.zones import zone_named

SHOWN = 5
"""So many missing ranges of a symbol are named; the others are counted."""


def check(args: argparse.Namespace) -> Span:
    """The candles' length; UsageError where the words alone cannot be meant, before anything is started for them."""
    if args.all == bool(args.symbols):
        raise UsageError("name the symbols to export, or --all")
    if not (args.start or args.end or args.days):
        raise UsageError("say which range: --from DATE (and --to DATE), or --days N")
    if not args.out:
        raise UsageError("--out: name a folder")
    try:
        zone = zone_named(args.tz)
    except ValueError as exc:
        raise UsageError(f"--tz: {exc}") from None
    try:
        return spans.parse(args.timeframe, zone)
    except ValueError as exc:
        raise UsageError(f"--timeframe: {exc}") from None


async def run_export(
    db: Database, chosen: Settings, args: argparse.Namespace, span: Span, clock: Callable[[], datetime]
) -> int:
    """Export what is asked for; returns 1 if --require-complete left a symbol out, else 0."""
    began, now = time.monotonic(), clock()
    floors = db.engine.floors(chosen.retention, now)
    asked = asked_range(args, chosen, now, floors[span.stored], span.zone)
    terms = Terms(now=now, settle=timedelta(minutes=chosen.settle_minutes), floors=floors)
    async with db:
        async with db.connection() as conn:
            names = args.symbols or [one.symbol for one in await ledger.ledgers(conn)]
            symbols = tuple(await ledger.known(conn, names))
        job = Job(
            symbols=symbols,
            span=span,
            asked=asked,
            out=Path(args.out),
            require_complete=args.require_complete,
            terms=terms,
        )
        with _watcher(job) as display:
            done = await export(db, job, display)
    print(summarize(done, time.monotonic() - began), flush=True)  # noqa: T201 - the command's own words
    return int(any(one.refused for one in done))


def announce(job: Job) -> str:
    """What is going to happen, in one line."""
    zone = "" if job.span.zone == "UTC" else f" ({job.span.zone})"
    return (
        f"Export of {_count(len(job.symbols), 'symbol')}, {job.asked} UTC, {job.span.name} candles{zone}, to {job.out}."
    )


def summarize(done: Sequence[Exported], seconds: float) -> str:
    """What was written in one line, and a line for each symbol of which something is missing or was left alone."""
    candles, files, size = (sum(getattr(one, name) for one in done) for name in ("candles", "files", "size"))
    written = sum(not one.refused for one in done)
    counts = f"{_count(written, 'symbol')}: {_count(candles, 'candle')}, {_count(files, 'file')}"
    lines = [f"Exported {counts}, {size / 1e6:,.1f} MB, {seconds:.1f} s."]
    for one in done:
        if one.kept:
            months = one.kept[0] if len(one.kept) == 1 else f"{one.kept[0]} to {one.kept[-1]}"
            lines.append(
                f"KEPT {one.head.symbol}: {_count(len(one.kept), 'earlier file')}, {months}:"
                " the database does not have all that is in there."
            )
    for one in done:
        if not one.head.complete:
            refused = "; nothing of it was written" if one.refused else ""
            lines.append(f"INCOMPLETE {one.head.symbol}: {_missing(one.head)}{refused}.")
    return "\n".join(lines)


def _missing(head: Head) -> str:
    """What is missing of a symbol and why; a few ranges of it."""
    parts = [f"{gap.range} {gap.reason}" for gap in head.missing[:SHOWN]]
    if len(head.missing) > SHOWN:
        parts.append(f"and {len(head.missing) - SHOWN} more")
    return ", ".join(parts) or ("no bar at all" if head.no_data else f"{head.asked} not settled")


def _count(number: int, noun: str) -> str:
    return f"{number:,} {noun}{'' if number == 1 else 's'}"


class _Lines:
    """Plain lines: one when a symbol is done."""

    def __init__(self, job: Job, out: TextIO) -> None:
        self._total, self._done, self._out = len(job.symbols), 0, out
        self._say(announce(job))

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self._out.flush()

    def begun(self, symbol: str, months: int) -> None:
        """Nothing yet."""

    def wrote(self, symbol: str, months: int, candles: int) -> None:
        """Not worth a line."""

    def ended(self, done: Exported) -> None:
        """Count a symbol."""
        self._done += 1
        what = f"{_count(done.candles, 'candle')} in {_count(done.files, 'file')}"
        self._say(f"{done.head.symbol}: {'left out' if done.refused else what} ({self._done}/{self._total})")

    def _say(self, line: str) -> None:
        print(line, file=self._out, flush=True)


class _Bars:
    """A progress bar for each symbol, by its months."""

    def __init__(self, job: Job, console: Console) -> None:
        self._progress = Progress(
            TextColumn("{task.description:<9}"),
            BarColumn(),
            MofNCompleteColumn(),
            TextColumn("{task.fields[candles]:>11,} candles"),
            TimeElapsedColumn(),
            console=console,
            refresh_per_second=5,
        )
        self._tasks: dict[str, TaskID] = {}
        console.print(announce(job), highlight=False, markup=False)

    def __enter__(self) -> Self:
        self._progress.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._progress.stop()

    def begun(self, symbol: str, months: int) -> None:
        """Draw the bar."""
        self._tasks[symbol] = self._progress.add_task(escape(symbol), total=months, candles=0)

    def wrote(self, symbol: str, months: int, candles: int) -> None:
        """Advance it; the last month is not written yet."""
        self._progress.update(self._tasks[symbol], completed=months - 1, candles=candles)

    def ended(self, done: Exported) -> None:
        """Fill it, unless it was never drawn."""
        if (task := self._tasks.get(done.head.symbol)) is not None:
            self._progress.update(task, completed=self._progress.tasks[task].total, candles=done.candles)


def _watcher(job: Job) -> _Lines | _Bars:
    """Bars on a terminal, lines elsewhere."""
    return _Bars(job, Console()) if sys.stdout.isatty() else _Lines(job, sys.stdout)
