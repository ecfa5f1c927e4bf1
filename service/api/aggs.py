"""/v2/aggs: the provider's own calls for bars, answered from the store, so that its clients run on it as they are."""

from typing import Annotated, Any

import msgspec
from litestar import Request, Response, get
from litestar.params import PathParameter
from msgspec import UNSET

from service import base_pages, query, tickers
from service.api import rows
from service.api.candles import UNCHANGED
from service.api.provider_answers import (
    AggsAnswer,
    bars_text,
    request_id,
    sent,
    status,
)
from service.api.provider_errors import REFUSALS
from service.api.provider_operations import TAGS, PagedOperation, Ticker
from service.api.sending import coding_of, headers_of, unchanged, validated
from service.api.serving import Serving
from service.api.validators import dependencies
from service.bars import to_ms
from service.base_pages import BasePage
from service.provider_calls import refusals
from service.provider_calls.markets import market_of
from service.provider_calls.refusals import Refusal
from service.provider_calls.request import MOST_BARS, Wanted, wanted
from service.provider_calls.request import Request as Call
from service.timeframes import Timeframe


@get(
    "/v2/aggs/ticker/{ticker:str}/range/{multiplier:str}/{timespan:str}/{since:str}/{until:str}",
    operation_id="getAggs",
    operation_class=PagedOperation,
    summary="Bars of a ticker, as the provider answers",
    tags=TAGS,
    responses=REFUSALS | {304: UNCHANGED},
)
async def get_aggs(
    request: Request[Any, Any, Any],
    *,
    ticker: Ticker,  # noqa: ARG001 - the whole path is read as the provider reads it; so are the next four
    multiplier: Annotated[str, PathParameter(description="How many of the timespan")],  # noqa: ARG001
    timespan: Annotated[str, PathParameter(description="minute hour day week month quarter year")],  # noqa: ARG001
    since: Annotated[str, PathParameter(description="YYYY-MM-DD or Unix ms; within the first bar")],  # noqa: ARG001
    until: Annotated[str, PathParameter(description="YYYY-MM-DD or Unix ms; within the last bar")],  # noqa: ARG001
) -> Response[AggsAnswer]:
    """`from` snaps to the start and `to` to the end of its bar. Dates are New York's for stocks and indices, else UTC.

    `status` is DELAYED where something of the page is missing; `X-Complete` and `X-Missing` say what.
    """
    call = Call.of(request.scope)
    asked = wanted(call)
    if base_pages.most_in_one(asked.span) > MOST_BARS:
        raise Refusal(400, f"The parameter 'multiplier' is too large: a bar holds at most {MOST_BARS} base bars")
    serving: Serving = request.app.state.serving
    async with serving.db.connection() as conn, query.snapshot(conn):
        found = await tickers.find(conn, asked.ticker)
        if found is None:
            return await sent(request, _nothing(asked), headers_of(complete=False))
        last_bar = serving.last_bar(found.symbol)
        known = None if last_bar is None else to_ms(last_bar)
        page = await base_pages.page(conn, serving.terms(), found.symbol, asked, last_bar=known)
        variant = f"aggs-{coding_of(request)}"
        checked = await validated(
            conn, request, [page.head], dependencies([page.head]), variant=variant, stored=Timeframe.M1
        )
    serving.note([page.head])
    headers = headers_of(complete=page.head.complete, missing=rows.missing(page.head)) | checked.headers
    if checked.unchanged:
        return unchanged(headers)
    ident = refusals.request_id() if checked.tag is None else request_id(checked.tag, call.url)
    body = await bars_text(_page(asked, page, ident, call.base), page.bars)
    return await sent(request, body, headers)


def _page(asked: Wanted, page: BasePage, ident: str, base: str) -> AggsAnswer:
    return msgspec.structs.replace(
        _nothing(asked),
        query_count=page.base,
        results_count=len(page.bars),
        # Where more follows, a client that sees no results at all would not follow.
        results=[] if len(page.bars) or page.follow is not None else UNSET,
        status=status(complete=page.head.complete),
        request_id=ident,
        count=len(page.bars) or UNSET,
        next_url=UNSET if page.follow is None else asked.next_url(base, page.follow),
    )


def _nothing(asked: Wanted) -> AggsAnswer:
    return AggsAnswer(
        ticker=asked.ticker,
        query_count=0,
        results_count=0,
        adjusted=asked.adjusted and market_of(asked.ticker) != "stocks",
        status="OK",
        request_id=refusals.request_id(),
    )


CALLS = (get_aggs,)
