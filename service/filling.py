"""Candles where there are none: what stands in the gaps of an answer, and which price is carried into them."""

from datetime import datetime
from typing import Any

import msgspec
import numpy as np
from psycopg import AsyncConnection

from service import proof
from service.aggregate import fill
from service.bars import Bars, from_ms, to_ms
from service.frames import Ask, Frame
from service.look import Look, collect
from service.proof import Terms
from service.ranges import Range
from service.windows import State


class Carried(msgspec.Struct, frozen=True, kw_only=True):
    """The last candle before a range."""

    t: int
    close: float | None
    """None where something is missing between the two."""


def filled_frame(
    found: Bars, state: State, terms: Terms, ask: Ask, *, within: tuple[int, int], carried: Carried | None
) -> tuple[Frame, Carried | None]:
    """The frame of all candle starts in a range, and what is carried on behind it."""
    grid = ask.span.edges(*within)
    doubtful = proof.changing(state, terms, ask.span, grid)
    candles, put = fill(found, grid, ask.fill, doubtful, carried.close if carried else None)
    frame = Frame(candles=candles, changing=doubtful[np.searchsorted(grid, candles.ts)], filled=put)
    if len(found):
        carried = Carried(t=int(found.ts[-1]), close=float(found.close[-1]))
    if carried is not None and doubtful[np.searchsorted(grid, carried.t) :].any():
        carried = Carried(t=carried.t, close=None)
    return frame, carried


async def carried_before(conn: AsyncConnection[Any], state: State, terms: Terms, ask: Ask, low: int) -> Carried | None:
    """The last candle before `low`, Unix ms, where its close is asked for."""
    if ask.fill != "flat":
        return None
    before = Look(symbol=ask.symbol, span=ask.span, low=None, high=low, end=low)
    last_bar = None if state.ledger.last_bar is None else to_ms(state.ledger.last_bar)
    _, found = await collect(conn, before, 1, newest=True, last_bar=last_bar)
    if not len(found):
        return None
    start = int(found.ts[-1])
    between = Range(from_ms(start), from_ms(low))
    known = not proof.doubtful(state, ask.span, between, terms.settled(state))
    return Carried(t=start, close=float(found.close[-1]) if known else None)


def since(ask: Ask, carried: Carried | None) -> datetime | None:
    """How far before its range an answer depends on bars; all of the past where no price was found to carry on."""
    if ask.fill != "flat":
        return None
    return from_ms(carried.t if carried else 0)
