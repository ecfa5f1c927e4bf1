"""Answers a checked request for candles: reads it, judges it, and sends it whole or piece by piece."""

import asyncio
import re
from collections.abc import AsyncGenerator, Iterator, Sequence
from contextlib import aclosing
from typing import Any

import msgspec
from litestar import Request, Response
from psycopg import AsyncConnection

from service import query
from service.api import rows
from service.api.asking import TABLES, Asked
from service.api.compression import Compressor, compressor_of
from service.api.negotiation import MEDIA_TYPES, Coding
from service.api.problems import Incomplete, MissingRange
from service.api.sending import coding_of, compressed, headers_of, unchanged, validated, whole
from service.api.serving import Serving
from service.api.transfer import Streamed
from service.api.turns import Turns
from service.api.validators import dependencies
from service.api.writers import Writer, next_page, writer_of
from service.bars import to_ms
from service.frames import Frame, Page, Stream
from service.proof import Head, Terms

WHOLE = 2000
"""Up to so many candles are sent in one piece, with their length."""
_VARY = "Accept, Accept-Encoding"
_EXTENSIONS = {"csv": "csv", "parquet": "parquet"}

Reading = Page | Stream


async def answer(request: Request[Any, Any, Any], serving: Serving, asked: Asked, terms: Terms) -> Response[Any]:
    """The answer to a request. Raises Incomplete where it asks for that, and UnknownSymbol."""
    coding: Coding = "identity" if asked.form == "parquet" else coding_of(request)
    async with serving.db.connection() as conn:
        readings = await _read(conn, serving, asked, terms)
        heads = [reading.head for reading in readings]
        if asked.require_complete:
            _refuse_incomplete(asked, heads)
        checked = await validated(
            conn,
            request,
            heads,
            dependencies(heads),
            variant=f"{asked.form}-{coding}",
            stored=asked.span.stored,
        )
    serving.note(heads)
    headers = _headers(asked, heads) | checked.headers
    return unchanged(headers) if checked.unchanged else await _respond(serving, asked, readings, headers, coding)


async def _read(conn: AsyncConnection[Any], serving: Serving, asked: Asked, terms: Terms) -> list[Reading]:
    """The pages, or the beginnings of the streams, of all symbols; several of them in one snapshot."""
    if len(asked.symbols) == 1:
        return [await _reading(conn, serving, terms, asked, asked.symbols[0])]
    async with query.snapshot(conn):
        return [await _reading(conn, serving, terms, asked, symbol) for symbol in asked.symbols]


async def _reading(conn: AsyncConnection[Any], serving: Serving, terms: Terms, asked: Asked, symbol: str) -> Reading:
    if asked.streamed:
        return await query.stream(conn, serving.bulk, terms, asked.of(symbol))
    known = serving.known.get(symbol)
    return await query.page(conn, terms, asked.of(symbol), known=known, recent=serving.recent)


def _refuse_incomplete(asked: Asked, heads: Sequence[Head]) -> None:
    """Raise Incomplete unless every part is complete."""
    gaps: list[MissingRange] = []
    for head in heads:
        own = rows.missing(head)
        if not head.complete and not own:
            start, end = to_ms(head.asked.start), to_ms(head.asked.end)
            own = [MissingRange(start=start, end=end, reason="not settled")]
        gaps += own if asked.alone else [msgspec.structs.replace(gap, symbol=head.symbol) for gap in own]
    if gaps:
        raise Incomplete("not all of it is there: see `missing`, or ask without require_complete", gaps)


def _headers(asked: Asked, heads: Sequence[Head]) -> dict[str, str]:
    if asked.form not in TABLES:
        return headers_of(vary=_VARY)
    gaps = rows.missing(heads[0]) if asked.alone else []
    headers = headers_of(complete=all(head.complete for head in heads), missing=gaps, vary=_VARY)
    if asked.alone and (page := next_page(asked, heads[0])) is not None:
        headers["Link"] = f'<{page}>; rel="next"'
    if asked.form in _EXTENSIONS:
        headers["Content-Disposition"] = f'attachment; filename="{_filename(asked, heads)}"'
    return headers


def _filename(asked: Asked, heads: Sequence[Head]) -> str:
    """Such as EURUSD_1h_2024-03-01_2024-03-05.csv."""
    named = re.sub(r"[^A-Za-z0-9.-]", "-", heads[0].symbol) if asked.alone else f"{len(heads)}-symbols"
    start, end = min(head.asked.start for head in heads), max(head.asked.end for head in heads)
    return f"{named}_{asked.span.name}_{start:%Y-%m-%d}_{end:%Y-%m-%d}.{_EXTENSIONS[asked.form]}"


async def _respond(
    serving: Serving, asked: Asked, readings: Sequence[Reading], headers: dict[str, str], coding: Coding
) -> Response[Any]:
    media_type = MEDIA_TYPES[asked.form]
    writer = writer_of(asked, [reading.head for reading in readings])
    pages = [one for one in readings if isinstance(one, Page)]
    if len(pages) == len(readings) and sum(len(one.frame) for one in pages) <= WHOLE:
        return await whole([b"".join(_whole(writer, pages))], coding, media_type=media_type, headers=headers)
    parts = _parts(serving.turns, writer, readings)
    compressor = compressor_of(coding)
    if compressor is not None:
        parts = _compressed(parts, compressor)
        headers |= {"Content-Encoding": coding}
    named = f"candles of {', '.join(asked.symbols[:3])} as {asked.form}"
    return Streamed(parts, named, media_type=media_type, headers=headers)


def _whole(writer: Writer, pages: Sequence[Page]) -> Iterator[bytes]:
    yield writer.begin()
    for page in pages:
        yield writer.open(page.head)
        yield from writer.write(page.head, page.frame)
        yield writer.close(page.head)
    yield writer.end()


async def _parts(turns: Turns, writer: Writer, readings: Sequence[Reading]) -> AsyncGenerator[bytes, None]:
    """The same piece by piece; between two of them others have their turn."""
    yield writer.begin()
    for reading in readings:
        yield writer.open(reading.head)
        async with aclosing(_frames(reading)) as frames:
            async for frame in frames:
                pieces = writer.write(reading.head, frame)
                while (piece := await _next(turns, pieces, threaded=writer.threaded)) is not None:
                    yield piece
        yield writer.close(reading.head)
    yield writer.end()


async def _frames(reading: Reading) -> AsyncGenerator[Frame, None]:
    if isinstance(reading, Page):
        yield reading.frame
        return
    async with aclosing(reading.frames) as frames:
        async for frame in frames:
            yield frame


async def _next(turns: Turns, pieces: Iterator[bytes], *, threaded: bool) -> bytes | None:
    await turns.after_the_others()
    if threaded:
        return await asyncio.to_thread(next, pieces, None)
    return next(pieces, None)


async def _compressed(parts: AsyncGenerator[bytes, None], compressor: Compressor) -> AsyncGenerator[bytes, None]:
    async with aclosing(parts):
        async for part in parts:
            if out := await compressed(compressor, part):
                yield out
        yield compressor.finish()
