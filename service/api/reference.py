"""/v3/reference/tickers: the stored instruments, in the provider's own shape."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, ClassVar

import msgspec
from litestar import Request, Response, get
from msgspec import UNSET, UnsetType

from service import tickers
from service.api.provider_answers import sent
from service.api.provider_errors import REFUSALS
from service.api.provider_operations import TAGS, AdjustedOperation, Ticker
from service.api.sending import headers_of
from service.api.serving import Serving
from service.provider_calls import cursors
from service.provider_calls.markets import MARKETS
from service.provider_calls.refusals import Refusal, request_id
from service.provider_calls.request import Request as Call
from service.provider_calls.request import choice, number
from service.tickers import SORTS, Filter, StoredTicker

PATH = "/v3/reference/tickers"
MOST, DEFAULT = 1000, 100
COMMON_STOCK = "CS"
"""The one type given: that a share is a fund's, its ticker does not say."""
_PARAMETERS = {
    "ticker": "Only this one; all without it",
    **{f"ticker.{how}": "Compared by their bytes" for how in ("gt", "gte", "lt", "lte")},
    "type": f"{COMMON_STOCK}: stocks; nothing else has a type here",
    "market": "stocks, crypto, fx (with the metals), indices; all without it",
    "locale": "us or global; both without it",
    "search": "Words that stand in ticker or name, in any case",
    "active": "true (so without it): those kept up to date; false: the others",
    "order": "asc (so without it) or desc",
    "sort": " ".join(SORTS),
    "limit": f"1 to {MOST}; {DEFAULT} without it",
    "cursor": "Of a next_url; it stands for the other parameters",
}
_NOT_KNOWN = ("exchange", "cusip", "cik")
"""What the store does not know of instruments: to pass these over would list others than those asked for."""
_CURRENCIES = {
    "USD": "United States Dollar",
    "EUR": "Euro",
    "GBP": "British Pound Sterling",
    "AUD": "Australian Dollar",
    "NZD": "New Zealand Dollar",
    "CAD": "Canadian Dollar",
    "CHF": "Swiss Franc",
    "JPY": "Japanese Yen",
    "XAU": "Gold (troy ounce)",
    "XAG": "Silver (troy ounce)",
}


class TickerAnswer(msgspec.Struct, frozen=True, kw_only=True):
    """An instrument; what does not follow from its ticker is left out."""

    ticker: str
    name: str
    market: str
    locale: str
    type: str | UnsetType = UNSET
    active: bool
    """Whether it is kept up to date."""
    currency_symbol: str | UnsetType = UNSET
    currency_name: str | UnsetType = UNSET
    base_currency_symbol: str | UnsetType = UNSET
    base_currency_name: str | UnsetType = UNSET


class TickersAnswer(msgspec.Struct, frozen=True, kw_only=True):
    """A page of instruments."""

    results: list[TickerAnswer]
    status: str
    request_id: str
    count: int
    next_url: str | UnsetType = UNSET
    """The next page, without any key; absent at the end."""


class TickerDetailsAnswer(msgspec.Struct, frozen=True, kw_only=True):
    """One instrument."""

    results: TickerAnswer
    status: str
    request_id: str


@dataclass
class TickersOperation(AdjustedOperation):
    """Documents what tickers are asked for by."""

    described: ClassVar[Mapping[str, str]] = _PARAMETERS


@dataclass
class TickerOperation(AdjustedOperation):
    """Documents no parameter: one instrument is described as it is today."""

    described: ClassVar[Mapping[str, str]] = {}


@get(
    PATH,
    operation_id="listTickers",
    operation_class=TickersOperation,
    summary="The instruments, as the provider lists them",
    tags=TAGS,
    responses=REFUSALS,
)
async def list_tickers(request: Request[Any, Any, Any]) -> Response[TickersAnswer]:
    """Page by page; other parameters are passed over, but `exchange`, `cusip` and `cik`, which are refused."""
    call = Call.of(request.scope)
    given = cursors.opened(call.query["cursor"]) if "cursor" in call.query else call.query
    given = {name: value for name, value in given.items() if value or name in {"after", "key"}}
    chosen, limit = _filter(given), number(given, "limit", default=DEFAULT, most=MOST)
    serving: Serving = request.app.state.serving
    async with serving.db.connection() as conn:
        found = await tickers.listed(conn, chosen, limit + 1)
    more: str | UnsetType = UNSET
    if len(found) > limit:
        found = found[:limit]
        kept = {name: value for name, value in given.items() if name in _PARAMETERS}
        last = {"after": found[-1].ticker, "key": getattr(found[-1], chosen.sort)}
        more = f"{call.base}{PATH}?cursor={cursors.sealed(kept | last)}"
    answer = TickersAnswer(
        results=[_answer(one) for one in found],
        status="OK",
        request_id=request_id(),
        count=len(found),
        next_url=more,
    )
    return await sent(request, answer, headers_of())


@get(
    f"{PATH}/{{ticker:str}}",
    operation_id="getTickerDetails",
    operation_class=TickerOperation,
    summary="One instrument, as the provider describes it",
    tags=TAGS,
    responses=REFUSALS,
)
async def get_ticker_details(request: Request[Any, Any, Any], ticker: Ticker) -> Response[TickerDetailsAnswer]:
    """What follows from its ticker; 404 where it is not kept."""
    serving: Serving = request.app.state.serving
    async with serving.db.connection() as conn:
        found = await tickers.find(conn, ticker)
    if found is None:
        raise Refusal(404, "Ticker not found.")
    answer = TickerDetailsAnswer(results=_answer(found), status="OK", request_id=request_id())
    return await sent(request, answer, headers_of())


def _filter(given: Mapping[str, str]) -> Filter:
    """What a query asks for; Refusal (400) for what cannot be."""
    for name, value in given.items():
        if name in _NOT_KNOWN:
            raise Refusal(400, f"The parameter '{name}' cannot be used: the store does not know it of its instruments")
        if "\x00" in value:
            raise Refusal(400, f"The parameter '{name}' holds a character that no ticker has")
    wanted_type = given.get("type")
    places = {name: name for name in (*MARKETS, "otc")}
    return Filter(
        ticker=given.get("ticker"),
        gt=given.get("ticker.gt"),
        gte=given.get("ticker.gte"),
        lt=given.get("ticker.lt"),
        lte=given.get("ticker.lte"),
        market="otc" if wanted_type not in {None, COMMON_STOCK} else choice(given, "market", places, default=None),
        locale=choice(given, "locale", {"us": "us", "global": "global"}, default=None),
        asset_type="stock" if wanted_type == COMMON_STOCK else None,
        active=choice(given, "active", {"true": True, "false": False}, default=True),
        search=given.get("search", ""),
        sort=choice(given, "sort", {name: name for name in SORTS}, default=SORTS[0]),
        descending=choice(given, "order", {"asc": False, "desc": True}, default=False),
        after=(given["key"], given["after"]) if "key" in given and "after" in given else None,
    )


def _answer(one: StoredTicker) -> TickerAnswer:
    answer = TickerAnswer(ticker=one.ticker, name=one.name, market=one.market, locale=one.locale, active=one.active)
    if one.market == "stocks":
        return msgspec.structs.replace(answer, type=COMMON_STOCK, currency_name="usd")
    if one.market == "indices":
        return answer
    base, quote = one.ticker[2:-3], one.ticker[-3:]
    return msgspec.structs.replace(
        answer,
        currency_symbol=quote,
        currency_name=_CURRENCIES.get(quote, UNSET),
        base_currency_symbol=base,
        base_currency_name=_CURRENCIES.get(base, UNSET),
    )


CALLS = (list_tickers, get_ticker_details)
