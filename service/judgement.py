"""Judges how far each symbol is, from facts read before: knows no clock and no database."""

from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from datetime import datetime, timedelta
from typing import Literal

import msgspec

from service import coverage
from service.coverage import GRID, MINUTE
from service.entitlements import Entitlement
from service.instruments import AssetType
from service.market_hours import is_open, last_open, market_of, open_time
from service.ranges import Ranges

State = Literal["inactive", "new", "backfilling", "ok", "behind", "failed", "refused"]
STATES: tuple[State, ...] = ("ok", "backfilling", "behind", "new", "failed", "refused", "inactive")
OLDER_SHARE = 5
"""While older work waits, every so many-th call is its own."""


class Facts(msgspec.Struct, frozen=True, kw_only=True):
    """What the database has of one symbol. Instants are aware UTC."""

    symbol: str
    ticker: str
    name: str
    asset_type: AssetType
    active: bool
    status: Literal["new", "ok", "failed", "refused"]
    """How the last attempt went."""
    first_bar: datetime | None
    last_bar: datetime | None
    covered_end: datetime | None
    tracked_from: datetime | None
    """Kept up to date from here on; None: no worker does."""
    tracked_since: datetime | None
    """When a worker began to."""
    asked_to: datetime | None
    """Up to where (exclusive) the last good call at the edge asked."""
    last_sync_at: datetime | None
    last_sync_rows: int | None
    """Bars that it found new or changed."""
    last_sync_changed: int | None
    error: str | None
    next_attempt_at: datetime | None

    @property
    def delivered(self) -> datetime | None:
        """Up to where (exclusive) there are bars, or it is known that there are none."""
        ends = (self.last_bar + MINUTE if self.last_bar else None, self.covered_end)
        return max(filter(None, ends), default=None)


class Outstanding(msgspec.Struct, frozen=True, kw_only=True):
    """What of a symbol is asked for, settled, and not there."""

    missing: timedelta
    older: Ranges
    """What of it no call at the edge will bring."""


class SymbolStatus(msgspec.Struct, frozen=True, kw_only=True):
    """How one symbol does. Instants are aware UTC."""

    symbol: str
    ticker: str
    name: str
    asset_type: AssetType
    active: bool
    state: State
    market_open: bool
    first_bar: datetime | None
    last_bar: datetime | None
    last_sync_at: datetime | None
    rows_new: int | None
    """Of the last sync."""
    rows_changed: int | None
    lag_seconds: int | None
    """How much open market time is not there that should be; None: no worker keeps the symbol up to date."""
    missing_minutes: int
    """Asked for, settled, and not there."""
    error: str | None
    """Why the last attempt failed."""
    next_attempt_at: datetime | None
    """After a failure: not before."""


class Totals(msgspec.Struct, frozen=True, kw_only=True):
    """All symbols together."""

    symbols: int
    active: int
    states: dict[State, int]
    missing_minutes: int
    worst_lag_seconds: int | None
    worst_symbol: str | None
    requests: int
    """Calls that the outstanding older work takes."""
    seconds: int
    """How long these calls take at the plan's rate, beside those at the edge."""
    expected_lag_seconds: int
    """How far behind the edge must be at the plan's rate."""


def lags(facts: Iterable[Facts], plan: Mapping[str, Entitlement], now: datetime) -> dict[str, timedelta | None]:
    """Open market time that should be there and is not, for each symbol; None where no worker keeps it up to date.

    A symbol without a trade is as far as it was asked for with success, while another one of its class delivers.
    """
    known = list(facts)
    delivered: dict[str, datetime] = {}
    for one in known:
        if one.active and one.delivered is not None:
            delivered[one.asset_type] = max(delivered.get(one.asset_type, one.delivered), one.delivered)
    return {one.symbol: _lag(one, delivered.get(one.asset_type), plan, now) for one in known}


def _lag(
    one: Facts, class_delivered: datetime | None, plan: Mapping[str, Entitlement], now: datetime
) -> timedelta | None:
    if not one.active or one.tracked_since is None:
        return None
    quiet = min(one.asked_to, class_delivered) if one.asked_to and class_delivered else None
    have = max(filter(None, (one.delivered, quiet, one.tracked_since)))
    expected = plan.get(one.asset_type, Entitlement()).expected(now)
    return open_time(market_of(one.asset_type, one.ticker), have, expected)


def horizon(one: Facts, now: datetime, settle: timedelta) -> datetime:
    """Up to where (exclusive) what is asked for should be there: closed time at the end waits for the next open."""
    edge = coverage.settled_edge(now, one.last_bar, settle)
    return edge if one.tracked_from is None else min(edge, last_open(market_of(one.asset_type, one.ticker), now))


def older_until(one: Facts, now: datetime, settle: timedelta) -> datetime:
    """Up to where (exclusive) what is missing is older work; what follows comes with the next call at the edge."""
    if one.tracked_from is None or one.covered_end is None:
        return horizon(one, now, settle)
    return max(one.tracked_from, one.covered_end, now - GRID)


def judged(
    one: Facts, lag: timedelta | None, outstanding: Outstanding | None, now: datetime, alert: timedelta
) -> SymbolStatus:
    """One symbol's status. outstanding: None where nothing is. alert: a longer lag counts as late."""
    known = {name: getattr(one, name) for name in SymbolStatus.__struct_fields__ if name in Facts.__struct_fields__}
    rows, changed = one.last_sync_rows, one.last_sync_changed or 0
    return SymbolStatus(
        **known,
        state=_state(one, lag, outstanding, alert),
        market_open=is_open(market_of(one.asset_type, one.ticker), now),
        rows_new=None if rows is None else rows - changed,
        rows_changed=None if rows is None else changed,
        lag_seconds=None if lag is None else round(lag.total_seconds()),
        missing_minutes=0 if outstanding is None else outstanding.missing // MINUTE,
    )


def _state(one: Facts, lag: timedelta | None, outstanding: Outstanding | None, alert: timedelta) -> State:
    if not one.active:
        return "inactive"
    if one.status in {"failed", "refused"}:
        return "failed" if one.status == "failed" else "refused"
    if one.last_sync_at is None:
        return "new"
    if lag is not None and lag > alert:
        return "behind"
    return "backfilling" if outstanding is not None and outstanding.older else "ok"


def totals(symbols: Sequence[SymbolStatus], outstanding: Mapping[str, Outstanding], rate_limit: int | None) -> Totals:
    """What the symbols amount to. rate_limit: calls a minute; None: unlimited."""
    tickers = {one.symbol: one.ticker for one in symbols}
    slices = coverage.cut((symbol, tickers[symbol], one.older) for symbol, one in outstanding.items())
    requests = sum(len(one.pieces) for one in slices)
    states = Counter(one.state for one in symbols)
    behind = [one for one in symbols if one.lag_seconds is not None]
    worst = max(behind, key=lambda one: one.lag_seconds or 0, default=None)
    open_now = sum(one.active and one.market_open for one in symbols)
    return Totals(
        symbols=len(symbols),
        active=sum(one.active for one in symbols),
        states={state: states[state] for state in STATES},
        missing_minutes=sum(one.missing_minutes for one in symbols),
        worst_lag_seconds=worst.lag_seconds if worst else None,
        worst_symbol=worst.symbol if worst else None,
        requests=requests,
        seconds=_seconds(requests, open_now, rate_limit),
        expected_lag_seconds=expected_lag(open_now, rate_limit, older=requests > 0),
    )


def expected_lag(open_now: int, rate_limit: int | None, *, older: bool) -> int:
    """How many seconds pass between two calls for a symbol, so many symbols being open; 0: the plan has no limit."""
    if rate_limit is None:
        return 0
    share = (OLDER_SHARE - 1) / OLDER_SHARE if older else 1
    return round(60 * open_now / rate_limit / share)


def _seconds(requests: int, open_now: int, rate_limit: int | None) -> int:
    """Older work gets what the edge leaves, a fifth at least."""
    return 0 if rate_limit is None else round(60 * requests / max(rate_limit / OLDER_SHARE, rate_limit - open_now))
