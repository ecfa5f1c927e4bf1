"""Asks for ranges of some symbols for somebody who may wait for them: a worker fetches them before all else."""

from collections.abc import Sequence
from datetime import datetime, timedelta
from typing import Any

import msgspec
from psycopg import AsyncConnection

from service import coverage, ledger, tracking
from service.coverage import MINUTE, Ledger, minute_floor
from service.entitlements import Entitlement
from service.errors import UsageError
from service.plan import days_back, refuse_below
from service.ranges import Range, Ranges
from service.settings import Settings
from service.timeframes import Timeframe


class Span(msgspec.Struct, frozen=True, kw_only=True):
    """What is asked for, as it was said; nothing said: from where each symbol's coverage ends, up to now."""

    days: int | None = None
    """So many back from now, from a midnight on (UTC)."""
    start: datetime | None = None
    end: datetime | None = None
    """Exclusive; None: now."""


class Asked(msgspec.Struct, frozen=True, kw_only=True):
    """What was asked for of one symbol."""

    known: Ledger
    """As it was before."""
    range: Range
    possible: Ranges
    """What of it the plan can have by now."""
    missing: Ranges
    """What of that is to be fetched."""
    requests: int
    """Calls that this takes."""


async def planned(
    conn: AsyncConnection[Any],
    settings: Settings,
    symbols: Sequence[str],
    span: Span,
    *,
    now: datetime,
    floor: datetime | None,
) -> list[Asked]:
    """What this asks for of each symbol. What the plan cannot have by now is left out.

    now: aware UTC. floor: below it no bar is kept. Raises UsageError: below the floor, in the future.
    """
    plan = await tracking.entitlements(conn)
    settle = timedelta(minutes=settings.settle_minutes)
    found = []
    for known in await ledger.ledgers(conn, symbols):
        whole = range_of(known, span, now, floor=floor, backfill_days=settings.backfill_days)
        # From midnight on, where nobody named a start: then many symbols ask for the same, and what is covered is free.
        start = Timeframe.D1.floor(whole.start) if span == Span() else whole.start
        target = plan.get(known.asset_type, Entitlement()).target(now, settle)
        possible = Ranges.of(start, min(whole.end, target))
        missing = possible - known.covered - known.unavailable
        slices = coverage.cut([(known.symbol, known.ticker, missing)])
        requests = sum(len(one.pieces) for one in slices)
        found.append(Asked(known=known, range=whole, possible=possible, missing=missing, requests=requests))
    return found


async def ask(conn: AsyncConnection[Any], asked: Sequence[Asked]) -> None:
    """Widen what is wanted, and tell the worker that somebody waits; asking twice changes nothing."""
    same: dict[Range, list[str]] = {}
    for one in asked:
        for part in one.possible:
            same.setdefault(part, []).append(one.known.symbol)
    for part, symbols in same.items():
        await ledger.request(conn, symbols, part)


def range_of(known: Ledger, span: Span, now: datetime, *, floor: datetime | None, backfill_days: int) -> Range:
    """The range meant, on whole minutes; UsageError where nothing of it can be had."""
    edge = minute_floor(now)
    end = edge if span.end is None else min(Timeframe.M1.ceil(span.end), edge)
    if span.start is not None:
        start = minute_floor(span.start)
    elif span.days is None and known.covered.end is not None:
        start = min(known.covered.end, edge - MINUTE)
    else:
        start = days_back(now, span.days, backfill_days, floor)
    if start >= edge:
        raise UsageError(f"{start:%Y-%m-%d %H:%M} lies in the future: give an earlier start")
    if start >= end:
        raise UsageError(f"from ({start:%Y-%m-%d %H:%M}) must lie before to ({end:%Y-%m-%d %H:%M})")
    refuse_below(floor, start)
    return Range(start, end)


def seconds(requests: int, rate_limit: int | None) -> int:
    """How long so many calls take that go before all others; rate_limit: calls a minute, None: unlimited."""
    return 0 if rate_limit is None or not requests else (requests - 1) // rate_limit * 60
