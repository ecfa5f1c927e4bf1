"""A command's work on an event loop of its own, which SIGINT and SIGTERM end in good order."""

import asyncio
import logging
import signal
from collections.abc import Coroutine

INTERRUPTED = 130
"""Exit code."""


def run(
    work: Coroutine[object, object, int],
    told: str = "Stopped. What was stored stays; the same command goes on from there.",
) -> int:
    """Run a command's work to its end, and return its exit code; told: what is said when it is interrupted."""
    terminated = signal.getsignal(signal.SIGTERM)
    try:
        return asyncio.run(_interruptible(work, told))
    finally:
        # The loop leaves the system's own handler behind, which would end the process on the spot.
        signal.signal(signal.SIGTERM, terminated)


async def _interruptible(work: Coroutine[object, object, int], told: str) -> int:
    """Cancel the work on SIGINT and SIGTERM: it leaves whole pieces only. told: what is said then."""
    task = asyncio.ensure_future(work)
    loop = asyncio.get_running_loop()

    def stop() -> None:
        logging.getLogger("psycopg").setLevel(logging.CRITICAL)  # it warns of every query that is broken off
        task.cancel()

    for number in (signal.SIGINT, signal.SIGTERM):
        loop.add_signal_handler(number, stop)
    try:
        return await task
    except asyncio.CancelledError:
        if told:
            print(told, flush=True)  # noqa: T201 - the command's own word
        return INTERRUPTED
