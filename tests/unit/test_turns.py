"""Large answers give way to requests that have had nothing yet, but not for ever."""

import asyncio
import time
from collections.abc import Coroutine
from typing import Any

import pytest

from service.api import turns
from service.api.turns import Turns


@pytest.fixture
def patience(monkeypatch: pytest.MonkeyPatch) -> None:
    """Longer than a test: who waits so long was not called."""
    monkeypatch.setattr(turns, "PATIENCE", 20.0)


@pytest.fixture
def precedence(monkeypatch: pytest.MonkeyPatch) -> None:
    """Longer than a test, too."""
    monkeypatch.setattr(turns, "PRECEDENCE", 20.0)


def asked(one: Turns, answer: Any) -> Coroutine[Any, Any, None]:  # noqa: ANN401 - an ASGI application
    """A request that this application answers."""

    async def ignored(_message: Any = None) -> Any:  # noqa: ANN401 - either way
        return None

    scope: Any = {"type": "http"}
    return one.handle(scope, ignored, ignored, answer)


@pytest.mark.usefixtures("patience", "precedence")
async def test_a_piece_waits_until_everybody_else_has_had_something() -> None:
    order: list[str] = []
    one, begin, end = Turns(), asyncio.Event(), asyncio.Event()

    async def small(_scope: Any, _receive: Any, send: Any) -> None:  # noqa: ANN401 - as the protocol has it
        await begin.wait()
        order.append("small")
        await send({"type": "http.response.start"})
        await end.wait()

    async def piece() -> None:
        await one.after_the_others()
        order.append("piece")

    async with asyncio.TaskGroup() as tasks:
        tasks.create_task(asked(one, small))
        tasks.create_task(asked(one, small))
        await asyncio.sleep(0)
        waiting = tasks.create_task(piece())
        await asyncio.sleep(0.01)
        assert order == []
        begin.set()
        await waiting
        assert order == ["small", "small", "piece"]
        await one.after_the_others()  # those that are being sent hold up nobody
        end.set()


@pytest.mark.usefixtures("patience", "precedence")
async def test_a_request_that_fails_or_is_cancelled_holds_up_nobody() -> None:
    one = Turns()

    async def failing(*_: Any) -> None:  # noqa: ANN401 - as the protocol has it
        raise LookupError

    async def endless(*_: Any) -> None:  # noqa: ANN401 - as above
        await asyncio.sleep(60)

    with pytest.raises(LookupError):
        await asked(one, failing)
    task = asyncio.create_task(asked(one, endless))
    await asyncio.sleep(0)
    task.cancel()
    await asyncio.wait([task])
    await one.after_the_others()


@pytest.mark.parametrize("other", ["precedence", "patience"])
async def test_a_request_that_takes_long_holds_up_no_large_answer(other: str, request: pytest.FixtureRequest) -> None:
    """Such as one that waits for a sync: neither a piece waits for long, nor each piece for it."""
    request.getfixturevalue(other)
    one = Turns()

    async def endless(*_: Any) -> None:  # noqa: ANN401 - as the protocol has it
        await asyncio.sleep(60)

    task = asyncio.create_task(asked(one, endless))
    await asyncio.sleep(0)
    began = time.monotonic()
    await one.after_the_others()
    assert time.monotonic() - began < 5
    task.cancel()
    await asyncio.wait([task])
    await one.after_the_others()
