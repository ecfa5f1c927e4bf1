"""What the calls of the operator share: instants as Unix ms, and the refusals that they document."""

from datetime import datetime
from typing import Any, TypeVar

import msgspec
from litestar.openapi.datastructures import ResponseSpec

from service.api.problems import Problem
from service.bars import to_ms

_Answer = TypeVar("_Answer", bound=msgspec.Struct)
BAD = ResponseSpec(data_container=Problem, description="Something cannot be used", generate_examples=False)
UNKNOWN = ResponseSpec(data_container=Problem, description="Unknown symbol", generate_examples=False)
CONFLICT = ResponseSpec(data_container=Problem, description="It contradicts what is there", generate_examples=False)
DOWN = ResponseSpec(data_container=Problem, description="The database does not answer", generate_examples=False)


def answer(kind: type[_Answer], source: msgspec.Struct, **others: object) -> _Answer:
    """The fields of the same names, instants as Unix ms; `others` are taken as they are."""
    values: dict[str, Any] = {
        name: others[name] if name in others else ms(getattr(source, name)) for name in kind.__struct_fields__
    }
    return kind(**values)


def ms(value: Any) -> Any:  # noqa: ANN401 - whatever a field holds
    """Unix ms of an instant; anything else as it is."""
    return to_ms(value) if isinstance(value, datetime) else value
