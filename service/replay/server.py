"""Running the replay: as a command that blocks, or in a thread beside a test."""

import asyncio
import contextlib
import signal
import socket
import threading
from collections.abc import Callable, Iterator, MutableMapping
from datetime import UTC, datetime
from functools import partial
from typing import Any

import uvicorn
from uvicorn.protocols.http.h11_impl import H11Protocol

from service.bars import MINUTE_MS, Bars, join, to_ms
from service.errors import UsageError
from service.replay.app import HANG_UP, Receive, ReplayApp, Send, Served
from service.replay.columns import between
from service.replay.config import ReplayConfig, ticker_of
from service.replay.market import market_of
from service.replay.recorded import RecordedMarket


class ReplayServer:
    """A running replay, as a test sees it. Everything may be changed while it runs."""

    def __init__(self, config: ReplayConfig, clock: Callable[[], datetime] | None = None) -> None:
        """clock: the present, aware UTC; without it `now` counts, and without that the real time."""
        self.now = config.now
        """Pins the clock; None lets it run."""
        self.requests: list[Served] = []
        """What was asked, oldest first."""
        self._market = market_of(config)
        self.app = ReplayApp(
            config,
            self._market,
            clock=clock or (lambda: self.now or datetime.now(UTC)),
            record=self.requests.append,
        )
        self.url = ""
        """Without a slash at its end; empty until it listens."""

    @property
    def faults(self) -> list[str | None]:
        """The script of faults: one is taken for each request for bars; None answers well."""
        return self.app.plan.script

    def amend(self, symbol: str, at: datetime, **values: float) -> None:
        """Change a bar: open, high, low, close, volume, vwap, trades; a new bar needs the four prices (ValueError).

        What is not named stays as it is; a removed bar comes back.
        """
        self._market.edit(ticker_of(symbol), _minute(at), values)

    def remove(self, symbol: str, at: datetime) -> None:
        """Let a bar no longer exist, until it is amended."""
        self._market.edit(ticker_of(symbol), _minute(at), None)

    def bars(self, symbol: str, start: datetime, end: datetime) -> Bars:
        """The bars that it serves now for `[start, end)`, the forming one included."""
        ticker, first, last = ticker_of(symbol), to_ms(start), to_ms(end)
        view = self.app.view()
        days = self._market.days(ticker, first, last, view)
        return between(join([self._market.bars(ticker, day, view) for day in days]), first, last)


class _Protocol(H11Protocol):
    """HTTP that lets the application close the connection, for the faults that need it."""

    def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]  # as its base does
        super().connection_made(transport)
        app: Any = self.app

        async def reaching(scope: MutableMapping[str, Any], receive: Receive, send: Send) -> None:
            await app({**scope, HANG_UP: transport.close}, receive, send)

        self.app = reaching


class _Server(uvicorn.Server):
    """Says when it listens and stops at once when told; signals are left to the caller."""

    def __init__(self, app: ReplayApp, listening: Callable[[], None]) -> None:
        super().__init__(
            uvicorn.Config(
                app,
                http=_Protocol,
                ws="none",
                lifespan="off",
                interface="asgi3",
                access_log=False,
                log_config=None,
                date_header=False,
                server_header=False,
                timeout_keep_alive=75,
                timeout_graceful_shutdown=1,
            )
        )
        self._listening = listening
        self._wake: Callable[[], object] | None = None

    def stop(self) -> None:
        """End soon; from any thread, and from a signal handler."""
        self.should_exit = True
        wake = self._wake
        if wake is not None:
            wake()

    async def main_loop(self) -> None:
        stopping = asyncio.Event()
        self._wake = partial(asyncio.get_running_loop().call_soon_threadsafe, stopping.set)
        self._listening()
        if not self.should_exit:
            await stopping.wait()
        self._wake = None

    @contextlib.contextmanager
    def capture_signals(self) -> Iterator[None]:
        yield


def run(config: ReplayConfig) -> None:
    """Serve until SIGINT or SIGTERM; says on stdout, in one line, where it listens. UsageError if it cannot start."""
    app = ReplayApp(config, market_of(config), clock=_clock(config))
    source = app.market.source
    what = f"{len(source)} CSV series" if isinstance(source, RecordedMarket) else "synthetic market of 45 instruments"
    listener = _listen(config)
    server = _Server(app, lambda: print(f"replay: {what} on {_url(config, listener)}", flush=True))  # noqa: T201

    def stop(_number: int, _frame: object) -> None:
        server.stop()

    before = {number: signal.signal(number, stop) for number in (signal.SIGINT, signal.SIGTERM)}
    try:
        server.run(sockets=[listener])
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


@contextlib.contextmanager
def running(
    config: ReplayConfig | None = None, *, clock: Callable[[], datetime] | None = None
) -> Iterator[ReplayServer]:
    """A replay in a thread of this process, for the length of the context; listens when the context begins.

    clock: the present, aware UTC; without it `ReplayServer.now` counts, and without that the real time.
    """
    config = config or ReplayConfig()
    replay = ReplayServer(config, clock)
    listener = _listen(config)
    replay.url = _url(config, listener)
    ready = threading.Event()
    server = _Server(replay.app, ready.set)
    thread = threading.Thread(target=server.run, kwargs={"sockets": [listener]}, name="candlewick-replay", daemon=True)
    thread.start()
    try:
        if not ready.wait(10):
            raise RuntimeError("the replay did not start within 10 s")
        yield replay
    finally:
        server.stop()
        thread.join(10)


def _listen(config: ReplayConfig) -> socket.socket:
    family = socket.AF_INET6 if ":" in config.host else socket.AF_INET
    try:
        return socket.create_server((config.host, config.port), family=family, backlog=2048)
    except OSError as exc:
        raise UsageError(f"--port: cannot listen on {config.host}:{config.port}: {exc.strerror or exc}") from exc


def _url(config: ReplayConfig, listener: socket.socket) -> str:
    host = f"[{config.host}]" if ":" in config.host else config.host
    return f"http://{host}:{listener.getsockname()[1]}"


def _clock(config: ReplayConfig) -> Callable[[], datetime]:
    return lambda: config.now or datetime.now(UTC)


def _minute(at: datetime) -> int:
    return to_ms(at) // MINUTE_MS * MINUTE_MS
