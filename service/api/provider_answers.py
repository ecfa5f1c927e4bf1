"""Answers to the provider's own calls: their bodies, and how they are sent."""

import asyncio
import hashlib
from collections.abc import Mapping, Sequence
from typing import Any, Literal

import msgspec
from litestar import MediaType, Request, Response
from msgspec import UNSET, UnsetType

from service.api.sending import coding_of, whole
from service.bars import Bars
from service.provider_calls.bodies import Agg, aggs

PIECE = 1000
"""Bars that are turned into text at once, for which everybody else waits: about a millisecond."""
_encode = msgspec.json.Encoder().encode
Status = Literal["OK", "DELAYED"]


class DayAgg(Agg, kw_only=True):
    """A whole day of a ticker; `t` is its last millisecond (stocks, indices: 16:00 New York), Unix ms UTC."""

    ticker: str = msgspec.field(name="T")


class AggsAnswer(msgspec.Struct, frozen=True, kw_only=True):
    """A page of bars."""

    ticker: str
    query_count: int = msgspec.field(name="queryCount")
    """Base bars behind the results: stored minutes for minutes and hours, days for longer bars."""
    results_count: int = msgspec.field(name="resultsCount")
    adjusted: bool
    """False for stocks, whatever was asked for: prices are stored as they were traded."""
    results: list[Agg] | UnsetType = UNSET
    """Absent where there are none."""
    status: Status
    """DELAYED where something of the range is missing: see X-Missing."""
    request_id: str
    count: int | UnsetType = UNSET
    next_url: str | UnsetType = UNSET
    """The next page, without any key; absent at the end."""


class PreviousAnswer(msgspec.Struct, frozen=True, kw_only=True):
    """The last day that is over."""

    ticker: str
    query_count: int = msgspec.field(name="queryCount")
    results_count: int = msgspec.field(name="resultsCount")
    adjusted: bool
    """False for stocks, whatever was asked for."""
    results: list[DayAgg] | UnsetType = UNSET
    status: Status
    request_id: str
    count: int | UnsetType = UNSET


class GroupedAnswer(msgspec.Struct, frozen=True, kw_only=True):
    """A day of a whole market."""

    query_count: int = msgspec.field(name="queryCount")
    results_count: int = msgspec.field(name="resultsCount")
    adjusted: bool
    """False for stocks, whatever was asked for."""
    results: list[DayAgg] | UnsetType = UNSET
    status: Status
    request_id: str
    count: int | UnsetType = UNSET


def status(*, complete: bool) -> Status:
    """What the provider's clients take for a success, either way."""
    return "OK" if complete else "DELAYED"


def request_id(tag: str, url: str) -> str:
    """The same for the same answer, so that a kept one is no other; the provider's have as many digits."""
    return hashlib.blake2b(f"{tag} {url}".encode(), digest_size=16).hexdigest()


async def bars_text(answer: AggsAnswer, bars: Bars) -> list[bytes]:
    """The body of a page in pieces; between two of them others have their turn."""
    before, results, behind = _encode(answer).partition(b'"results":[]')
    parts = [before + results[:-1]] if results else [before]
    for start in range(0, len(bars), PIECE):
        text = _encode(aggs(bars.take(slice(start, start + PIECE))))
        parts += [b"," if start else b"", text[1:-1]]
        await asyncio.sleep(0)
    return [*parts, results[-1:], behind]


async def sent(
    request: Request[Any, Any, Any], body: Sequence[bytes] | msgspec.Struct, headers: Mapping[str, str]
) -> Response[Any]:
    """The answer, compressed as the client likes it."""
    parts = [_encode(body)] if isinstance(body, msgspec.Struct) else body
    return await whole(parts, coding_of(request), media_type=MediaType.JSON, headers=headers)
