"""Answers a chart's request for history: candles or none, whether they are complete, and whether they may be kept."""

from typing import Any
from urllib.parse import urlencode

import msgspec
from litestar import Request, Response
from psycopg import AsyncConnection

from service import query
from service.api import rows, udf_history
from service.api.sending import coding_of, headers_of, unchanged, validated, whole
from service.api.serving import Serving
from service.api.udf_history import HistoryAnswer, NoData, Wanted
from service.api.udf_symbols import find
from service.frames import Ask, Page
from service.proof import Head
from service.ranges import Range

_encode = msgspec.json.Encoder().encode


class _Reading(msgspec.Struct, frozen=True, kw_only=True):
    """What was read for an answer."""

    ask: Ask
    page: Page
    """Of the range asked for; ascending."""
    older: Page | None
    """The candles before it, where it has none."""

    @property
    def heads(self) -> list[Head]:
        """Of all that the answer is made of."""
        return [self.page.head] if self.older is None else [self.older.head, self.page.head]


async def answer(request: Request[Any, Any, Any], serving: Serving, wanted: Wanted) -> Response[Any]:
    """The answer to a request. Raises UnknownSymbol, and BadQuery for a resolution that there is not."""
    coding = coding_of(request)
    async with serving.db.connection() as conn:
        reading = await _read(conn, serving, wanted)
        depends = _depends(reading, wanted)
        checked = await validated(
            conn,
            request,
            reading.heads,
            None if depends is None else {reading.ask.symbol: depends},
            variant=f"udf-{coding}",
            stored=reading.ask.span.stored,
        )
    serving.note(reading.heads)
    headers = _headers(reading, wanted) | checked.headers
    if checked.unchanged:
        return unchanged(headers)
    return await whole([_encode(_body(reading, wanted))], coding, media_type="application/json", headers=headers)


async def _read(conn: AsyncConnection[Any], serving: Serving, wanted: Wanted) -> _Reading:
    one = await find(conn, wanted.symbol)
    ask, terms = udf_history.ask_of(wanted, one), serving.terms()
    page, older = await query.page(conn, terms, ask, last_bar=one.last_bar), None
    if ask.order == "desc":
        page = msgspec.structs.replace(page, frame=page.frame.part(slice(None, None, -1)))
    if not len(page.frame) and ask.start is not None:
        before = Ask(symbol=ask.symbol, span=ask.span, end=ask.start, limit=1)
        older = await query.page(conn, terms, before, last_bar=one.last_bar)
    return _Reading(ask=ask, page=page, older=older)


def _body(reading: _Reading, wanted: Wanted) -> HistoryAnswer | NoData:
    frame, span = reading.page.frame, reading.ask.span
    if len(frame):
        return udf_history.columns(frame, span, dated=wanted.dated)
    if reading.older is None or not len(reading.older.frame):
        return NoData()
    (latest,) = udf_history.times(span, reading.older.frame.candles.ts, dated=wanted.dated)
    return NoData(next_time=latest)


def _depends(reading: _Reading, wanted: Wanted) -> Range | None:
    """The bars that the answer is made of; None where it may change by itself, or by bars further back."""
    page, older = reading.page.head.depends, reading.older
    if reading.ask.start is None:
        return page if len(reading.page.frame) == wanted.count else None
    if older is None or page is None:
        return page
    before = older.head.depends
    if not len(older.frame) or before is None or older.head.state.revision != reading.page.head.state.revision:
        return None
    return Range(before.start, page.end)


def _headers(reading: _Reading, wanted: Wanted) -> dict[str, str]:
    """The proof, in the words of the other tables."""
    head = reading.page.head
    headers = headers_of(complete=head.complete, missing=rows.missing(head))
    if reading.ask.start is not None and head.more is not None:
        first = udf_history.times(reading.ask.span, reading.page.frame.candles.ts[:1], dated=wanted.dated)[0]
        asked = {
            "symbol": head.symbol,
            "resolution": wanted.resolution,
            "from": (wanted.start or 0) // 1000,
            "to": first,
        }
        headers["Link"] = f'</udf/history?{urlencode(asked)}>; rel="next"'
    return headers
