"""The lock whose holder alone calls the provider: who gets it, when, and how its loss is noticed."""

import asyncio
import time
from collections.abc import AsyncIterator
from contextlib import suppress
from typing import Any

import psycopg
import pytest
from psycopg import AsyncConnection

from service import ledger, lock
from service.db.connect import Database
from service.db.preflight import checked
from service.lock import LockLost, fetching_alone, guard
from tests.integration.working import break_lock

pytestmark = pytest.mark.parametrize("engine", ["plain"], indirect=True)


@pytest.fixture
async def db(database: str, engine: str) -> AsyncIterator[Database]:
    """One process's way into the database."""
    async with checked(database, engine) as opened:
        yield opened


async def _wait() -> bool:
    return True


async def _give_up() -> bool:
    return False


async def test_one_holds_it_and_others_wait_for_its_end(db: Database, monkeypatch: pytest.MonkeyPatch) -> None:
    """Whoever waits is asked again and again whether he still wants it, and has it as soon as it is free."""
    monkeypatch.setattr(lock, "RETRY_SECONDS", 0.02)
    looks, looked, order = 0, asyncio.Event(), []

    async def looking() -> bool:
        nonlocal looks
        looks += 1
        if looks == 3:
            looked.set()
        return True

    async def second() -> None:
        async with fetching_alone(db, looking) as conn:
            assert conn is not None
            order.append("second")

    async with fetching_alone(db, _wait) as first:
        assert first is not None
        task = asyncio.create_task(second())
        await asyncio.wait_for(looked.wait(), 5)
        order.append("first")
        async with fetching_alone(db, _give_up) as nobody:
            assert nobody is None
    await asyncio.wait_for(task, 5)
    assert order == ["first", "second"]


async def test_another_database_has_a_lock_of_its_own(db: Database, database: str) -> None:
    """What is held is the right to call for this database, not for the server."""
    name = str(psycopg.conninfo.conninfo_to_dict(database)["dbname"])
    elsewhere = Database(database.replace(name, "candlewick"), db.engine, db.version)
    async with fetching_alone(db, _wait), fetching_alone(elsewhere, _give_up) as other:
        assert other is not None


async def test_the_loss_of_the_lock_is_noticed_at_once(db: Database, database: str) -> None:
    """Not only at the next look, five seconds later."""
    async with fetching_alone(db, _wait) as conn:
        assert conn is not None
        task = asyncio.create_task(guard(conn))
        await asyncio.sleep(0.2)
        began = time.monotonic()
        break_lock(database)
        with pytest.raises(LockLost, match="right to call the provider was lost"):
            await asyncio.wait_for(task, lock.CHECK_SECONDS)
        assert time.monotonic() - began < lock.CHECK_SECONDS / 2


async def test_while_it_is_held_its_holder_beats(db: Database, monkeypatch: pytest.MonkeyPatch) -> None:
    """Every few seconds, the first time at once; a beat that the database refuses counts as a loss."""
    monkeypatch.setattr(lock, "CHECK_SECONDS", 0.05)
    beats = 0

    async def beat(conn: AsyncConnection[Any]) -> None:
        nonlocal beats
        beats += 1
        if beats == 4:
            await conn.execute("SELECT 1 / 0")

    async with fetching_alone(db, _wait) as conn:
        assert conn is not None
        with pytest.raises(LockLost) as lost:
            await asyncio.wait_for(guard(conn, lambda: beat(conn)), 10)
    assert beats == 4
    assert isinstance(lost.value.__cause__, psycopg.errors.DivisionByZero)


async def test_a_request_is_heard_at_once(db: Database) -> None:
    """Between two looks, and also one that comes while the holder does something else on that connection."""
    heard = asyncio.Event()

    async def hear() -> None:
        heard.set()

    async def slow_beat() -> None:
        await asyncio.sleep(0.3)

    async with fetching_alone(db, _wait) as conn, db.connection() as other:
        assert conn is not None
        await conn.execute(f"LISTEN {ledger.REQUESTS}")
        task = asyncio.create_task(guard(conn, slow_beat, hear))
        for moment in (0.1, 1.0):  # amid a beat, and amid the wait
            await asyncio.sleep(moment)
            await ledger.call_worker(other)
            began = time.monotonic()
            await asyncio.wait_for(heard.wait(), lock.CHECK_SECONDS)
            assert time.monotonic() - began < lock.CHECK_SECONDS / 2
            heard.clear()
        task.cancel()
        with suppress(asyncio.CancelledError):
            await task
