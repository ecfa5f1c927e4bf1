"""An invented market: every bar is a function of (seed, ticker, minute), the same on any machine and in any order.

Only additions, multiplications and roundings touch the bars, and the random bits come straight from a counter-based
generator: both are the same everywhere. The daily levels come from `math`, rounded to nine digits for the same reason.
"""

import hashlib
import math
from collections.abc import Sequence
from datetime import date

import numpy as np
from numpy.typing import NDArray

from service.bars import MINUTE_MS, Bars
from service.replay.hours import DAY_MINUTES, open_minutes
from service.replay.profiles import Profile, profile_of
from service.zones import DAY_MS, EPOCH_DATE

FIRST_DAY = (date(2000, 1, 1) - EPOCH_DATE).days
"""No synthetic bar is older; counted in days from 1970-01-01."""

Floats = NDArray[np.float64]
_WAVES = ((3.7, 0.06), (11.3, 0.10), (29.0, 0.14), (97.0, 0.20), (367.0, 0.24), (1461.0, 0.26))
"""(period in days, share of the swing) of the sines that move the daily level."""
_BUSY_HOURS = np.array([4, 4, 4, 3, 3, 4, 6, 9, 10, 9, 8, 8, 10, 12, 12, 12, 11, 9, 7, 6, 5, 3, 2, 3], np.float64) / 12
"""How busy a UTC hour is in the markets that follow the sun."""
_DRAWS = 9
"""Uniform numbers used for one minute."""


class SyntheticMarket:
    """The source of bars that needs no file."""

    name = "synthetic"

    def __init__(self, seed: int) -> None:
        self._seed = seed

    def knows(self, ticker: str) -> bool:
        """Whether the ticker exists."""
        return profile_of(ticker) is not None

    def days(self, ticker: str, first: int, last: int) -> Sequence[int]:
        """The UTC days within [first, last], both counted from 1970-01-01, that may hold bars; ascending."""
        return range(max(first, FIRST_DAY), last + 1) if self.knows(ticker) else ()

    def day(self, ticker: str, day: int) -> Bars:
        """All bars of a UTC day, those of its future included."""
        profile = profile_of(ticker)
        if profile is None:
            return Bars.empty()
        trading = open_minutes(profile.hours, day)
        if not trading.any():
            return Bars.empty()
        return self._invent(ticker, day, profile, trading)

    def _invent(self, ticker: str, day: int, profile: Profile, trading: NDArray[np.bool_]) -> Bars:
        draws = self._draws(ticker, day)
        busy = np.ones(DAY_MINUTES) if profile.volume == "coins" else np.repeat(_BUSY_HOURS, 60)
        here, there = self._level(ticker, day, profile), self._level(ticker, day + 1, profile)
        step = here * profile.noise / math.sqrt(DAY_MINUTES)
        path = _path(here, there, step * busy * (draws[:4].sum(axis=0) - 2.0) * math.sqrt(3.0))
        keep = trading & (draws[7] >= 0.02 - 0.015 * busy)
        tick = 10.0**-profile.decimals

        def price(values: Floats) -> Floats:
            return np.round(values, profile.decimals)

        opened, closed = price(path[:-1] + (draws[8] - 0.5) * tick), price(path[1:])
        high = price(np.maximum(opened, closed) + draws[4] * draws[4] * step * busy)
        low = price(np.minimum(opened, closed) - draws[5] * draws[5] * step * busy)
        volume, trades = _volume(profile, busy, draws[6])
        mean = np.round((opened + high + low + 2.0 * closed) / 5.0, profile.decimals + 2)
        return Bars(
            ts=day * DAY_MS + np.arange(DAY_MINUTES, dtype=np.int64) * MINUTE_MS,
            open=opened,
            high=high,
            low=low,
            close=closed,
            volume=volume,
            vwap=np.full(DAY_MINUTES, np.nan) if profile.volume == "none" else np.clip(mean, low, high),
            trades=trades,
        ).take(keep)

    def _draws(self, ticker: str, day: int) -> Floats:
        """Uniform numbers in [0, 1) of the shape (_DRAWS, 1440)."""
        bits = np.random.Philox(key=_number(f"{self._seed}/{ticker}/{day}")).random_raw(_DRAWS * DAY_MINUTES)
        return (bits >> np.uint64(11)).astype(np.float64).reshape(_DRAWS, DAY_MINUTES) * 2.0**-53

    def _level(self, ticker: str, day: int, profile: Profile) -> float:
        """The price at a UTC midnight, where one day hands over to the next."""
        phase = _number(f"{self._seed}/{ticker}") % 100_003
        waves = sum(
            share * math.sin(math.tau * (day / period + phase * (place + 1) / 100_003 * math.e))
            for place, (period, share) in enumerate(_WAVES)
        )
        return float(f"{profile.level * math.exp(profile.swing * waves):.9g}")


def forming(bar: Bars, fraction: float, decimals: int) -> Bars:
    """One bar as it is seen when `fraction` (0 to 1) of its minute has gone: narrower, and not yet at its close."""
    seen = np.round(bar.open + (bar.close - bar.open) * fraction, decimals)
    top, bottom = np.maximum(bar.open, seen), np.minimum(bar.open, seen)
    high = np.round(top + (bar.high - np.maximum(bar.open, bar.close)) * fraction, decimals)
    low = np.round(bottom - (np.minimum(bar.open, bar.close) - bar.low) * fraction, decimals)
    whole = bar.volume == np.rint(bar.volume)
    return Bars(
        ts=bar.ts,
        open=bar.open,
        high=high,
        low=low,
        close=seen,
        volume=np.where(whole, np.maximum(np.floor(bar.volume * fraction), 1.0), np.round(bar.volume * fraction, 6)),
        vwap=np.clip(bar.vwap, low, high),
        trades=np.where(bar.trades < 0, -1, np.maximum((bar.trades * fraction).astype(np.int64), 1)),
    )


def _path(here: float, there: float, moves: Floats) -> Floats:
    """The 1441 prices between the minutes of a day: a walk that is pinned to the level at both of its ends."""
    walk = np.concatenate(([0.0], np.cumsum(moves)))
    done = np.arange(DAY_MINUTES + 1) / DAY_MINUTES
    path: Floats = here + (there - here) * done + walk - walk[-1] * done
    return path


def _volume(profile: Profile, busy: Floats, draw: Floats) -> tuple[Floats, NDArray[np.int64]]:
    size = profile.size * busy * (0.1 + 1.8 * draw * draw)
    match profile.volume:
        case "none":
            return np.full(DAY_MINUTES, np.nan), np.full(DAY_MINUTES, -1, np.int64)
        case "ticks":
            ticks = 1.0 + np.floor(size)
            return ticks, ticks.astype(np.int64)
        case "coins":
            return np.round(size + 1e-6, 6), 1 + (draw * 300.0).astype(np.int64)
        case "shares":
            shares = 1.0 + np.floor(size)
            return shares, 1 + (shares / 90.0).astype(np.int64)


def _number(text: str) -> int:
    """A stable number of 128 bits for a text."""
    return int.from_bytes(hashlib.blake2b(text.encode(), digest_size=16).digest(), "big")
