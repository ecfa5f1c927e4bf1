"""Reads candles together with the proof of their completeness: bars, ledger and changes in one snapshot.

A page of up to PAGE candles is read whole. What is longer is streamed: each window is a snapshot of its own, judged by
its own ledger, and holds a connection only while it is read, however slowly its reader takes it.
"""

import asyncio
from collections.abc import AsyncGenerator, AsyncIterator, Callable
from contextlib import AbstractAsyncContextManager, asynccontextmanager
from datetime import datetime
from typing import Any

import msgspec
from psycopg import AsyncConnection, pq

from service import filling, proof, windows
from service.bars import Bars, from_ms, to_ms
from service.filling import Carried, carried_before, filled_frame
from service.frames import PAGE, Ask, Frame, Page, Stream
from service.look import MOST_GROWN_ROWS, Look, Moved, collect
from service.proof import Terms
from service.ranges import Range
from service.recent import Read, Recent
from service.timeframes import EPOCH
from service.windows import State

Connect = Callable[[], AbstractAsyncContextManager[AsyncConnection[Any]]]
STREAM_ROWS = 20_160
"""Stored rows that a window of a stream spans (unless one candle spans more); more after a gap, where bars were few."""
MOST_AT_ONCE = 2 * STREAM_ROWS
"""Stored candles that are read of such a longer window at once."""


async def page(
    conn: AsyncConnection[Any],
    terms: Terms,
    ask: Ask,
    *,
    last_bar: datetime | None = None,
    known: State | None = None,
    recent: Recent | None = None,
) -> Page:
    """At most `ask.limit` candles. Costs O(limit), however long the history is; one round trip where bars are dense.

    last_bar: about where the bars end, if known: it saves a round trip for the latest candles. So does `known`, the
    state of the symbol that was read last, and it makes the read cheaper where that is its state still. recent: where
    the latest candles are kept for as long as that state lasts.
    Raises UnknownSymbol with the nearest names.
    """
    look, limit = _look(ask, terms, known), ask.limit or PAGE
    newest = ask.order == "desc" or ask.start is None
    if ask.fill != "none":
        return await _filled_page(conn, terms, ask, look, limit=limit, newest=newest)
    if recent is not None and ask.start is None and ask.end is None:
        state, found = await _latest(conn, terms, look, limit, last_bar=last_bar, recent=recent)
    else:
        state, found = await _collected(conn, look, limit, newest=newest, last_bar=last_bar)
    kept = found.take(slice(-limit, None) if newest else slice(limit))
    more = None
    if len(found) > limit and (ask.start is not None or ask.order == "desc"):
        more = from_ms(int(kept.ts[0]) if newest else ask.span.after(int(kept.ts[-1])))
    return _paged(state, terms, ask, _frame(kept, state, terms, ask), more=more)


async def _latest(
    conn: AsyncConnection[Any], terms: Terms, look: Look, limit: int, *, last_bar: datetime | None, recent: Recent
) -> tuple[State, Bars]:
    """The latest candles: those read last, if nothing of the symbol has changed since."""
    read = recent.get(look.symbol, look.span, limit)
    if read is not None and read.stands(terms.now, terms.floors[look.span.stored]):
        if read.state.version == await windows.version(conn, look.symbol):
            return read.state, read.candles
        look = msgspec.structs.replace(look, known=None)
    state, found = await _collected(conn, look, limit, newest=True, last_bar=last_bar)
    recent.put(look.symbol, look.span, limit, Read(state=state, candles=found, at=terms.now))
    return state, found


async def _collected(
    conn: AsyncConnection[Any], look: Look, limit: int, *, newest: bool, last_bar: datetime | None
) -> tuple[State, Bars]:
    """The candles of a page and one more, if there is one, all of one moment."""
    if last_bar is None and look.known is not None:
        last_bar = look.known.ledger.last_bar
    guess = None if last_bar is None else to_ms(last_bar)
    try:
        return await collect(conn, look, limit + 1, newest=newest, last_bar=guess)
    except Moved:
        async with snapshot(conn):
            return await collect(conn, look, limit + 1, newest=newest, last_bar=guess)


async def stream(conn: AsyncConnection[Any], connect: Connect, terms: Terms, ask: Ask) -> Stream:
    """Any number of candles, ascending, from `ask.start` (which must be given) on, in flat memory.

    conn: for the head alone. connect: gives a connection for the time of one window.
    Raises UnknownSymbol with the nearest names; so do the frames, should the symbol be removed meanwhile.
    """
    look, more = _look(ask, terms), None
    low, high = look.low or 0, look.high
    async with snapshot(conn):
        state, _ = await look.read(conn, high, high)
        carried = await carried_before(conn, state, terms, ask, low)
    if ask.limit is not None and (end := look.forward(low, ask.limit)) < high:
        high, more = end, from_ms(end)
    if ask.fill == "none":
        bottom, top = look.within(state)
        low, high = max(low, bottom), min(high, top)
    asked = Range(from_ms(low) if ask.start is None else ask.start, ask.end or terms.now)
    head = proof.head(state, terms, ask.span, asked, more=more, since=filling.since(ask, carried))
    bounds = msgspec.structs.replace(look, low=low, high=high, known=state)
    return Stream(head=head, frames=_frames(connect, terms, ask, bounds, carried))


def _look(ask: Ask, terms: Terms, known: State | None = None) -> Look:
    low = None if ask.start is None else ask.span.ceil(to_ms(ask.start))
    end = to_ms(terms.now if ask.end is None else ask.end)
    if ask.fill != "none":
        end = min(end, to_ms(terms.now))  # what is still to come is no gap
    high = ask.span.ceil(end)
    if low is not None:
        low = min(low, high)
    return Look(symbol=ask.symbol, span=ask.span, low=low, high=high, end=end, known=known)


def _frame(candles: Bars, state: State, terms: Terms, ask: Ask) -> Frame:
    return Frame(candles=candles, changing=proof.changing(state, terms, ask.span, candles.ts))


def _paged(
    state: State, terms: Terms, ask: Ask, frame: Frame, *, more: datetime | None, carried: Carried | None = None
) -> Page:
    """The page of an ascending frame."""
    end, start, since = ask.end or terms.now, ask.start, filling.since(ask, carried)
    if start is None:
        starts, limit = frame.candles.ts, ask.limit or PAGE
        start = from_ms(int(starts[0])) if len(starts) else end - min(limit * ask.span.nominal, end - EPOCH)
        if len(frame) < limit:
            since = EPOCH  # earlier bars would join it
    head = proof.head(state, terms, ask.span, Range(start, end), more=more, since=since)
    return Page(head=head, frame=frame if ask.order == "asc" else frame.part(slice(None, None, -1)))


async def _filled_page(
    conn: AsyncConnection[Any], terms: Terms, ask: Ask, look: Look, *, limit: int, newest: bool
) -> Page:
    """As many lengths of time as the limit, with the gaps filled."""
    async with snapshot(conn):
        state, _ = await look.read(conn, look.high, look.high)
        low = look.within(state)[0] if look.low is None else look.low
        high, more = look.high, None
        if newest and (start := look.back(low, limit)) > low:
            low, more = start, from_ms(start)
        elif not newest and (end := look.forward(low, limit)) < high:
            high, more = end, from_ms(end)
        carried = await carried_before(conn, state, terms, ask, low)
        inner = msgspec.structs.replace(look, low=low, high=high)
        found = (await collect(conn, inner, limit + 1, newest=False))[1]
    frame, _ = filled_frame(found, state, terms, ask, within=(low, high), carried=carried)
    if ask.start is None and ask.order == "asc":
        more = None  # the latest ones have no page after them
    return _paged(state, terms, ask, frame, more=more, carried=carried)


async def _frames(
    connect: Connect, terms: Terms, ask: Ask, look: Look, carried: Carried | None
) -> AsyncGenerator[Frame, None]:
    """Window by window; the next one is read while the reader is busy with the one before."""
    base = step = look.step(STREAM_ROWS, STREAM_ROWS)
    longest = look.step(MOST_GROWN_ROWS, MOST_GROWN_ROWS)
    half = base // look.step(1, 1) // 2

    async def read(start: int, end: int) -> tuple[State, Bars]:
        async with connect() as conn:
            return await look.read(conn, start, end, limit=None if end - start <= base else MOST_AT_ONCE)

    def begin(start: int) -> tuple[int, int, asyncio.Task[tuple[State, Bars]]]:
        end = look.above(start, step)
        return start, end, asyncio.create_task(read(start, end))

    pending = begin(look.low) if look.low is not None and look.low < look.high else None
    try:
        while pending is not None:
            start, end, task = pending
            state, found = await asyncio.shield(task)
            if ask.fill == "none" and len(found) == MOST_AT_ONCE:
                end = ask.span.after(int(found.ts[-1]))  # there may be more in this window
            look = msgspec.structs.replace(look, known=state)
            step = min(2 * step, longest) if ask.fill == "none" and len(found) < half else base
            pending = begin(end) if end < look.high else None
            if ask.fill == "none":
                frame = _frame(found, state, terms, ask)
            else:
                frame, carried = filled_frame(found, state, terms, ask, within=(start, end), carried=carried)
            if len(frame):
                yield frame
    finally:
        if pending is not None:
            # Once: the framework cancels a reader again and again, which would cost the connection.
            pending[2].add_done_callback(_seen)
            pending[2].cancel()
            await asyncio.wait([pending[2]])


def _seen(task: asyncio.Task[Any]) -> None:
    """Nobody reads on: how it ended is of no interest."""
    if not task.cancelled():
        task.exception()


@asynccontextmanager
async def snapshot(conn: AsyncConnection[Any]) -> AsyncIterator[None]:
    """All that is read within is of one moment; within another snapshot it is that one's."""
    if conn.info.transaction_status is not pq.TransactionStatus.IDLE:
        yield
        return
    async with conn.transaction():
        await conn.execute("SET TRANSACTION ISOLATION LEVEL REPEATABLE READ, READ ONLY")
        yield
