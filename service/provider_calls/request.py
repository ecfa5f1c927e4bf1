"""Reading a request as the provider reads it: every parameter checked, the range snapped to whole bars."""

import re
from collections.abc import Mapping
from datetime import date, timedelta
from typing import Any, Literal, TypeVar
from urllib.parse import parse_qsl, quote, urlencode

import msgspec

from service.provider_calls import cursors
from service.provider_calls.markets import zone_of
from service.provider_calls.refusals import BAD_TIME, NO_SUCH_CALL, TO_BEFORE_FROM, Refusal
from service.spans import UNITS, Span
from service.zones import EPOCH_DATE, midnight

MOST_BARS = 50_000
LAST_DATE = date(2199, 12, 31)
LAST_MS = 7_258_118_400_000
"""The midnight after it: no instant beyond is told apart from it."""
_AGGS = re.compile(r"/v2/aggs/ticker/([^/]+)/range/([^/]+)/([^/]+)/([^/]+)/([^/]+)")
_DATE = re.compile(r"\d{4}-\d{2}-\d{2}", re.ASCII)
_MILLISECONDS = re.compile(r"-?\d{1,18}", re.ASCII)
_T = TypeVar("_T")


class Request(msgspec.Struct, frozen=True, kw_only=True):
    """A request as it came in."""

    method: str
    path: str
    """Percent-decoded."""
    query: Mapping[str, str]
    base: str
    """Scheme and host that the client used: http://127.0.0.1:9000."""
    bearer: str | None
    """The key of the Authorization header, where one was sent."""

    @property
    def key(self) -> str:
        """The API key, from the header or the URL; empty: none."""
        return self.bearer or self.query.get("apiKey", "")

    @property
    def url(self) -> str:
        """Its own absolute URL without the key."""
        query = urlencode({name: value for name, value in self.query.items() if name != "apiKey"})
        return f"{self.base}{quote(self.path, safe='/:')}" + (f"?{query}" if query else "")

    @classmethod
    def of(cls, scope: Mapping[str, Any]) -> "Request":
        """From an ASGI scope."""
        headers = dict(scope["headers"])
        word, _, key = headers.get(b"authorization", b"").decode("latin-1").partition(" ")
        return cls(
            method=scope["method"],
            path=scope["path"],
            query=dict(parse_qsl(scope["query_string"].decode("latin-1"), keep_blank_values=True)),
            base=f"{scope['scheme']}://{headers.get(b'host', b'localhost').decode('latin-1')}",
            bearer=(key.strip() or None) if word.lower() == "bearer" else None,
        )


class Wanted(msgspec.Struct, frozen=True, kw_only=True):
    """A request for bars, checked; the range is half-open `[start, end)`, Unix ms, and holds whole bars."""

    ticker: str
    span: Span
    start: int
    end: int
    since: str
    until: str
    """`from` and `to` as they were written."""
    adjusted: bool
    sort: Literal["asc", "desc"]
    limit: int

    def next_url(self, base: str, follow: int) -> str:
        """The address of the page that begins (descending: ends) at `follow`, Unix ms; it holds no key."""
        since, until = (follow, self.until) if self.sort == "asc" else (self.since, follow - 1)
        cursor = cursors.sealed({"limit": self.limit, "sort": self.sort, "adjusted": str(self.adjusted).lower()})
        path = f"{quote(self.ticker, safe=':')}/range/{self.span.multiplier}/{self.span.unit}/{since}/{until}"
        return f"{base}/v2/aggs/ticker/{path}?cursor={cursor}"


def asks_for_bars(path: str) -> bool:
    """Whether a path is that of the bars."""
    return _AGGS.fullmatch(path) is not None


def wanted(request: Request) -> Wanted:
    """Check a request for bars; Refusal (400) in the provider's words if it cannot be read."""
    found = _AGGS.fullmatch(request.path)
    if found is None or request.method != "GET":
        raise Refusal(404, NO_SUCH_CALL)
    ticker, multiplier, timespan, since, until = found.groups()
    span = _span(multiplier, timespan, zone_of(ticker))
    start, end = _instant("from", since, span.zone), _instant("to", until, span.zone)
    if end < start:
        raise Refusal(400, TO_BEFORE_FROM)
    query = cursors.opened(request.query["cursor"]) if "cursor" in request.query else request.query
    return Wanted(
        ticker=ticker,
        span=span,
        start=span.floor(start),
        end=span.after(end),
        since=since,
        until=until,
        adjusted=choice(query, "adjusted", {"true": True, "false": False}, default=True),
        sort=choice(query, "sort", {"asc": "asc", "desc": "desc"}, default="asc"),
        limit=number(query, "limit", default=5000, most=MOST_BARS),
    )


def _span(multiplier: str, timespan: str, zone: str) -> Span:
    if not multiplier.isascii() or not multiplier.isdecimal() or int(multiplier[:30]) < 1:
        raise Refusal(400, "The parameter 'multiplier' must be a positive integer")
    if timespan == "second":
        raise Refusal(400, "The timespan 'second' is not available: one-minute bars are the finest here")
    unit = next((one for one in UNITS if one == timespan), None)
    if unit is None:
        raise Refusal(400, f"Could not parse the parameter: 'timespan'. Use one of {', '.join(UNITS)}")
    return Span(multiplier=int(multiplier[:30]), unit=unit, zone=zone)


def _instant(name: str, text: str, zone: str) -> int:
    """Unix ms; a date is its first instant as `from` and its last millisecond as `to`. Kept within 1970 to 2200."""
    if _MILLISECONDS.fullmatch(text):
        return min(max(int(text), 0), LAST_MS)
    try:
        day = date.fromisoformat(text) if _DATE.fullmatch(text) else None
    except ValueError:
        day = None
    if day is None:
        raise Refusal(400, BAD_TIME.format(name))
    day = min(max(day, EPOCH_DATE), LAST_DATE)
    return midnight(zone, day) if name == "from" else midnight(zone, day + timedelta(days=1)) - 1


def choice(query: Mapping[str, str], name: str, allowed: Mapping[str, _T], *, default: _T) -> _T:
    """What one of a few words stands for; Refusal (400) for another word."""
    if name not in query:
        return default
    if query[name] not in allowed:
        raise Refusal(400, f"The parameter '{name}' must be one of: {', '.join(allowed)}")
    return allowed[query[name]]


def number(query: Mapping[str, str], name: str, *, default: int, most: int) -> int:
    """A whole number from 1 on; Refusal (400) for anything else."""
    text = query.get(name, str(default))
    if not re.fullmatch(r"\d{1,9}", text, re.ASCII) or not 1 <= int(text) <= most:
        raise Refusal(400, f"The parameter '{name}' must be an integer between 1 and {most}")
    return int(text)
