"""Writes what was fetched: bars, what changed, and the ledger, in one transaction; all of it or nothing."""

from collections.abc import Mapping, Sequence
from datetime import datetime, timedelta
from typing import Any, Literal

import msgspec
from psycopg import AsyncConnection

from service import ledger
from service.bars import Bars, RejectedBar, from_ms
from service.coverage import MINUTE, Ledger, Piece, minute_floor, settled_edge
from service.db.connect import WRITER_LOCK, as_multirange, as_range
from service.db.engines import Engine
from service.merge import Counts, Part, copy_new, merge
from service.ranges import Range, Ranges


class Stored(msgspec.Struct, frozen=True, kw_only=True):
    """How many bars a write found new, changed, unchanged, and could not take."""

    new: int = 0
    changed: int = 0
    unchanged: int = 0
    rejected: int = 0

    def __add__(self, other: "Stored") -> "Stored":
        return Stored(**{name: getattr(self, name) + getattr(other, name) for name in self.__struct_fields__})


class Answered(msgspec.Struct, frozen=True, kw_only=True, eq=False):
    """One piece's whole answer, as it is to be stored."""

    piece: Piece
    bars: Bars
    """Within the piece, ended minutes only."""
    rejected: Sequence[RejectedBar]
    source: str
    asked_at: datetime
    """When it was asked for, by the more careful of two clocks; coverage reaches up to what was settled then."""
    kind: Literal["edge", "backfill", "recheck"] = "backfill"
    """An edge is remembered as the symbol's last look at the present; a re-check never takes coverage away."""


class _Outcome(msgspec.Struct, frozen=True, kw_only=True, eq=False):
    """What became of one answer."""

    answer: Answered
    known: Ledger
    settled: Ranges
    counts: Counts


async def store(
    conn: AsyncConnection[Any], engine: Engine, answers: Sequence[Answered], *, settle: timedelta
) -> list[Stored]:
    """Store whole answers, of different symbols: bars that differ, what changed, then the ledger. One transaction.

    Storing the same again changes nothing. A symbol that was removed meanwhile is passed over.
    Returns the counts in the order given. Raises SourceMismatch, and psycopg's errors; then nothing is stored.
    """
    async with conn.transaction():
        known = await ledger.locked(conn, [answer.piece.symbol for answer in answers])
        there = [answer for answer in answers if answer.piece.symbol in known]
        for source in {answer.source for answer in there}:
            await ledger.claim_source(conn, source)
        outcomes = await _write(conn, there, known, settle)
        for outcome in outcomes:
            await _reject(conn, outcome.answer.piece.symbol, outcome.answer.rejected)
        altered = {one.known.symbol: _altered(one) for one in outcomes}
        await _announce(conn, engine, {symbol: span for symbol, span in altered.items() if span is not None})
        if outcomes:
            await _cover(conn, outcomes)
    found = {one.known.symbol: one for one in outcomes}
    return [_stored(found.get(answer.piece.symbol)) for answer in answers]


def _stored(outcome: _Outcome | None) -> Stored:
    if outcome is None:
        return Stored()
    counts = outcome.counts
    rejected = len(outcome.answer.rejected)
    return Stored(new=counts.new, changed=counts.changed, unchanged=counts.unchanged, rejected=rejected)


async def _write(
    conn: AsyncConnection[Any], answers: Sequence[Answered], known: Mapping[str, Ledger], settle: timedelta
) -> list[_Outcome]:
    settled = {answer.piece.symbol: _settled(answer, known[answer.piece.symbol], settle) for answer in answers}
    parts = [
        Part(
            piece=answer.piece,
            bars=answer.bars,
            # A minute whose bar came, but cannot be, is not one without a bar: what is stored there stays.
            covered=known[answer.piece.symbol].covered - _minutes(answer.rejected),
            settling=settled[answer.piece.symbol] - known[answer.piece.symbol].covered,
            recheck=answer.kind == "recheck",
        )
        for answer in answers
        if len(answer.bars)
    ]
    counts: dict[str, Counts] = {}
    if len(parts) == 1 and (copied := await copy_new(conn, parts[0])) is not None:
        counts[parts[0].piece.symbol] = copied
    elif parts:
        counts.update(await merge(conn, parts, answers[0].asked_at))
    return [
        _Outcome(
            answer=answer,
            known=known[answer.piece.symbol],
            settled=settled[answer.piece.symbol],
            counts=counts.get(answer.piece.symbol, Counts()),
        )
        for answer in answers
    ]


def _settled(answer: Answered, known: Ledger, settle: timedelta) -> Ranges:
    """What of the piece neither changes nor fills any more."""
    last_bar = max(
        filter(None, [known.last_bar, from_ms(int(answer.bars.ts[-1])) if len(answer.bars) else None]), default=None
    )
    within = answer.piece.range
    return Ranges.of(within.start, min(within.end, settled_edge(answer.asked_at, last_bar, settle)))


async def _reject(conn: AsyncConnection[Any], symbol: str, rejected: Sequence[RejectedBar]) -> None:
    for bar in rejected:
        await conn.execute(
            "INSERT INTO market_data.rejected_bars (symbol, ts, raw, reason) VALUES (%s, %s, %s, %s)"
            " ON CONFLICT (symbol, ts) DO UPDATE SET raw = excluded.raw, reason = excluded.reason, rejected_at = now()",
            (symbol, from_ms(bar.ts), bar.raw, bar.reason),
        )


def _altered(outcome: _Outcome) -> Range | None:
    """From the first to the end of the last minute that reads otherwise now: also those that are covered no more."""
    parts = list(_refused(outcome) & outcome.known.covered)
    if outcome.counts.altered is not None:
        parts.append(outcome.counts.altered)
    return Range(min(one.start for one in parts), max(one.end for one in parts)) if parts else None


def _refused(outcome: _Outcome) -> Ranges:
    """The settled minutes whose bar came and cannot be; a re-check takes no coverage away."""
    refused = _minutes(outcome.answer.rejected) & outcome.settled
    return refused - outcome.known.covered if outcome.answer.kind == "recheck" else refused


async def _announce(conn: AsyncConnection[Any], engine: Engine, altered: Mapping[str, Range]) -> None:
    """Derive or note what follows from the altered bars. From here to the commit transactions go one by one."""
    if not altered:
        return
    await engine.derive(conn, altered)
    await conn.execute("SELECT pg_advisory_xact_lock(%s)", (WRITER_LOCK,))
    rows = await conn.execute(
        "INSERT INTO market_data.changes (symbol, range)"
        " SELECT symbol, range FROM unnest(%s::text[], %s::tstzrange[]) AS altered (symbol, range) RETURNING id",
        (list(altered), [as_range(one) for one in altered.values()]),
    )
    await engine.note(conn, [number for (number,) in await rows.fetchall()])


async def _cover(conn: AsyncConnection[Any], outcomes: Sequence[_Outcome]) -> None:
    await conn.cursor().executemany(_COVER, [_row(outcome) for outcome in outcomes])


def _row(outcome: _Outcome) -> dict[str, Any]:
    """The new ledger row of a symbol."""
    answer, known, settled = outcome.answer, outcome.known, outcome.settled
    ts = answer.bars.ts
    received = [from_ms(int(ts[place])) for place in (0, -1)] if len(ts) else []
    refused = _refused(outcome)
    edge = answer.kind == "edge"
    done = as_range(answer.piece.range)
    return {
        "symbol": known.symbol,
        "covered": as_multirange((known.covered | settled) - refused),
        "unavailable": as_multirange((known.unavailable - settled) | refused),
        "first_bar": min(filter(None, [known.first_bar, *received]), default=None),
        "last_bar": max(filter(None, [known.last_bar, *received]), default=None),
        "rows": outcome.counts.new + outcome.counts.changed,
        "changed": outcome.counts.changed,
        "at": answer.asked_at,
        "asked_to": min(answer.piece.range.end, minute_floor(answer.asked_at)) if edge else None,
        "asked_at": answer.asked_at if edge else None,
        "done": done,
        "rechecked": done if answer.kind == "recheck" else None,
        "rechecked_at": answer.asked_at if answer.kind == "recheck" else None,
    }


def _minutes(rejected: Sequence[RejectedBar]) -> Ranges:
    return Ranges((from_ms(bar.ts), from_ms(bar.ts) + MINUTE) for bar in rejected)


_COVER = """
    UPDATE market_data.sync_state SET
        covered = %(covered)s, unavailable = %(unavailable)s, first_bar = %(first_bar)s, last_bar = %(last_bar)s,
        status = 'ok', error_message = NULL, next_attempt_at = NULL, failures = 0,
        last_sync_at = %(at)s, last_sync_rows = %(rows)s, last_sync_changed = %(changed)s,
        asked_to = greatest(asked_to, %(asked_to)s), asked_at = greatest(asked_at, %(asked_at)s),
        wanted = wanted + CASE WHEN %(asked_to)s::timestamptz > tracked_from
            THEN tstzmultirange(tstzrange(tracked_from, %(asked_to)s)) ELSE '{}' END,
        requested = requested - tstzmultirange(%(done)s::tstzrange),
        recheck = recheck - coalesce(tstzmultirange(%(rechecked)s::tstzrange), '{}'),
        rechecked_at = greatest(rechecked_at, %(rechecked_at)s)
    WHERE symbol = %(symbol)s
"""
