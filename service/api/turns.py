"""Whose turn it is: large answers under way wait for requests that have had nothing yet, for a while at a time."""

import asyncio
from contextlib import suppress

from litestar.enums import ScopeType
from litestar.middleware import ASGIMiddleware
from litestar.types import ASGIApp, Message, Receive, Scope, Send

PATIENCE = 0.003
"""Seconds that one piece of a large answer waits at most, however many requests come."""
PRECEDENCE = 0.05
"""Seconds from its beginning within which a request goes first: one that takes longer is no small one, or it waits for
something itself, as a sync does."""


class Turns(ASGIMiddleware):
    """Knows which requests still wait for the beginning of their answer."""

    scopes = (ScopeType.HTTP,)

    def __init__(self) -> None:
        self._waiting = 0
        self._none_waits = asyncio.Event()

    async def handle(self, scope: Scope, receive: Receive, send: Send, next_app: ASGIApp) -> None:
        """Pass a request on; it waits no more when something of its answer is sent."""
        over = False

        def end() -> None:
            nonlocal over
            if not over:
                over = True
                timer.cancel()
                self._waiting -= 1
                if not self._waiting:
                    self._none_waits.set()

        async def sending(message: Message) -> None:
            end()
            await send(message)

        timer = asyncio.get_running_loop().call_later(PRECEDENCE, end)
        self._waiting += 1
        self._none_waits.clear()
        try:
            await next_app(scope, receive, sending)
        finally:
            end()

    async def after_the_others(self) -> None:
        """Before a piece of a large answer: let everybody else have a turn."""
        await asyncio.sleep(0)
        if self._waiting:
            with suppress(TimeoutError):
                async with asyncio.timeout(PATIENCE):
                    await self._none_waits.wait()
