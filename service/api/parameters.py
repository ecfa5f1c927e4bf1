"""Reads query parameters: instants, timeframes, limits; whatever cannot be used is refused with what can."""

import re
from collections.abc import Collection, Mapping, Sequence
from datetime import UTC, datetime, timedelta
from typing import Any, TypeVar
from zoneinfo import ZoneInfo

from litestar import Request

from service import spans
from service.api.problems import BadQuery
from service.bars import from_ms
from service.catalogue import ASSET_TYPES
from service.errors import UnknownSymbol
from service.instruments import AssetType
from service.spans import Span
from service.timeframes import Timeframe
from service.zones import zone_named

EARLIEST = datetime(1970, 1, 1, tzinfo=UTC)
LATEST = datetime(2200, 1, 1, tzinfo=UTC)
_Word = TypeVar("_Word", bound=str)
_INSTANT = "Unix ms, a date (2024-01-31), or ISO 8601 (2024-01-31T09:30Z; without an offset in tz)"
MULTIPLES = ("<n>m", "<n>h", "<n>d", "<n>w", "<n>mo", "<n>q", "<n>y")
"""How any whole multiple of a unit is written."""
_SMALLEST_MS = 100_000_000_000
"""1973-03-03. A smaller number but 0 is more likely Unix seconds or a date without dashes than a market's minute."""


def check(given: Mapping[str, list[str]], allowed: Collection[str]) -> None:
    """Refuse parameters that the call does not have (a misspelt one would silently be ignored), or has twice."""
    for name, values in given.items():
        if name not in allowed:
            raise BadQuery(f"unknown parameter {name!r}", sorted(allowed))
        if len(values) > 1:
            raise BadQuery(f"{name} is given {len(values)} times")


def given(request: Request[Any, Any, Any], allowed: Collection[str]) -> dict[str, str]:
    """The parameters of a request by their names; refused as `check` says."""
    query = request.query_params.dict()
    check(query, allowed)
    return {name: values[0] for name, values in query.items()}


def instant(name: str, text: str | None, zone: str = "UTC") -> datetime | None:
    """An aware UTC instant; None where the parameter is absent. zone: whose clocks a date or time without offset means.

    A time that these clocks show twice means the first, one that they skip as long after the jump.
    """
    if text is None:
        return None
    try:
        at = _instant(text.strip(), zone)
    except (ValueError, OverflowError, OSError):
        raise BadQuery(f"{name}={text!r} is no instant: give {_INSTANT}") from None
    if not EARLIEST <= at < LATEST:
        raise BadQuery(f"{name}={text!r} lies outside {EARLIEST:%Y} to {LATEST:%Y}")
    return at


def timeframe(text: str | None) -> Timeframe:
    """One of the six timeframes by any of its spellings; 1m where the parameter is absent."""
    if text is None:
        return Timeframe.M1
    try:
        return Timeframe.parse(text)
    except ValueError as exc:
        raise BadQuery(f"unknown timeframe {text!r}", Timeframe.spellings()) from exc


def span(text: str | None, zone: str | None) -> Span:
    """The length of the candles, by any of its spellings, cut in a zone; 1m and UTC where the parameters are absent."""
    try:
        zone_named("UTC" if zone is None else zone)
    except ValueError as exc:
        raise BadQuery(f"tz: {exc}") from exc
    try:
        return spans.parse("1m" if text is None else text, zone or "UTC")
    except ValueError as exc:
        raise BadQuery(str(exc), (*Timeframe.spellings(), *MULTIPLES)) from exc


def number(name: str, text: str | None, *, default: int, least: int, most: int) -> int:
    """A whole number within bounds."""
    if text is None:
        return default
    if not re.fullmatch(r"[0-9]{1,9}", text) or not least <= int(text) <= most:
        raise BadQuery(f"{name}={text!r} must be a whole number from {least} to {most}")
    return int(text)


def symbol(text: str) -> str:
    """A symbol as it stands in a path, in our spelling; UnknownSymbol where there can be none of that name."""
    if not re.fullmatch("[!-~]{1,32}", text):
        raise UnknownSymbol(text[:32])
    return text.upper()


def symbols(text: str, most: int) -> list[str]:
    """Symbols with commas between them, in our spelling, each once."""
    found = list(dict.fromkeys(symbol(name.strip()) for name in text.split(",") if name.strip()))
    if not 1 <= len(found) <= most:
        raise BadQuery(f"symbols names {len(found)} of them: give 1 to {most}, as in symbols=EURUSD,GBPUSD")
    return found


def asset_type(text: str | None) -> AssetType | None:
    """One of the asset types; None where the parameter is absent."""
    return None if text is None else choice("asset_type", text, ASSET_TYPES)


def flag(name: str, text: str | None) -> bool | None:
    """What true or false says; None where the parameter is absent."""
    return None if text is None else choice(name, text, ("true", "false")) == "true"


def choice(name: str, text: str | None, allowed: Sequence[_Word]) -> _Word:
    """One of a few words; the first where the parameter is absent."""
    if text is None:
        return allowed[0]
    for word in allowed:
        if word == text.lower():
            return word
    raise BadQuery(f"unknown {name} {text!r}", allowed)


def _instant(text: str, zone: str) -> datetime:
    if re.fullmatch(r"-?[0-9]+", text) and text != "0":
        ms = int(text)
        if ms < _SMALLEST_MS:
            raise ValueError(text)
        return from_ms(ms)
    if text == "0":
        return EARLIEST
    # "+01:00" unescaped in a URL arrives as " 01:00".
    at = datetime.fromisoformat(re.sub(r"(T[0-9:.,]+) ([0-9]{2}:?[0-9]{2})$", r"\1+\2", text))
    at = (at.replace(tzinfo=ZoneInfo(zone)) if at.tzinfo is None else at).astimezone(UTC)
    # Up to the next millisecond, in which pages are named: no candle starts between the two.
    return at + timedelta(microseconds=-at.microsecond % 1000)
