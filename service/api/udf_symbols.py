"""What a TradingView chart is told of an instrument: exchange, sessions, decimals, which bars it has."""

import re
from collections.abc import Iterable
from datetime import datetime, timedelta
from functools import lru_cache
from math import floor, isnan, log10
from typing import Any

import msgspec
from msgspec import UNSET, UnsetType
from psycopg import AsyncConnection

from service import catalogue, query
from service.api.serving import Serving
from service.bars import Bars
from service.catalogue import Listed
from service.coverage import MINUTE
from service.errors import UnknownSymbol
from service.frames import Ask
from service.market_hours import Market, hours, market_of, open_ranges
from service.spans import Span

RESOLUTIONS = ("1", "5", "15", "30", "60", "120", "240", "1D", "1W", "1M")
"""What a chart offers; other multiples are answered too."""
EXCHANGES: dict[Market, str] = {
    "forex": "FOREX",
    "crypto": "CRYPTO",
    "us_index": "US",
    "us_stock": "US",
    "german_index": "XETRA",
}
DESCRIPTIONS = {
    "FOREX": "Currencies and metals, over the counter",
    "CRYPTO": "Crypto currencies, all exchanges of the provider",
    "US": "Shares and indices of the United States",
    "XETRA": "German indices",
}
"""Of each exchange. The provider puts the markets together, so these are no single venues."""
_MINUTES = tuple(one for one in RESOLUTIONS if one.isdigit())
_ONE_MINUTE = Span(multiplier=1, unit="minute")
_COARSE_QUOTES = ("JPY", "HUF", "KRW")
"""Currencies whose unit is worth so little that three decimals show as much as five of others."""


class SymbolInfo(msgspec.Struct, frozen=True, kw_only=True):
    """An instrument, in the names of TradingView's LibrarySymbolInfo."""

    name: str
    """Our key: EURUSD."""
    ticker: str
    """What to ask `/udf/history` for: our key too."""
    full_name: str
    """EXCHANGE:KEY."""
    description: str
    type: str
    """forex, commodity, index, crypto or stock."""
    session: str
    """`24x7`, or HHMM-HHMM on the clocks of `timezone`; one that ends where it starts begins on the day before."""
    session_holidays: str | UnsetType = UNSET
    """Dates without a session, YYYYMMDD with commas; absent where the market has none."""
    corrections: str | UnsetType = UNSET
    """Dates that close early, as SESSION:YYYYMMDD,YYYYMMDD; absent where the market has none."""
    timezone: str
    exchange: str
    listed_exchange: str
    minmov: int = 1
    pricescale: int
    """10 to the power of the decimals that prices are shown with."""
    format: str = "price"
    has_intraday: bool = True
    intraday_multipliers: tuple[str, ...]
    """Minutes of the bars that begin with the session; the chart makes longer ones of them itself."""
    has_daily: bool = True
    has_weekly_and_monthly: bool = True
    supported_resolutions: tuple[str, ...] = RESOLUTIONS
    visible_plots_set: str
    """ohlcv, or ohlc where the last bar has no volume."""
    volume_precision: int
    data_status: str = "delayed_streaming"
    """Only ended minutes are kept, and the provider's plan may delay them."""


def exchange_of(one: Listed) -> str:
    """The exchange that an instrument is shown under."""
    return EXCHANGES[market_of(one.asset_type, one.ticker)]


def full_name(one: Listed) -> str:
    """Such as FOREX:EURUSD."""
    return f"{exchange_of(one)}:{one.symbol}"


async def find(conn: AsyncConnection[Any], text: str) -> Listed:
    """An instrument by its symbol, EXCHANGE:SYMBOL or the provider's ticker; UnknownSymbol with the nearest names."""
    if not re.fullmatch("[!-~]{1,64}", text):
        raise UnknownSymbol(text[:64])
    try:
        return await catalogue.instrument(conn, text)
    except UnknownSymbol:
        listed = await catalogue.instruments(conn)
        for spelling in (lambda one: one.ticker, full_name):
            for one in listed:
                if spelling(one).upper() == text.upper():
                    return one
        exchange, _, rest = text.rpartition(":")
        if not exchange:
            raise
    there = await catalogue.instrument(conn, rest)
    raise UnknownSymbol(text, [full_name(there)])


async def describe(conn: AsyncConnection[Any], serving: Serving, listed: Iterable[Listed]) -> list[SymbolInfo]:
    """What a chart is told of some instruments; their last bars say how prices are shown."""
    terms = serving.terms()
    found = []
    for one in listed:
        last = Bars.empty()
        if one.last_bar is not None:
            ask = Ask(symbol=one.symbol, span=_ONE_MINUTE, start=one.last_bar, end=one.last_bar + MINUTE, limit=1)
            last = (await query.page(conn, terms, ask)).frame.candles
        found.append(_info(one, last, terms.now))
    return found


def _info(one: Listed, last: Bars, now: datetime) -> SymbolInfo:
    market = market_of(one.asset_type, one.ticker)
    known = hours(market, range((one.first_bar or now).year, now.year + 2))
    early = ",".join(f"{day:%Y%m%d}" for day in known.early)
    has_volume = not isnan(last.volume[0]) if len(last) else one.asset_type != "index"
    return SymbolInfo(
        name=one.symbol,
        ticker=one.symbol,
        full_name=full_name(one),
        description=one.name,
        type=one.asset_type,
        session=known.session,
        session_holidays=",".join(f"{day:%Y%m%d}" for day in known.closed) or UNSET,
        corrections=f"{known.early_session}:{early}" if early else UNSET,
        timezone=known.zone,
        exchange=exchange_of(one),
        listed_exchange=exchange_of(one),
        pricescale=10 ** decimals(one, float(last.close[0]) if len(last) else None),
        intraday_multipliers=multipliers(market),
        visible_plots_set="ohlcv" if has_volume else "ohlc",
        volume_precision=4 if one.asset_type == "crypto" else 0,
    )


def decimals(one: Listed, price: float | None) -> int:
    """How many decimals a price is shown with: fixed by the market's custom, but where prices are of any size."""
    match one.asset_type:
        case "forex":
            return 3 if one.ticker.endswith(_COARSE_QUOTES) else 5
        case "commodity":
            return 3
        case "index":
            return 2
        case "stock":
            return 2 if price is None or price >= 1 else 4
        case "crypto":
            return 2 if price is None else _six_digits(price)


def _six_digits(price: float) -> int:
    """The decimals that show six digits of a price, at least two."""
    return min(max(5 - floor(log10(price)), 2), 12) if price > 0 else 2


@lru_cache
def multipliers(market: Market) -> tuple[str, ...]:
    """The minutes of bars that never straddle the start of a session: bars are counted in UTC, in summer and winter."""
    year = open_ranges(market, datetime.fromisoformat("2024-01-01T00:00Z"), datetime.fromisoformat("2025-01-01T00:00Z"))
    starts = [(part.start - part.start.replace(hour=0, minute=0)) // timedelta(minutes=1) for part in year]
    return tuple(one for one in _MINUTES if all(start % int(one) == 0 for start in starts))
