"""How a backfill looks while it runs: a bar for each symbol on a terminal, plain lines elsewhere."""

import sys
from collections import Counter
from typing import Self, TextIO

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TaskID, TextColumn, TimeElapsedColumn

from service.coverage import Piece
from service.plan import Plan, Summary, Watcher
from service.store import Stored


def announce(plan: Plan) -> str:
    """What is going to happen, in one line."""
    if not plan.requests:
        return f"Nothing to fetch: {len(plan.ledgers)} symbols are covered for {plan.asked}."
    rate = "no rate limit" if plan.rate_limit is None else f"{plan.rate_limit} calls a minute"
    minutes = f"about {plan.minutes} min" if plan.minutes else "under a minute of waiting"
    return (
        f"Backfill of {len(plan.ledgers)} symbols, {plan.asked} UTC: {plan.requests} requests,"
        f" about {plan.bars:,} bars, {minutes} at {rate}."
    )


def summarize(summary: Summary) -> str:
    """What happened: counts in one line, and a line for each symbol that failed."""
    stored = summary.stored
    counts = (
        f"Another process fetched it; {summary.seconds:.1f} s."
        if summary.followed
        else (
            f"Bars: {stored.new:,} new, {stored.changed:,} changed, {stored.unchanged:,} unchanged,"
            f" {stored.rejected:,} rejected; {summary.requests:,} requests; {summary.seconds:.1f} s."
        )
    )
    failed = [f"FAILED {symbol}: {reason}" for symbol, reason in sorted(summary.failures.items())]
    if failed:
        failed.append("What was stored stays. Run the same command again: it asks only for what is missing.")
    return "\n".join([counts, *failed])


class Lines:
    """Plain lines: one when a symbol is done or has failed."""

    def __init__(self, out: TextIO) -> None:
        self._out = out
        self._left: Counter[str] = Counter()
        self._stored: dict[str, Stored] = {}
        self._told: dict[str, str] = {}
        self._total = 0

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self._out.flush()

    def planned(self, plan: Plan) -> None:
        """Say what will be done."""
        self._left = Counter(piece.symbol for one in plan.slices for piece in one.pieces)
        self._total = len(self._left)
        self._say(announce(plan))

    def waiting(self) -> None:
        """Say that another process fetches."""
        self._say("Another process is fetching for this database: waiting for it.")

    def stored(self, piece: Piece, stored: Stored) -> None:
        """Count a piece; the last one of a symbol is told."""
        self._stored[piece.symbol] = self._stored.get(piece.symbol, Stored()) + stored
        if self._finished(piece):
            bars = self._stored[piece.symbol]
            self._say(f"{piece.symbol}: {bars.new:,} new, {bars.changed:,} changed bars {self._place()}")

    def failed(self, piece: Piece, reason: str) -> None:
        """Tell a failure at once; the same one of the same symbol only the first time."""
        self._finished(piece)
        if self._told.get(piece.symbol) != reason:
            self._told[piece.symbol] = reason
            self._say(f"{piece.symbol} {piece.range}: {reason}")

    def refreshing(self) -> None:
        """Say what is still going on."""
        self._say("All bars are stored; refreshing the last aggregates.")

    def _finished(self, piece: Piece) -> bool:
        self._left[piece.symbol] -= 1
        return not self._left[piece.symbol]

    def _place(self) -> str:
        return f"({sum(not left for left in self._left.values())}/{self._total})"

    def _say(self, line: str) -> None:
        print(line, file=self._out, flush=True)


class Bars:
    """A progress bar for each symbol."""

    def __init__(self, console: Console) -> None:
        self._progress = Progress(
            TextColumn("{task.description:<9}"),
            BarColumn(),
            MofNCompleteColumn(),
            TextColumn("{task.fields[bars]:>11,} bars"),
            TimeElapsedColumn(),
            TextColumn("{task.fields[note]}"),
            console=console,
            refresh_per_second=5,
        )
        self._tasks: dict[str, TaskID] = {}
        self._bars: Counter[str] = Counter()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self._progress.stop()

    def planned(self, plan: Plan) -> None:
        """Say what will be done, and draw the bars; anew if it takes over from another process."""
        for task in self._tasks.values():
            self._progress.remove_task(task)
        self._tasks.clear()
        self._progress.console.print(announce(plan), highlight=False)
        for symbol, pieces in Counter(piece.symbol for one in plan.slices for piece in one.pieces).items():
            self._tasks[symbol] = self._progress.add_task(symbol, total=pieces, bars=0, note="")
        if self._tasks:
            self._progress.start()

    def waiting(self) -> None:
        """Say that another process fetches."""
        self._progress.console.print("Another process is fetching for this database: waiting for it.")

    def stored(self, piece: Piece, stored: Stored) -> None:
        """Advance a symbol's bar."""
        self._bars[piece.symbol] += stored.new + stored.changed + stored.unchanged
        self._progress.update(self._tasks[piece.symbol], advance=1, bars=self._bars[piece.symbol])

    def failed(self, piece: Piece, reason: str) -> None:
        """Mark the symbol; the reason stands in the summary."""
        del reason
        self._progress.update(self._tasks[piece.symbol], advance=1, note="[red]failed")

    def refreshing(self) -> None:
        """Say what is still going on."""
        self._progress.console.print("All bars are stored; refreshing the last aggregates.")


def watcher(out: TextIO = sys.stdout) -> Lines | Bars:
    """Bars on a terminal, lines elsewhere."""
    return Bars(Console(file=out)) if out.isatty() else Lines(out)


_: type[Watcher] = Lines
