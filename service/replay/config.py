"""What a replay is asked to be: one frozen value, made by the command line or by a test."""

from collections.abc import Mapping
from datetime import datetime
from pathlib import Path

import msgspec

from service.instruments import SEED
from service.replay.faults import RANDOM_KINDS


class ReplayConfig(msgspec.Struct, frozen=True, kw_only=True):
    """Everything that can be chosen about a replay. All datetimes are aware UTC."""

    bars: Mapping[str, Path] = {}
    """Symbol or ticker -> CSV file (plain or .gz). None: the synthetic market."""
    api_key: str | None = None
    """The only key that is accepted; None accepts any key that is not empty."""
    host: str = "127.0.0.1"
    port: int = 0
    """0 takes any free port."""
    seed: int = 0
    """Another seed is another synthetic market."""
    now: datetime | None = None
    """Pins the server's clock; None is the real time."""
    delay: int = 0
    """Minutes: a bar is visible once it ended that long ago, and the status is DELAYED."""
    end_of_day: bool = False
    """Only bars before the last New York midnight are visible, and the status is DELAYED."""
    latency: float = 0.0
    """Milliseconds added to every answer."""
    rate_limit: int | None = None
    """Calls answered in any 60 s; more are refused with 429. None: no limit."""
    denied: tuple[str, ...] = ()
    """Refused with 403: symbols, tickers, or prefixes written `I:` or `X:B*`."""
    history_start: datetime | None = None
    """No bar before it exists."""
    history_refused: bool = False
    """A range that begins before `history_start` is refused with 403 instead of being clipped."""
    today_refused: bool = False
    """A range that ends after the last New York midnight is refused with 403."""
    cache_mb: int = 400
    """Upper bound of the cache of rendered days, in MB (10**6 bytes)."""
    fault_rate: float = 0.0
    """Share of requests, 0 to 1, that meet a random fault."""
    fault_seed: int = 0
    fault_kinds: tuple[str, ...] = RANDOM_KINDS
    """The kinds that chance may pick."""
    fault_delay: float = 30.0
    """Seconds that the fault `timeout` lets its client wait before the connection is dropped."""
    faults: tuple[str | None, ...] = ()
    """A script: one entry for each request for bars, in order; None answers well. Chance follows after its end."""
    bad_bars: tuple[tuple[str, datetime], ...] = ()
    """(symbol, minute) of bars that are always served with their high below their low."""


def ticker_of(symbol: str) -> str:
    """The provider's spelling of a seeded symbol; anything else is taken to be a ticker already."""
    return next((instrument.ticker for instrument in SEED if instrument.symbol == symbol), symbol)
