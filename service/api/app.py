"""The composition root of the API: routes, errors, the OpenAPI document, and the header that names the source."""

from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from datetime import datetime
from typing import Any

from litestar import Litestar, Request, Response
from litestar.config.cors import CORSConfig
from litestar.datastructures import MutableScopeHeaders, State
from litestar.openapi import OpenAPIConfig
from litestar.types import Message, Scope

from service import __version__, ledger
from service.api import aggs, aggs_daily, pages, provider_errors, reference, symbols, udf
from service.api.candles import get_candles, get_candles_of_many
from service.api.health import get_health
from service.api.latest import get_latest, get_latest_of_symbol
from service.api.memory import Remembering
from service.api.problems import handle
from service.api.scheduler import get_scheduler_status
from service.api.serving import Serving
from service.api.status import get_status, get_symbol_status, get_sync_health
from service.api.sync import sync_all, sync_symbol
from service.db.connect import Database
from service.settings import Settings
from service.timeframes import utc_now

SOURCE_HEADER = "X-Data-Source"
CALLS = (
    get_candles,
    get_candles_of_many,
    get_latest_of_symbol,
    get_latest,
    get_health,
    *symbols.CALLS,
    sync_symbol,
    sync_all,
    get_status,
    get_symbol_status,
    get_sync_health,
    get_scheduler_status,
    udf.ROUTER,
    *aggs.CALLS,
    *aggs_daily.CALLS,
    *reference.CALLS,
)
EXPOSED = (SOURCE_HEADER, "X-Complete", "X-Missing", "ETag", "Link")
"""Headers that web pages of other origins may read."""


def create_app(db: Database, settings: Settings, clock: Callable[[], datetime] = utc_now) -> Litestar:
    """The API over a checked database, which it opens at start-up and closes at the end."""
    serving = Serving(db, settings, clock)
    remembering = Remembering(serving)

    @asynccontextmanager
    async def database(_: Litestar) -> AsyncIterator[None]:
        async with db:
            async with db.connection() as conn:
                serving.source = await ledger.source(conn)
            await remembering.begin()
            yield

    async def name_source(message: Message, _: Scope) -> None:
        if message["type"] == "http.response.start":
            headers = MutableScopeHeaders.from_message(message)
            headers[SOURCE_HEADER] = _source(serving)
            if headers.get("Vary") == "Origin":  # the framework puts it in the place of what an answer varies by
                headers["Vary"] = "Origin, Accept, Accept-Encoding"

    return Litestar(
        route_handlers=[*CALLS, pages.get_docs, pages.get_redoc, pages.get_openapi, pages.get_script],
        lifespan=[database],
        before_send=[name_source],
        middleware=[serving.turns, remembering],
        exception_handlers={Exception: _refuse},
        cors_config=_cors(settings),
        state=State({"serving": serving}),
        openapi_config=OpenAPIConfig(
            title="Candlewick",
            version=__version__,
            description="Candles from one-minute bars, and proof of their completeness. All instants are Unix ms UTC; "
            "those of /udf are seconds.",
            render_plugins=(),
            use_handler_docstrings=True,
        ),
        logging_config=None,
    )


def _cors(settings: Settings) -> CORSConfig | None:
    """Which web pages may read; they may not write."""
    if settings.cors_origins is None:
        return None
    return CORSConfig(allow_origins=list(settings.cors_origins), allow_methods=["GET"], expose_headers=list(EXPOSED))


def _refuse(request: Request[Any, Any, Any], exc: Exception) -> Response[Any]:
    """In the shape of whoever's call it is."""
    refuse = provider_errors.refuse if provider_errors.is_providers(request.scope["path"]) else handle
    return refuse(request, exc)


def _source(serving: Serving) -> str:
    """What the header says: the recorded source, in plain words where it is no real market."""
    return SOURCES.get(serving.source or "", serving.source or "none yet")


SOURCES = {
    "replay:synthetic": "synthetic (replay:synthetic): invented prices, no real market",
    "replay:csv": "replay (replay:csv): bars from files, not from the provider",
}
