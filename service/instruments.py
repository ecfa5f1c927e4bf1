"""What an instrument is, and the 45 that every installation starts with."""

from itertools import combinations
from typing import Literal

import msgspec

AssetType = Literal["forex", "commodity", "index", "crypto", "stock"]


class Instrument(msgspec.Struct, frozen=True, kw_only=True):
    """One series of one source."""

    symbol: str
    """Our key, upper case: EURUSD."""
    ticker: str
    """The provider's spelling, case-sensitive: C:EURUSD."""
    asset_type: AssetType
    name: str


_MAJORS = {
    "EUR": "Euro",
    "GBP": "British Pound",
    "AUD": "Australian Dollar",
    "NZD": "New Zealand Dollar",
    "USD": "US Dollar",
    "CAD": "Canadian Dollar",
    "CHF": "Swiss Franc",
    "JPY": "Japanese Yen",
}
"""In the market's order of precedence: the earlier currency of a pair is its base."""
_METALS = {"XAU": "Gold", "XAG": "Silver"}
_INDICES = {
    "SPX500": ("I:SPX", "S&P 500"),
    "NAS100": ("I:NDX", "Nasdaq 100"),
    "DJI30": ("I:DJI", "Dow Jones Industrial Average"),
    "DAX40": ("I:DAX", "DAX 40"),
}
_COINS = {
    "BTC": "Bitcoin",
    "ETH": "Ether",
    "SOL": "Solana",
    "XRP": "XRP",
    "ADA": "Cardano",
    "DOGE": "Dogecoin",
    "LTC": "Litecoin",
    "BCH": "Bitcoin Cash",
    "LINK": "Chainlink",
    "DOT": "Polkadot",
    "AVAX": "Avalanche",
}

SEED: tuple[Instrument, ...] = (
    *(
        Instrument(symbol=a + b, ticker=f"C:{a}{b}", asset_type="forex", name=f"{_MAJORS[a]} / {_MAJORS[b]}")
        for a, b in combinations(_MAJORS, 2)
    ),
    *(
        Instrument(symbol=f"{code}USD", ticker=f"C:{code}USD", asset_type="commodity", name=f"{name} / US Dollar")
        for code, name in _METALS.items()
    ),
    *(
        Instrument(symbol=symbol, ticker=ticker, asset_type="index", name=name)
        for symbol, (ticker, name) in _INDICES.items()
    ),
    *(
        Instrument(symbol=f"{code}USD", ticker=f"X:{code}USD", asset_type="crypto", name=f"{name} / US Dollar")
        for code, name in _COINS.items()
    ),
)
"""28 forex pairs of the eight majors, 2 metals, 4 indices, 11 crypto pairs. Used to seed and to replay."""
