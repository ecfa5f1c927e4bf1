"""`candlewick sync`: one pass now, by this process, or by the worker if one runs."""

from collections.abc import Callable, Sequence
from datetime import datetime, timedelta

import msgspec

from service import heartbeat, ledger, tracking
from service.backfill import limiter_of
from service.coverage import MINUTE, minute_floor
from service.db.connect import Database
from service.errors import NotAuthorized
from service.lock import fetching_alone
from service.provider.client import open_client
from service.ranges import Range
from service.settings import Settings
from service.sync import Sync
from service.timeframes import utc_now


class Done(msgspec.Struct, frozen=True, kw_only=True):
    """What came of it."""

    failures: dict[str, str]
    """Symbol to the reason."""


async def sync_now(
    db: Database,
    settings: Settings,
    symbols: Sequence[str] | None,
    *,
    say: Callable[[str], None],
    clock: Callable[[], datetime] = utc_now,
) -> Done:
    """Bring the edge of these symbols (None: all active ones) up to now, at the plan's rate; older work waits.

    While another process holds the lock it is asked to do so, and waited for. Raises psycopg's errors, DatabaseError,
    NotAuthorized.
    """
    began = clock()
    async with db.connection() as conn:
        chosen = [one.symbol for one in await ledger.ledgers(conn, symbols)]
    asked = False

    async def waiting() -> bool:
        nonlocal asked
        async with db.connection() as conn:
            if not asked:
                say(f"A worker is running: it is asked for {len(chosen)} symbols first.")
                edge = minute_floor(clock())
                await ledger.request(conn, chosen, Range(edge - MINUTE, edge))
                asked = True
            refusal = await heartbeat.refusal(conn, clock())
            if refusal is not None:
                raise NotAuthorized(refusal)
            return await tracking.any_requested(conn, chosen)

    async with fetching_alone(db, waiting) as lock:
        if lock is not None:
            async with db.connection() as conn:
                history = await ledger.recent_calls(conn, began - timedelta(minutes=1))
            limiter = limiter_of(db, settings, history)
            key = settings.require_api_key()
            async with open_client(settings.polygon_base_url, key, limiter=limiter, clock=clock) as client:
                sync = Sync(db, settings, client, limiter, clock=clock)
                said = await sync.run_pass(only=chosen, lasts=timedelta(days=1))
                if sync.provider == "unauthorized":  # of no symbol: another pass only says why it would make no call
                    raise NotAuthorized((await sync.run_pass(only=chosen)).partition(": ")[2])
                say(said)
        else:
            say(f"Done in {(clock() - began).total_seconds():.1f} s.")
    async with db.connection() as conn:
        return Done(failures=await ledger.failed_since(conn, chosen, began))
