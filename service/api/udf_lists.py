"""Instruments as TradingView lists them: the finds of a search, and a group as a table with a column for each field."""

from collections.abc import Sequence

import msgspec

from service.api.udf_symbols import SymbolInfo, exchange_of, full_name
from service.catalogue import Listed


class Found(msgspec.Struct, frozen=True, kw_only=True):
    """An instrument that a search found."""

    symbol: str
    """Our key: EURUSD."""
    full_name: str
    """EXCHANGE:KEY."""
    description: str
    exchange: str
    ticker: str
    """What to ask `/udf/history` for: our key too."""
    type: str
    """forex, commodity, index, crypto or stock."""


class Table(msgspec.Struct, frozen=True, kw_only=True, rename="kebab"):
    """A group of instruments: every field an array with an item for each, in the names of the UDF protocol."""

    symbol: list[str]
    ticker: list[str]
    description: list[str]
    type: list[str]
    exchange_listed: list[str]
    exchange_traded: list[str]
    timezone: list[str]
    session_regular: list[str]
    session_holidays: list[str]
    """Empty text where a market has none; so with the corrections."""
    corrections: list[str]
    minmovement: list[int]
    pricescale: list[int]
    has_intraday: list[bool]
    intraday_multipliers: list[tuple[str, ...]]
    has_daily: list[bool]
    has_weekly_and_monthly: list[bool]
    supported_resolutions: list[tuple[str, ...]]
    visible_plots_set: list[str]
    volume_precision: list[int]


def search(listed: Sequence[Listed], text: str, asset_type: str, exchange: str, limit: int) -> list[Found]:
    """The instruments that a text is found in, the likeliest first; an empty type or exchange is any."""
    ranked = sorted(
        (likely, one.symbol, one)
        for one in listed
        if asset_type in {"", one.asset_type} and exchange in {"", exchange_of(one)}
        if (likely := _likelihood(one, text.strip().casefold())) is not None
    )
    return [
        Found(
            symbol=one.symbol,
            full_name=full_name(one),
            description=one.name,
            exchange=exchange_of(one),
            ticker=one.symbol,
            type=one.asset_type,
        )
        for _, _, one in ranked[:limit]
    ]


def _likelihood(one: Listed, text: str) -> int | None:
    """0: it is the symbol. 1: the symbol begins with it. 2: it is found somewhere. None: it is not."""
    symbol, plain = one.symbol.casefold(), text.replace("/", "")  # EUR/USD is a pair's usual spelling
    if symbol in {text, plain}:
        return 0
    if symbol.startswith((text, plain or text)):
        return 1
    names = (symbol, one.ticker.casefold(), full_name(one).casefold(), one.name.casefold())
    return 2 if any(text in name for name in names) or (plain and plain in symbol) else None


def table(group: Sequence[SymbolInfo]) -> Table:
    """A group by columns."""
    return Table(
        symbol=[one.name for one in group],
        ticker=[one.ticker for one in group],
        description=[one.description for one in group],
        type=[one.type for one in group],
        exchange_listed=[one.listed_exchange for one in group],
        exchange_traded=[one.exchange for one in group],
        timezone=[one.timezone for one in group],
        session_regular=[one.session for one in group],
        session_holidays=[one.session_holidays or "" for one in group],
        corrections=[one.corrections or "" for one in group],
        minmovement=[one.minmov for one in group],
        pricescale=[one.pricescale for one in group],
        has_intraday=[one.has_intraday for one in group],
        intraday_multipliers=[one.intraday_multipliers for one in group],
        has_daily=[one.has_daily for one in group],
        has_weekly_and_monthly=[one.has_weekly_and_monthly for one in group],
        supported_resolutions=[one.supported_resolutions for one in group],
        visible_plots_set=[one.visible_plots_set for one in group],
        volume_precision=[one.volume_precision for one in group],
    )
