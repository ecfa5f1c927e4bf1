"""The composition root of the API: routes, errors, the OpenAPI document, and the header that names the source."""

from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from datetime import datetime

from litestar import Litestar
from litestar.datastructures import MutableScopeHeaders, State
from litestar.openapi import OpenAPIConfig
from litestar.types import Message, Scope

from service import __version__, ledger
from service.api import pages, symbols
from service.api.candles import get_candles, get_candles_of_many
from service.api.health import get_health
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
    get_health,
    *symbols.CALLS,
    sync_symbol,
    sync_all,
    get_status,
    get_symbol_status,
    get_sync_health,
    get_scheduler_status,
)


def create_app(db: Database, settings: Settings, clock: Callable[[], datetime] = utc_now) -> Litestar:
    """The API over a checked database, which it opens at start-up and closes at the end."""
    serving = Serving(db, settings, clock)

    @asynccontextmanager
    async def database(_: Litestar) -> AsyncIterator[None]:
        async with db:
            async with db.connection() as conn:
                serving.source = await ledger.source(conn)
            yield

    async def name_source(message: Message, _: Scope) -> None:
        if message["type"] == "http.response.start":
            MutableScopeHeaders.from_message(message)[SOURCE_HEADER] = _source(serving)

    return Litestar(
        route_handlers=[*CALLS, pages.get_docs, pages.get_redoc, pages.get_openapi, pages.get_script],
        lifespan=[database],
        before_send=[name_source],
        middleware=[Remembering(serving)],
        exception_handlers={Exception: handle},
        state=State({"serving": serving}),
        openapi_config=OpenAPIConfig(
            title="Candlewick",
            version=__version__,
            description="Candles from one-minute bars, and proof of their completeness. All instants are Unix ms UTC.",
            render_plugins=(),
            use_handler_docstrings=True,
        ),
        logging_config=None,
    )


def _source(serving: Serving) -> str:
    """What the header says: the recorded source, in plain words where it is no real market."""
    return SOURCES.get(serving.source or "", serving.source or "none yet")


SOURCES = {
    "replay:synthetic": "synthetic (replay:synthetic): invented prices, no real market",
    "replay:csv": "replay (replay:csv): bars from files, not from the provider",
}
