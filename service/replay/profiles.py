"""What an instrument of the synthetic market looks like: its level, its decimals, its hours, its volume."""

import re
from typing import Literal

import msgspec

from service.instruments import SEED, Instrument
from service.replay.hours import ALWAYS, DAX, QUOTES, STOCK, US_INDEX, Hours

Volume = Literal["none", "ticks", "coins", "shares"]


class Profile(msgspec.Struct, frozen=True, kw_only=True):
    """How to invent bars for one ticker."""

    level: float
    """The price around which it moves for ever."""
    decimals: int
    """To which its prices are rounded."""
    swing: float
    """How far the daily level strays from `level`: at most this much, up or down, in log price."""
    noise: float
    """Standard deviation of the walk within a day, relative to the price."""
    hours: Hours
    volume: Volume
    size: float = 0.0
    """Typical volume of a busy minute, in units of `volume`."""


_DOLLARS = {
    "EUR": 1.10,
    "GBP": 1.28,
    "AUD": 0.66,
    "NZD": 0.61,
    "USD": 1.0,
    "CAD": 0.735,
    "CHF": 1.13,
    "JPY": 0.00665,
    "XAU": 2300.0,
    "XAG": 28.0,
}
_COINS = {
    "BTC": 60_000.0,
    "ETH": 3_000.0,
    "SOL": 150.0,
    "XRP": 0.6,
    "ADA": 0.45,
    "DOGE": 0.15,
    "LTC": 85.0,
    "BCH": 450.0,
    "LINK": 15.0,
    "DOT": 7.0,
    "AVAX": 35.0,
}
_INDICES = {"I:SPX": 5_200.0, "I:NDX": 18_000.0, "I:DJI": 39_000.0, "I:DAX": 18_200.0}
_SEEDED = {instrument.ticker: instrument for instrument in SEED}
_STOCK = re.compile(r"[A-Z]{1,5}")
_DECIMALS_OF_COINS = ((100.0, 2), (1.0, 4), (0.0, 5))
"""(least level, decimals)."""
_DECIMALS_OF_METALS = {"XAU": 2, "XAG": 3}


def profile_of(ticker: str) -> Profile | None:
    """The profile of a seeded ticker, or of a US stock (one to five capitals); None: no such instrument."""
    instrument = _SEEDED.get(ticker)
    if instrument is not None:
        return _seeded(instrument)
    if _STOCK.fullmatch(ticker):
        level = 20.0 + sum(ord(letter) * place * 7 for place, letter in enumerate(ticker, 1)) % 380
        return Profile(level=level, decimals=2, swing=0.3, noise=0.012, hours=STOCK, volume="shares", size=9_000.0)
    return None


def _seeded(instrument: Instrument) -> Profile:
    base, quote = instrument.symbol[:-3], instrument.symbol[-3:]
    match instrument.asset_type:
        case "forex":
            level, decimals = _DOLLARS[base] / _DOLLARS[quote], 3 if quote == "JPY" else 5
            return Profile(
                level=level, decimals=decimals, swing=0.07, noise=0.004, hours=QUOTES, volume="ticks", size=120.0
            )
        case "commodity":
            level, decimals = _DOLLARS[base], _DECIMALS_OF_METALS[base]
            return Profile(
                level=level, decimals=decimals, swing=0.2, noise=0.008, hours=QUOTES, volume="ticks", size=150.0
            )
        case "crypto":
            level = _COINS[base]
            decimals = next(places for least, places in _DECIMALS_OF_COINS if level >= least)
            return Profile(
                level=level, decimals=decimals, swing=0.5, noise=0.02, hours=ALWAYS, volume="coins", size=2e5 / level
            )
        case _:
            hours = DAX if instrument.ticker == "I:DAX" else US_INDEX
            level = _INDICES[instrument.ticker]
            return Profile(level=level, decimals=2, swing=0.2, noise=0.007, hours=hours, volume="none")
