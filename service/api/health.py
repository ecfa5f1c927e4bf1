"""GET /health: this process and its database."""

import time
from typing import Any

import msgspec
from litestar import Request, get
from litestar.openapi.datastructures import ResponseSpec

from service import __version__, ledger
from service.api.problems import Problem
from service.api.serving import Serving


class Health(msgspec.Struct, frozen=True, kw_only=True):
    """What answers here; whether the data is up to date is another call's matter."""

    status: str
    """ok; any failure is a 503 instead."""
    version: str
    """Of Candlewick."""
    engine: str
    """timescaledb or plain."""
    database: str
    """The database's own name and version."""
    database_ms: float
    """How long it took to answer just now, milliseconds."""
    source: str | None
    """Where the bars come from: polygon, replay:synthetic, replay:csv; null before the first bar."""


@get(
    "/health",
    operation_id="getHealth",
    summary="This process and its database",
    tags=["operation"],
    responses={
        503: ResponseSpec(data_container=Problem, description="The database does not answer", generate_examples=False)
    },
)
async def get_health(request: Request[Any, Any, Any]) -> Health:
    """200 while this process and its database answer, else 503."""
    serving: Serving = request.app.state.serving
    began = time.perf_counter()
    async with serving.db.connection() as conn:
        serving.source = await ledger.source(conn)
    return Health(
        status="ok",
        version=__version__,
        engine=serving.db.engine.name,
        database=serving.db.version,
        database_ms=round((time.perf_counter() - began) * 1000, 3),
        source=serving.source,
    )
