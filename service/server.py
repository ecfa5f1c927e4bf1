"""The process that answers over HTTP, and the worker as its child: as a thread it would slow the answers."""

import errno
import logging
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager

from service import __version__
from service.db.connect import Database
from service.errors import SettingsError
from service.settings import Settings

log = logging.getLogger(__name__)

SHORTEST_REST, LONGEST_REST = 1.0, 60.0
"""Seconds before a worker that ended is started again, twice as long each time that it ends soon."""
SOON = 60.0


@contextmanager
def listening(chosen: Settings) -> Iterator[tuple[socket.socket, str]]:
    """A socket on HOST and PORT, so that nothing starts where nobody could ask, and its URL."""
    family = socket.AF_INET6 if ":" in chosen.host else socket.AF_INET
    try:
        listener = socket.create_server((chosen.host, chosen.port), family=family, backlog=2048)
    except OSError as exc:
        why = f"cannot listen on {chosen.host}:{chosen.port}: {str(exc.strerror or exc).partition(' (')[0]}"
        raise SettingsError("PORT" if exc.errno == errno.EADDRINUSE else "HOST", why) from exc
    with listener:
        host = f"[{chosen.host}]" if ":" in chosen.host else chosen.host
        yield listener, f"http://{host}:{listener.getsockname()[1]}"


def answer(db: Database, chosen: Settings, listener: socket.socket, url: str) -> None:
    """Serve until SIGINT or SIGTERM, either of which ends in KeyboardInterrupt."""
    import uvicorn  # noqa: PLC0415 - the other commands need neither

    from service.api.app import create_app  # noqa: PLC0415
    from service.http_protocol import BoundedProtocol  # noqa: PLC0415

    config = uvicorn.Config(
        create_app(db, chosen),
        http=BoundedProtocol,
        ws="none",
        log_config=None,
        access_log=False,
        server_header=False,
        timeout_graceful_shutdown=3,
    )
    print(f"candlewick {__version__} on {url} (docs at /docs), {db.version}", flush=True)  # noqa: T201 - the command's
    uvicorn.Server(config).run(sockets=[listener])


@contextmanager
def worker_beside(env: Mapping[str, str]) -> Iterator[None]:
    """`candlewick worker` as a child process with this environment, started again whenever it ends by itself.

    It ends with this context, and with this process, whatever kills it.
    """
    keeper = _Keeper(env)
    thread = threading.Thread(target=keeper.run, name="candlewick-worker", daemon=True)
    thread.start()
    try:
        yield
    finally:
        keeper.stop()
        thread.join()


class _Keeper:
    def __init__(self, env: Mapping[str, str]) -> None:
        self._env = env
        self._stopped = threading.Event()
        self._lock = threading.Lock()
        self._child: subprocess.Popen[bytes] | None = None

    def run(self) -> None:
        rest = SHORTEST_REST
        while not self._stopped.is_set():
            child = self._start()
            if child is None:
                return
            began = time.monotonic()
            code = child.wait()
            if self._stopped.is_set():
                return
            rest = SHORTEST_REST if time.monotonic() - began > SOON else min(rest * 2, LONGEST_REST)
            log.error("the worker ended with code %d; it is started again in %.0f s", code, rest)
            self._stopped.wait(rest)

    def stop(self) -> None:
        """End the child within a second or so, by force if need be."""
        with self._lock:
            self._stopped.set()
            child = self._child
        if child is None:
            return
        child.terminate()
        try:
            child.wait(5)
        except subprocess.TimeoutExpired:
            child.kill()
            child.wait()

    def _start(self) -> "subprocess.Popen[bytes] | None":
        command = [sys.executable, "-P", "-m", "service", "worker", "--while-stdin-is-open"]
        with self._lock:
            if self._stopped.is_set():
                return None
            # Its end of the pipe closes when this process is gone, however it went. In a group of its own no Ctrl-C of
            # a terminal meets it: that would end it with a traceback while it still begins.
            self._child = subprocess.Popen(  # noqa: S603 - our own
                command, stdin=subprocess.PIPE, env=dict(self._env), process_group=0
            )
            return self._child
