"""Refusals of the provider's own calls: in the provider's shape, whatever went wrong."""

import logging
import re
from typing import Any

import msgspec
import psycopg
from litestar import MediaType, Request, Response
from litestar.exceptions import HTTPException
from litestar.openapi.datastructures import ResponseSpec
from msgspec import UNSET, UnsetType

from service.errors import DatabaseError
from service.provider_calls.refusals import NO_SUCH_CALL, Refusal

_PATHS = re.compile(r"/v[123X](/.*)?", re.DOTALL)
log = logging.getLogger(__name__)


class ProviderRefusal(msgspec.Struct, frozen=True, kw_only=True):
    """The body of every refusal of these calls."""

    status: str
    """ERROR, or NOT_FOUND."""
    request_id: str
    error: str | UnsetType = UNSET
    """What is wrong; of NOT_FOUND it stands in `message`."""
    message: str | UnsetType = UNSET


def _documented(description: str) -> ResponseSpec:
    return ResponseSpec(data_container=ProviderRefusal, description=description, generate_examples=False)


REFUSALS = {
    400: _documented("A parameter cannot be used"),
    404: _documented("There is no such call, or no such ticker"),
    503: _documented("The database does not answer"),
}


def is_providers(path: str) -> bool:
    """Whether a path is one of the provider's, of a call that there is or is not."""
    return _PATHS.fullmatch(path) is not None


def refuse(request: Request[Any, Any, Any], exc: Exception) -> Response[bytes]:
    """From any exception to an answer; what nobody foresaw is logged in full, without the query, and told in short."""
    match exc:
        case Refusal():
            refusal = exc
        case HTTPException(status_code=404):
            refusal = Refusal(404, NO_SUCH_CALL)
        case HTTPException(status_code=code, detail=detail) if code < 500:  # noqa: PLR2004 - the servers' own
            refusal = Refusal(code, detail)
        case DatabaseError() | psycopg.OperationalError() | psycopg.InterfaceError():
            log.warning("database unavailable: %s", " ".join(str(exc).split()))
            refusal = Refusal(503, "The database does not answer at the moment: try again soon")
        case _:
            log.error("unforeseen failure of %s %s", request.method, request.scope["path"], exc_info=exc)
            refusal = Refusal(500, "This is a fault of Candlewick: see its log")
    answer = refusal.answer()
    headers = dict(exc.headers or {}) if isinstance(exc, HTTPException) else {}
    return Response(answer.body, status_code=answer.status, media_type=MediaType.JSON, headers=headers)
