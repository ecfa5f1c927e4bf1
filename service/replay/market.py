"""What exists and what can be seen of it at an instant: the source, its corrections, and the edge of the present."""

from collections.abc import Mapping, Sequence
from datetime import datetime, timedelta
from typing import Protocol

import msgspec
import numpy as np

from service.bars import MINUTE_MS, Bars, join, to_ms
from service.errors import UsageError
from service.provider_calls.markets import NEW_YORK
from service.replay.columns import between, edited, impossible
from service.replay.config import ReplayConfig, ticker_of
from service.replay.profiles import profile_of
from service.replay.recorded import RecordedMarket, read_csv
from service.replay.rendering import Fragment, FragmentCache, render
from service.replay.synthetic import SyntheticMarket, forming
from service.zones import DAY_MS, local_date, midnight


class Source(Protocol):
    """Where whole days of bars come from; days are UTC, counted from 1970-01-01."""

    name: str

    def knows(self, ticker: str) -> bool:
        """Whether the ticker exists."""

    def days(self, ticker: str, first: int, last: int) -> Sequence[int]:
        """The days within [first, last] that may hold bars, ascending."""

    def day(self, ticker: str, day: int) -> Bars:
        """All bars of a day."""


class View(msgspec.Struct, frozen=True, kw_only=True):
    """How much of the market can be seen at one instant, Unix ms."""

    start: int
    """No bar before it."""
    settled: int
    """Bars that start before it are final."""
    now: int
    """Up to here the bar that starts at `settled` has formed; equal to `settled` where no forming bar is shown."""


class Market:
    """The bars behind the server. Corrections may come from another thread; readers get a new edition of the day."""

    def __init__(self, config: ReplayConfig, source: Source) -> None:
        self.source = source
        self._config = config
        self._edits: dict[tuple[str, int], dict[int, Mapping[str, float] | None]] = {}
        self._editions: dict[tuple[str, int], int] = {}
        self._bad: dict[tuple[str, int], list[int]] = {}
        for symbol, minute in config.bad_bars:
            ms = to_ms(minute) // MINUTE_MS * MINUTE_MS
            self._bad.setdefault((ticker_of(symbol), ms // DAY_MS), []).append(ms)
        self._cache = FragmentCache(config.cache_mb * 1_000_000)

    def edit(self, ticker: str, ms: int, values: Mapping[str, float] | None) -> None:
        """Change columns of a bar, add a bar (all four prices), or remove it (None); ValueError if it cannot be."""
        key = (ticker, ms // DAY_MS)
        old = self._edits.get(key, {}).get(ms)
        edits = {**self._edits.get(key, {}), ms: None if values is None else {**(old or {}), **values}}
        edited(self.source.day(*key), edits)
        self._edits[key] = edits
        self._editions[key] = self._editions.get(key, 0) + 1

    def view(self, now: datetime) -> View:
        """What can be seen at an instant (aware)."""
        config = self._config
        start = -DAY_MS if config.history_start is None else to_ms(config.history_start)
        instant = to_ms(now)
        settled = to_ms(now - timedelta(minutes=config.delay)) // MINUTE_MS * MINUTE_MS
        if config.end_of_day:
            settled = min(settled, midnight(NEW_YORK, local_date(NEW_YORK, instant)))
        live = self.source.name == "synthetic" and not config.delay and not config.end_of_day
        return View(start=start, settled=settled, now=instant if live else settled)

    def days(self, ticker: str, start: int, end: int, view: View) -> Sequence[int]:
        """The UTC days that may hold visible bars of `[start, end)`, Unix ms; ascending."""
        first, last = max(start, view.start) // DAY_MS, (min(end, view.settled + MINUTE_MS) - 1) // DAY_MS
        edits = {day for known, day in tuple(self._edits) if known == ticker and first <= day <= last}
        found = self.source.days(ticker, first, last)
        return sorted(edits.union(found)) if edits.difference(found) else found

    def fragment(self, ticker: str, day: int) -> Fragment:
        """The rendered bars of a whole day, those of its future included."""
        edition = self._editions.get((ticker, day), 0)
        return self._cache.get((ticker, day, edition), lambda: render(self._whole(ticker, day)))

    def bars(self, ticker: str, day: int, view: View) -> Bars:
        """The visible bars of a day, the forming one included."""
        whole = self._whole(ticker, day)
        return join([between(whole, view.start, view.settled), self._formed(ticker, whole, view)])

    def forming(self, ticker: str, view: View) -> Bars:
        """The bar of the minute that has not ended, as far as it has come; or none."""
        if view.now == view.settled or view.settled < view.start:
            return Bars.empty()
        return self._formed(ticker, self._whole(ticker, view.settled // DAY_MS), view)

    def _formed(self, ticker: str, whole: Bars, view: View) -> Bars:
        if view.now == view.settled or view.settled < view.start:
            return Bars.empty()
        bar = between(whole, view.settled, view.settled + MINUTE_MS)
        profile = profile_of(ticker)
        if profile is None or view.settled in self._edits.get((ticker, view.settled // DAY_MS), {}):
            return bar
        return forming(bar, (view.now - view.settled) / MINUTE_MS, profile.decimals)

    def _whole(self, ticker: str, day: int) -> Bars:
        bars = self.source.day(ticker, day)
        edits = self._edits.get((ticker, day))
        if edits:
            bars = edited(bars, edits)
        bad = self._bad.get((ticker, day))
        return impossible(bars, np.unique(bad).tolist()) if bad else bars


def market_of(config: ReplayConfig) -> Market:
    """The market that a configuration asks for; reads its files (UsageError if one cannot be used)."""
    if not config.bars:
        return Market(config, SyntheticMarket(config.seed))
    series: dict[str, Bars] = {}
    for symbol, path in config.bars.items():
        ticker = ticker_of(symbol)
        if ticker in series:
            raise UsageError(f"--bars: {ticker} is given twice")
        series[ticker] = read_csv(path)
    return Market(config, RecordedMarket(series))
