"""The command `candlewick`: reads the command line, calls what does the work, and turns errors into one line."""

import argparse
import asyncio
import errno
import logging
import os
import re
import signal
import socket
import subprocess
import sys
from collections.abc import Coroutine, Iterator, Sequence
from contextlib import contextmanager
from datetime import UTC, datetime, timedelta
from typing import NoReturn

import psycopg

from service import __version__, coverage, ledger, settings
from service.backfill import backfill
from service.db.connect import Database, database_url
from service.db.migrate import migrate
from service.db.preflight import checked
from service.demo import WARNING, demo_settings, replay_process
from service.errors import CandlewickError, SettingsError, UsageError
from service.progress import summarize, watcher
from service.ranges import Range
from service.replay import options as replay_options
from service.replay import server as replay_server
from service.settings import Settings
from service.timeframes import EPOCH, Timeframe, utc_now

DONE, FAILED, MISUSED, INTERRUPTED = 0, 1, 2, 130


def main(argv: Sequence[str] | None = None) -> None:
    """Run one command and exit with its code: 0 done, 1 failed, 2 bad arguments or settings, 130 interrupted."""
    # A service manager's TERM ends everything that Ctrl-C ends: child processes, the embedded server.
    signal.signal(signal.SIGTERM, signal.default_int_handler)
    try:
        args = _parser().parse_args(argv)
        code = args.run(args)
    except (SettingsError, UsageError) as exc:
        code = _complain(exc, MISUSED)
    except CandlewickError as exc:
        code = _complain(exc, FAILED)
    except psycopg.Error as exc:
        code = _complain(f"the database failed: {' '.join(str(exc).split())}", FAILED)
    except OSError as exc:
        # Mostly the output cannot be written (`| head`, a full disk): what it still holds is dropped.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        code = _complain(exc, FAILED)
    except KeyboardInterrupt:
        code = _complain("stopped", INTERRUPTED)
    sys.exit(code)


class _Parser(argparse.ArgumentParser):
    """Tells what is wrong in one line, without the usage."""

    def error(self, message: str) -> NoReturn:
        raise UsageError(f"{message} (see {self.prog} --help)")


def _parser() -> argparse.ArgumentParser:
    parser = _Parser(prog="candlewick", description="One-minute bars in, candles out, complete or it says so.")
    parser.add_argument("--version", action="version", version=f"candlewick {__version__}")
    commands = parser.add_subparsers(required=True, metavar="COMMAND")

    one = commands.add_parser("migrate", help="bring the database to this version's schema")
    one.set_defaults(run=_migrate)

    one = commands.add_parser("backfill", help="fetch what is missing of a past range")
    one.add_argument("symbols", nargs="*", metavar="SYMBOL", help="such as EURUSD BTCUSD")
    one.add_argument("--all", action="store_true", help="all active symbols")
    one.add_argument("--days", metavar="N", help="so many days back from now (default: BACKFILL_DAYS)")
    one.add_argument("--from", dest="start", metavar="WHEN", help="start (inclusive): a date or ISO 8601, UTC")
    one.add_argument("--to", dest="end", metavar="WHEN", help="end (exclusive), written like --from; default now")
    one.set_defaults(run=_backfill)

    one = commands.add_parser("serve", help="answer over HTTP")
    one.add_argument("--backfill", action="store_true", help="meanwhile fetch BACKFILL_DAYS of all active symbols")
    one.set_defaults(run=_serve)

    one = commands.add_parser("replay", help="imitate the provider: from files, or an invented market")
    replay_options.add_arguments(one)
    one.set_defaults(run=_replay)

    one = commands.add_parser("demo", help="everything at once on an invented market: nothing else is needed")
    one.set_defaults(run=_demo)
    return parser


def _migrate(_: argparse.Namespace) -> int:
    chosen = _load()
    with database_url(chosen) as url:
        before, after = migrate(url, chosen.engine)
    print(f"schema {after}" + (" already there" if before == after else f", was {before or 'absent'}"))
    return DONE


def _backfill(args: argparse.Namespace) -> int:
    chosen = _load()
    chosen.require_api_key()
    now = utc_now()
    if args.all == bool(args.symbols):
        raise UsageError("name the symbols to backfill, or --all")
    with database_url(chosen) as url:
        db = checked(url, chosen.engine)
        floor = db.engine.floors(chosen.retention, now)[Timeframe.M1]
        asked = _asked(args, chosen, now, floor)
        return _run(_run_backfill(db, chosen, args.symbols or None, asked))


async def _run_backfill(db: Database, chosen: Settings, symbols: Sequence[str] | None, asked: Range) -> int:
    async with db:
        if symbols is not None:
            async with db.connection() as conn:
                symbols = await ledger.known(conn, symbols)
        with watcher() as display:
            summary = await backfill(db, chosen, symbols, asked, watcher=display)
    print(summarize(summary), flush=True)
    return FAILED if summary.failures else DONE


def _run(work: Coroutine[object, object, int]) -> int:
    terminated = signal.getsignal(signal.SIGTERM)
    try:
        return asyncio.run(_interruptible(work))
    finally:
        # The loop leaves the system's own handler behind, which would end the process on the spot.
        signal.signal(signal.SIGTERM, terminated)


async def _interruptible(work: Coroutine[object, object, int]) -> int:
    """Cancel the work on SIGINT and SIGTERM: it leaves whole pieces only."""
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
        print("Stopped. What was stored stays; the same command goes on from there.", flush=True)
        return INTERRUPTED


def _asked(args: argparse.Namespace, chosen: Settings, now: datetime, floor: datetime | None) -> Range:
    """The range on the command line, on whole minutes, at most up to now."""
    if args.days is not None and (args.start or args.end):
        raise UsageError("--days goes without --from and --to")
    if args.end and not args.start:
        raise UsageError("--to needs --from")
    if args.start:
        start = _when("--from", args.start)
        end = min(_when("--to", args.end) if args.end else now, now)
        if start >= end:
            raise UsageError(f"--from {args.start} does not lie before {args.end or 'now'}")
        return Range(coverage.minute_floor(start), min(Timeframe.M1.ceil(end), coverage.minute_floor(now)))
    most = (now - EPOCH).days
    if args.days is not None and not (re.fullmatch("[1-9][0-9]{0,4}", args.days) and int(args.days) <= most):
        raise UsageError(f"--days {args.days}: give a whole number from 1 to {most}")
    back = now - timedelta(days=min(int(args.days or chosen.backfill_days), most))
    start = Timeframe.D1.floor(back)
    # A whole number of days that just fits into the retention is meant to fit; a default always is.
    if floor is not None and start < floor and (args.days is None or floor <= Timeframe.D1.ceil(back)):
        start = floor
    return Range(start, coverage.minute_floor(now))


def _when(option: str, text: str) -> datetime:
    try:
        at = datetime.fromisoformat(text)
        at = at.replace(tzinfo=UTC) if at.tzinfo is None else at.astimezone(UTC)
    except (ValueError, OverflowError):
        raise UsageError(f"{option} {text}: give a date (2024-01-31) or ISO 8601 (2024-01-31T09:30Z), UTC") from None
    if at < EPOCH:
        raise UsageError(f"{option} {text}: there are no bars before {EPOCH:%Y}")
    return at


def _serve(args: argparse.Namespace) -> int:
    chosen = _load()
    if args.backfill:
        chosen.require_api_key()
    with _listening(chosen) as (listener, address), database_url(chosen) as url:
        db = checked(url, chosen.engine)
        child = (
            subprocess.Popen([sys.executable, "-P", "-m", "service", "backfill", "--all"]) if args.backfill else None
        )
        try:
            _answer(db, chosen, listener, address)
        finally:
            if child is not None:
                child.terminate()
                child.wait()
    return DONE


@contextmanager
def _listening(chosen: Settings) -> Iterator[tuple[socket.socket, str]]:
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


def _answer(db: Database, chosen: Settings, listener: socket.socket, url: str) -> None:
    """Serve until SIGINT or SIGTERM, either of which ends in KeyboardInterrupt."""
    import uvicorn  # noqa: PLC0415 - the other commands need neither

    from service.api.app import create_app  # noqa: PLC0415

    config = uvicorn.Config(
        create_app(db, chosen),
        log_config=None,
        access_log=False,
        server_header=False,
        timeout_graceful_shutdown=3,
    )
    print(f"candlewick {__version__} on {url} (docs at /docs), {db.version}", flush=True)
    uvicorn.Server(config).run(sockets=[listener])


def _replay(args: argparse.Namespace) -> int:
    replay_server.run(replay_options.config_from(args, os.environ.get("POLYGON_API_KEY")))
    return DONE


def _demo(_: argparse.Namespace) -> int:
    print(WARNING, flush=True)
    with replay_process() as provider:
        chosen = demo_settings(os.environ, provider)
        _log(chosen)
        with _listening(chosen) as (listener, address), database_url(chosen) as url:
            migrate(url, chosen.engine)
            now = utc_now()
            asked = Range(Timeframe.D1.floor(now - timedelta(days=chosen.backfill_days)), coverage.minute_floor(now))
            code = _run(_run_backfill(checked(url, chosen.engine), chosen, None, asked))
            if code == DONE:
                print(WARNING)
                print(f"Try {address}/api/candles/EURUSD?timeframe=1h", flush=True)
                _answer(checked(url, chosen.engine), chosen, listener, address)
    return code


def _load() -> Settings:
    chosen = settings.load()
    _log(chosen)
    return chosen


def _log(chosen: Settings) -> None:
    logging.basicConfig(
        level=chosen.log_level, stream=sys.stderr, format="%(asctime)s %(levelname)s %(name)s: %(message)s"
    )
    for chatty in ("httpx", "httpcore", "alembic", "asyncio", "uvicorn"):
        logging.getLogger(chatty).setLevel(max(logging.WARNING, logging.getLevelName(chosen.log_level)))


def _complain(what: object, code: int) -> int:
    print(f"candlewick: {what}", file=sys.stderr, flush=True)
    return code
