"""/docs and /redoc: their scripts come from an installed package, so that they work without a network."""

from importlib import resources
from typing import Any

import msgspec
from litestar import MediaType, Request, Response, get
from litestar.exceptions import NotFoundException
from litestar.params import FromPath

_SCRIPTS = {
    "swagger_bundle.js": "text/javascript",
    "swagger_style.css": "text/css",
    "redoc.js": "text/javascript",
}
_DOCS = """<!doctype html><html lang="en"><head><meta charset="utf-8"><title>Candlewick API</title>
<link rel="stylesheet" href="/docs/swagger_style.css"></head><body><div id="page"></div>
<script src="/docs/swagger_bundle.js"></script>
<script>SwaggerUIBundle({url: "/openapi.json", dom_id: "#page"})</script></body></html>"""
_REDOC = """<!doctype html><html lang="en"><head><meta charset="utf-8"><title>Candlewick API</title></head>
<body style="margin: 0"><div id="page"></div><script type="module">
import { init } from "/docs/redoc.js";
init("/openapi.json", {}, document.getElementById("page"));
</script></body></html>"""


@get("/openapi.json", include_in_schema=False, sync_to_thread=False)
def get_openapi(request: Request[Any, Any, Any]) -> Response[bytes]:
    """The OpenAPI document, made once: it takes long, and everybody else waits meanwhile."""
    state = request.app.state
    if "openapi" not in state:
        state["openapi"] = msgspec.json.encode(request.app.openapi_schema.to_schema())
    return Response(state["openapi"], media_type=MediaType.JSON)


@get("/docs", media_type=MediaType.HTML, include_in_schema=False, sync_to_thread=False)
def get_docs() -> str:
    """The API to read and to try."""
    return _DOCS


@get("/redoc", media_type=MediaType.HTML, include_in_schema=False, sync_to_thread=False)
def get_redoc() -> str:
    """The API to read."""
    return _REDOC


@get("/docs/{name:str}", include_in_schema=False, sync_to_thread=True)
def get_script(name: FromPath[str]) -> Response[bytes]:
    """A script or style of these pages."""
    if name not in _SCRIPTS:
        raise NotFoundException
    content = resources.files("offapi").joinpath(name).read_bytes()
    return Response(content, media_type=_SCRIPTS[name], headers={"Cache-Control": "max-age=86400"})
