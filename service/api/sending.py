"""What all answers about candles share on their way out: their headers, their tag, and how they are compressed."""

import asyncio
from collections.abc import Mapping, Sequence
from typing import Any

import msgspec
from litestar import Request, Response
from psycopg import AsyncConnection

from service.api.compression import Compressor, compressor_of
from service.api.memory import KEEP, Keep
from service.api.negotiation import Coding, chosen_coding
from service.api.problems import MissingRange
from service.api.validators import entity_tag, still_holds
from service.proof import Head
from service.ranges import Range
from service.timeframes import Timeframe

WORTH_COMPRESSING = 1000
"""Bytes."""
_LARGE = 64 * 1024
"""Bytes that are compressed in a thread."""
_LONGEST_HEADER = 2000


class Validated(msgspec.Struct, frozen=True, kw_only=True):
    """What a request's If-None-Match comes to."""

    headers: dict[str, str]
    """To be added to those of the answer."""
    tag: str | None
    """The answer's; None where it may change by itself."""
    unchanged: bool
    """The client has it already: 304."""


def coding_of(request: Request[Any, Any, Any]) -> Coding:
    """How the client likes its answer to be compressed."""
    return chosen_coding(request.headers.get("accept-encoding", ""))


def headers_of(
    *, complete: bool | None = None, missing: Sequence[MissingRange] = (), vary: str = "Accept-Encoding"
) -> dict[str, str]:
    """The headers of an answer that may be another one the next time. complete: None where there is no such thing."""
    headers = {"Cache-Control": "no-store", "Vary": vary}
    if complete is not None:
        headers["X-Complete"] = "true" if complete else "false"
    if missing:
        text = msgspec.json.encode(missing).decode()
        headers["X-Missing"] = text if len(text) <= _LONGEST_HEADER else f"{len(missing)} ranges"
    return headers


async def validated(
    conn: AsyncConnection[Any],
    request: Request[Any, Any, Any],
    heads: Sequence[Head],
    depends: Mapping[str, Range] | None,
    *,
    variant: str,
    stored: Timeframe,
) -> Validated:
    """Whether the client has the answer made of these heads already; if not, it may be kept in memory.

    heads: read in one snapshot. depends: what each symbol's part depends on; None: the answer may change by itself.
    variant: the answer's form and coding. stored: whose retention ends it.
    """
    if depends is None:
        return Validated(headers={}, tag=None, unchanged=False)
    tag, known = entity_tag(heads, variant), request.headers.get("if-none-match")
    if known is not None and (held := await still_holds(conn, known, tag, variant, depends)):
        return Validated(headers={"ETag": held, "Cache-Control": "public, no-cache"}, tag=held, unchanged=True)
    request.scope["state"][KEEP] = Keep(depends=depends, stored=stored)
    return Validated(headers={"ETag": tag, "Cache-Control": "public, no-cache"}, tag=tag, unchanged=False)


def unchanged(headers: Mapping[str, str]) -> Response[Any]:
    """304."""
    return Response(b"", status_code=304, headers=dict(headers))


async def whole(
    parts: Sequence[bytes], coding: Coding, *, media_type: str, headers: Mapping[str, str]
) -> Response[Any]:
    """An answer in one piece, compressed if that is worth it."""
    compressor = compressor_of(coding) if sum(map(len, parts)) >= WORTH_COMPRESSING else None
    if compressor is not None:
        parts = [*[await compressed(compressor, part) for part in parts], compressor.finish()]
        headers = {**headers, "Content-Encoding": coding}
    return Response(b"".join(parts), media_type=media_type, headers=dict(headers))


async def compressed(compressor: Compressor, part: bytes) -> bytes:
    """What comes out for a part: of a large one in a thread."""
    if len(part) <= _LARGE:
        return compressor.compress(part)
    return await asyncio.to_thread(compressor.compress, part)
