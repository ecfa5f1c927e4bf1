"""Reads JSON bodies: strictly by their type, refused with what is allowed; and describes them in the document."""

from dataclasses import dataclass
from typing import Any, TypeVar

import msgspec
from litestar import Request
from litestar.exceptions import HTTPException
from litestar.openapi.spec import OpenAPIMediaType, Operation, RequestBody

from service.api.problems import BadQuery

LONGEST = 16_384
"""Bytes of a body; none needs more than a few hundred."""
_Body = TypeVar("_Body", bound=msgspec.Struct)
_Value = TypeVar("_Value")


async def read(request: Request[Any, Any, Any], kind: type[_Body]) -> _Body:
    """The body as JSON of this type, whatever content type is declared; one without content has no fields.

    BadQuery (400) for everything that is not of that type, an unknown field included.
    """
    fields = msgspec.structs.fields(kind)
    names = [field.encode_name for field in fields]
    try:
        raw = await request.body() or b"{}"
    except HTTPException:
        raise BadQuery(f"the body is longer than {LONGEST} bytes", names) from None
    try:
        return msgspec.json.decode(raw, type=kind)
    except msgspec.ValidationError as exc:
        raise BadQuery(f"the body cannot be used: {exc}", names) from exc
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError) as exc:
        raise BadQuery(f"the body is no JSON object: {exc}", names) from exc


def given(value: _Value | msgspec.UnsetType) -> _Value | None:
    """A field's value; None where the body does not have it."""
    return None if isinstance(value, msgspec.UnsetType) else value


def taking(kind: type[msgspec.Struct], *, required: bool) -> type[Operation]:
    """What describes a call with such a body: the framework would read it itself, and more leniently."""
    _, components = msgspec.json.schema_components([kind], ref_template="#/components/schemas/{name}")
    schema: Any = components[kind.__name__]

    @dataclass
    class Taking(Operation):
        def __post_init__(self) -> None:
            self.request_body = RequestBody(
                content={"application/json": OpenAPIMediaType(schema=schema)}, required=required
            )

    return Taking
