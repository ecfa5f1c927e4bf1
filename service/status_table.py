"""How `candlewick status` looks: totals, a line for each symbol, and what is wrong with what to do."""

import sys
from datetime import datetime, timedelta
from typing import TextIO

from rich.console import Console
from rich.table import Table

from service.judgement import SymbolStatus
from service.status import Health, Overview

WIDTH_OF_A_FILE = 160
"""Columns, where the output is no terminal."""


def show(overview: Overview, health: Health, *, source: str | None, keeps: str, out: TextIO = sys.stdout) -> None:
    """Print it. source: of the bars, None before the first. keeps: how long the engine keeps what."""
    console = Console(file=out, highlight=False, width=None if out.isatty() else WIDTH_OF_A_FILE)
    console.print(_table(overview))
    totals = overview.totals
    states = ", ".join(f"{count} {state}" for state, count in totals.states.items() if count)
    console.print(f"{totals.active} of {totals.symbols} symbols active: {states}. Bars from {source or 'nowhere yet'}.")
    console.print(
        f"Missing: {totals.missing_minutes:,} minutes; older work: {totals.requests:,} requests,"
        f" about {_length(totals.seconds)}. Behind by at most {_length(totals.worst_lag_seconds or 0)} of open time"
        f" ({_length(totals.expected_lag_seconds)} is what this rate allows)."
    )
    console.print(keeps)
    for reason in health.reasons:
        console.print(f"NOT WELL: {reason}", style="bold red")


def _table(overview: Overview) -> Table:
    table = Table(box=None, pad_edge=False)
    for name in ("symbol", "state", "market", "behind", "missing", "first bar (UTC)", "last bar (UTC)"):
        table.add_column(name, no_wrap=True)
    table.add_column("last sync (UTC)", no_wrap=True)
    table.add_column("new/changed", no_wrap=True)
    table.add_column("what is wrong", overflow="fold")
    for one in overview.symbols:
        table.add_row(*_row(one))
    return table


def _row(one: SymbolStatus) -> tuple[str, ...]:
    trouble = one.error or ""
    if one.error and one.next_attempt_at is not None:
        trouble += f" (again at {one.next_attempt_at:%m-%d %H:%M})"
    return (
        one.symbol,
        one.state,
        "open" if one.market_open else "closed",
        "" if one.lag_seconds is None else _length(one.lag_seconds),
        f"{one.missing_minutes:,} min" if one.missing_minutes else "",
        _at(one.first_bar),
        _at(one.last_bar),
        _at(one.last_sync_at),
        "" if one.rows_new is None else f"{one.rows_new:,}/{one.rows_changed or 0:,}",
        trouble,
    )


def _at(at: datetime | None) -> str:
    return "" if at is None else f"{at:%Y-%m-%d %H:%M}"


def _length(seconds: int) -> str:
    minutes = round(timedelta(seconds=seconds) / timedelta(minutes=1))
    if minutes < 120:  # noqa: PLR2004 - two hours
        return f"{minutes} min"
    return f"{minutes / 60:.0f} h" if minutes < 60 * 48 else f"{minutes / 1440:.0f} days"
