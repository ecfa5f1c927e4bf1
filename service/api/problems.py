"""Errors over HTTP: one shape for all of them, and messages that say what to do."""

import logging
from collections.abc import Mapping, Sequence
from http import HTTPStatus
from typing import Any

import msgspec
import psycopg
from litestar import MediaType, Request, Response
from litestar.exceptions import HTTPException

from service.catalogue import BadInstrument, Conflict
from service.errors import CandlewickError, DatabaseError, UnknownSymbol, UsageError

log = logging.getLogger(__name__)


class MissingRange(msgspec.Struct, frozen=True, kw_only=True):
    """A part of the range asked for that is not there."""

    symbol: str | msgspec.UnsetType = msgspec.UNSET
    """Whose, in answers about several symbols."""
    start: int = msgspec.field(name="from")
    """Start (inclusive), Unix ms UTC."""
    end: int = msgspec.field(name="to")
    """End (exclusive), Unix ms UTC."""
    reason: str
    """pending: being fetched or refreshed. never requested: ask for a backfill. unavailable: the provider has no
    usable bar. expired: older than what is kept. not settled: the provider may still add or revise."""


class Problem(msgspec.Struct, frozen=True, kw_only=True):
    """The body of every answer that is not a success."""

    error: str
    """A short name for programs: bad_request, unknown_symbol, conflict, not_found, method_not_allowed, not_acceptable,
    incomplete, unavailable, internal."""
    message: str
    """One sentence for people: what is wrong, and what to do."""
    allowed: Sequence[str] = ()
    """What would have been right: the allowed values, or the nearest symbols."""
    missing: Sequence[MissingRange] | msgspec.UnsetType = msgspec.UNSET
    """Of `incomplete` alone: what is not there."""


class NotAcceptable(CandlewickError):
    """None of the forms that there are is one that the request accepts; `allowed` lists them."""

    def __init__(self, message: str, allowed: Sequence[str] = ()) -> None:
        super().__init__(message)
        self.allowed = tuple(allowed)


class Incomplete(CandlewickError):
    """`require_complete` was asked for, and something is missing."""

    def __init__(self, message: str, missing: "Sequence[MissingRange]") -> None:
        super().__init__(message)
        self.missing = list(missing)


class BadQuery(CandlewickError):
    """A parameter or a body that cannot be used; `allowed` lists what can."""

    def __init__(self, message: str, allowed: Sequence[str] = ()) -> None:
        super().__init__(message)
        self.allowed = tuple(allowed)


def handle(request: Request[Any, Any, Any], exc: Exception) -> Response[Problem]:
    """From any exception to an answer; what nobody foresaw is logged in full and told in short."""
    match exc:
        case UnknownSymbol():
            status, problem = 404, Problem(error="unknown_symbol", message=str(exc), allowed=exc.nearest)
        case Conflict():
            status, problem = 409, Problem(error="conflict", message=str(exc), allowed=exc.allowed)
        case BadQuery() | BadInstrument():
            status, problem = 400, Problem(error="bad_request", message=str(exc), allowed=exc.allowed)
        case NotAcceptable():
            status, problem = 406, Problem(error="not_acceptable", message=str(exc), allowed=exc.allowed)
        case Incomplete():
            status, problem = 409, Problem(error="incomplete", message=str(exc), missing=exc.missing)
        case UsageError():
            status, problem = 400, Problem(error="bad_request", message=str(exc))
        case HTTPException(status_code=code) if code < HTTPStatus.INTERNAL_SERVER_ERROR:
            status, problem = _routing(request, exc)
        case DatabaseError() | psycopg.OperationalError() | psycopg.InterfaceError():
            log.warning("database unavailable: %s", " ".join(str(exc).split()))
            status = 503
            problem = Problem(error="unavailable", message="the database does not answer at the moment: try again soon")
        case _:
            log.error("unforeseen failure of %s %s", request.method, request.scope["path"], exc_info=exc)
            status, problem = 500, Problem(error="internal", message="this is a fault of Candlewick: see its log")
    return Response(problem, status_code=status, media_type=MediaType.JSON, headers=_headers(exc))


def _routing(request: Request[Any, Any, Any], exc: HTTPException) -> tuple[int, Problem]:
    match exc.status_code:
        case 404:
            return 404, Problem(
                error="not_found", message=f"there is no {request.scope['path']}: see /docs for what there is"
            )
        case 405:
            allowed = (exc.headers or {}).get("allow", "GET").split(", ")
            return 405, Problem(
                error="method_not_allowed", message=f"{request.method} is not possible here", allowed=allowed
            )
        case code:
            return code, Problem(error="bad_request", message=exc.detail)


def _headers(exc: Exception) -> Mapping[str, str]:
    return exc.headers or {} if isinstance(exc, HTTPException) else {}
