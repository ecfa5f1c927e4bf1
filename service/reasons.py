"""Says why all is not well, and what to do: judges the worker, the provider, a clock and late symbols."""

from collections.abc import Sequence
from datetime import datetime, timedelta

import msgspec

from service.coverage import MINUTE
from service.heartbeat import ProviderState, Worker

SILENT_AFTER = timedelta(seconds=30)
"""A worker says every five seconds that it lives; one that is silent for so long does not."""
CLOCK_TOLERANCE = timedelta(seconds=60)
"""A clock that is off by more asks for minutes that are not over, or too late."""
NAMED = 10
"""So many late symbols are named; the others are counted."""
_START_IT = "start `candlewick worker`, or `candlewick serve` with ENABLE_SYNC_SCHEDULER=true"


def alive(worker: Worker | None, now: datetime) -> bool:
    """Whether a worker runs: it said so lately."""
    return worker is not None and now - worker.beat_at <= SILENT_AFTER


class Late(msgspec.Struct, frozen=True, kw_only=True):
    """A symbol whose lag counts as late."""

    symbol: str
    lag: timedelta
    trouble: str | None
    """Why its last attempt failed, if it did."""


def reasons(
    worker: Worker | None, late: Sequence[Late], now: datetime, *, alert: timedelta, expected: timedelta
) -> list[str]:
    """Why all is not well, each with what to do; empty: all is well. late: the worst first.

    expected: how far behind the edge must be at the plan's rate.
    """
    found = []
    if worker is None:
        found.append(f"no worker is running, and none ever was: {_START_IT}")
    elif not alive(worker, now):
        found.append(
            f"no worker is running: the last one (process {worker.pid} on {worker.host}) was heard of last at "
            f"{worker.beat_at:%Y-%m-%d %H:%M:%S} UTC; {_START_IT}"
        )
    else:
        found += _provider(worker.provider, worker)
        found += _clock(worker.clock_ahead)
    if late:
        found.append(_late(late, alert, expected))
    return found


def _provider(state: ProviderState, worker: Worker) -> list[str]:
    since = "" if worker.provider_since is None else f" since {worker.provider_since:%Y-%m-%d %H:%M:%S} UTC"
    words = f" ({worker.provider_message})" if worker.provider_message else ""
    match state:
        case "ok":
            return []
        case "unauthorized":
            return [f"the provider refuses the key{since}: correct POLYGON_API_KEY and start the worker anew{words}"]
        case "unreachable":
            return [f"the provider cannot be reached{since}; the worker tries again by itself{words}"]


def _clock(ahead: timedelta | None) -> list[str]:
    if ahead is None or abs(ahead) <= CLOCK_TOLERANCE:
        return []
    side = "ahead of" if ahead > timedelta() else "behind"
    seconds = abs(ahead).total_seconds()
    return [f"the clock of the worker's machine is {seconds:.0f} s {side} the provider's: let it be set by NTP"]


def _late(late: Sequence[Late], alert: timedelta, expected: timedelta) -> str:
    named = [
        f"{one.symbol} {one.lag // MINUTE} min{f' ({one.trouble})' if one.trouble else ''}" for one in late[:NAMED]
    ]
    if len(late) > NAMED:
        named.append("...")
    count = "1 symbol is" if len(late) == 1 else f"{len(late)} symbols are"
    text = f"{count} late by more than LAG_ALERT ({alert // MINUTE} minutes): {', '.join(named)}"
    if expected > alert:
        text += (
            f"; POLYGON_RATE_LIMIT alone makes the edge {expected // MINUTE} minutes late with so many open symbols: "
            "switch some off, or raise it with your plan, or LAG_ALERT"
        )
    return text
