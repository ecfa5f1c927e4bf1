"""How the provider's own calls are documented: their parameters, which the provider's rules read, not the framework."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Annotated, ClassVar

from litestar.openapi.spec import Operation, Parameter, Schema
from litestar.openapi.spec.enums import OpenAPIType
from litestar.params import PathParameter

from service.provider_calls.request import MOST_BARS

TAGS = ["provider"]
Ticker = Annotated[str, PathParameter(description="As the provider spells it: C:EURUSD, X:BTCUSD, I:SPX, AAPL")]
_ADJUSTED = {"adjusted": "true (so without it) or false; stocks are never adjusted here, and the answer says so"}
_PAGED = {
    "sort": "asc (oldest first; so without it) or desc",
    "limit": f"1 to {MOST_BARS} base bars: stored minutes, or days for bars of days and longer; 5000 without it",
    "cursor": "Of a next_url; it stands for the other parameters",
}


@dataclass
class AdjustedOperation(Operation):
    """Documents the one parameter that all have; whatever else is given is passed over, as the provider does."""

    described: ClassVar[Mapping[str, str]] = _ADJUSTED

    def __post_init__(self) -> None:
        """Add parameters."""
        self.parameters = [
            *(self.parameters or []),
            *(
                Parameter(name=name, param_in="query", description=text, schema=Schema(type=OpenAPIType.STRING))
                for name, text in self.described.items()
            ),
        ]


@dataclass
class PagedOperation(AdjustedOperation):
    """Documents those of a call with pages too."""

    described: ClassVar[Mapping[str, str]] = _ADJUSTED | _PAGED
