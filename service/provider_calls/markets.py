"""The provider's markets: what follows from a ticker's prefix, and which of our asset types they hold."""

from collections.abc import Mapping
from typing import Literal

import msgspec

from service.instruments import AssetType

NEW_YORK = "America/New_York"
Locale = Literal["us", "global"]


class Market(msgspec.Struct, frozen=True, kw_only=True):
    """A market as the provider divides them."""

    locale: Locale
    zone: str
    """Whose days its dates and days are."""
    asset_types: tuple[AssetType, ...]
    """Metals are quoted like currencies, and listed among them."""


MARKETS: Mapping[str, Market] = {
    "stocks": Market(locale="us", zone=NEW_YORK, asset_types=("stock",)),
    "crypto": Market(locale="global", zone="UTC", asset_types=("crypto",)),
    "fx": Market(locale="global", zone="UTC", asset_types=("forex", "commodity")),
    "indices": Market(locale="us", zone=NEW_YORK, asset_types=("index",)),
}
"""By the names that stand in its paths."""
_PREFIXES = {"C:": "fx", "X:": "crypto", "I:": "indices"}


def market_of(ticker: str) -> str | None:
    """The name of a ticker's market; None for one that is not kept here, such as an option's."""
    return _PREFIXES.get(ticker[:2], None if ticker[1:2] == ":" else "stocks")


def zone_of(ticker: str) -> str:
    """The zone that a ticker's dates and days mean: UTC for forex and crypto, New York for everything else."""
    market = market_of(ticker)
    return NEW_YORK if market is None else MARKETS[market].zone
