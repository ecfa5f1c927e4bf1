"""The command `candlewick`: reads the command line, calls what does the work, and turns errors into one line."""

import argparse
import asyncio
import atexit
import gc
import logging
import os
import signal
import sys
import time
from collections.abc import Sequence
from contextlib import AbstractContextManager, nullcontext
from datetime import timedelta
from typing import NoReturn

import psycopg

from service import __version__, coverage, ledger, settings, status, status_table
from service.backfill import backfill
from service.cli_range import asked_range
from service.db.connect import Database, database_url
from service.db.migrate import migrate
from service.db.preflight import aged, checked
from service.demo import WARNING, demo_environment, demo_settings, replay_process
from service.errors import CandlewickError, SettingsError, UsageError
from service.interruptible import INTERRUPTED, run
from service.progress import summarize, watcher
from service.ranges import Range
from service.replay import options as replay_options
from service.replay import server as replay_server
from service.server import answer, listening, worker_beside
from service.settings import Settings
from service.sync_now import sync_now
from service.timeframes import Timeframe, utc_now
from service.worker import work

DONE, FAILED, MISUSED = 0, 1, 2
POLITE = 10
"""How far the worker and an export step back behind those who answer, as `nice` counts."""


def main(argv: Sequence[str] | None = None) -> None:
    """Run one command and exit with its code: 0 done, 1 failed, 2 bad arguments or settings, 130 interrupted."""
    # A service manager's TERM ends everything that Ctrl-C ends: child processes, the embedded server.
    signal.signal(signal.SIGTERM, signal.default_int_handler)
    # Else the interpreter looks through everything for cycles before it ends, which takes a third of a second.
    atexit.register(gc.freeze)
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
    _add_range(one, " (default: BACKFILL_DAYS)")
    one.add_argument("--retry-unavailable", action="store_true", help="ask again for what the provider did not have")
    one.set_defaults(run=_backfill)

    one = commands.add_parser("export", help="write candles as Parquet files, by symbol and month")
    _add_range(one)
    one.add_argument("--timeframe", metavar="T", default="1m", help="1m (default), 5m, 1h, 1d, 1w and every multiple")
    one.add_argument(
        "--tz", metavar="ZONE", default="UTC", help="IANA zone in which days and hours are cut, and dates are meant"
    )
    one.add_argument(
        "--out", metavar="DIR", required=True, help="folder: DIR/symbol=EURUSD/month=2024-03/candles.parquet"
    )
    one.add_argument("--require-complete", action="store_true", help="leave out symbols of which something is missing")
    one.set_defaults(run=_export)

    one = commands.add_parser("sync", help="bring symbols up to now, once")
    one.add_argument("symbols", nargs="*", metavar="SYMBOL", help="default: all active ones")
    one.set_defaults(run=_sync)

    one = commands.add_parser("status", help="show how far every symbol is, and what is wrong")
    one.set_defaults(run=_status)

    one = commands.add_parser("worker", help="keep everything active up to date, day and night")
    one.add_argument("--while-stdin-is-open", action="store_true", help=argparse.SUPPRESS)
    one.set_defaults(run=_worker)

    one = commands.add_parser("serve", help="answer over HTTP, with a worker beside it (ENABLE_SYNC_SCHEDULER)")
    one.set_defaults(run=_serve)

    one = commands.add_parser("replay", help="imitate the provider: from files, or an invented market")
    replay_options.add_arguments(one)
    one.set_defaults(run=_replay)

    one = commands.add_parser("demo", help="everything at once on an invented market: nothing else is needed")
    one.set_defaults(run=_demo)
    return parser


def _add_range(one: argparse.ArgumentParser, otherwise: str = "") -> None:
    one.add_argument("symbols", nargs="*", metavar="SYMBOL", help="such as EURUSD BTCUSD")
    one.add_argument("--all", action="store_true", help="all active symbols")
    one.add_argument("--days", metavar="N", help=f"so many days back from now{otherwise}")
    one.add_argument("--from", dest="start", metavar="WHEN", help="start (inclusive): a date or ISO 8601, UTC")
    one.add_argument("--to", dest="end", metavar="WHEN", help="end (exclusive), written like --from; default now")


def _migrate(_: argparse.Namespace) -> int:
    chosen = _load()
    with database_url(chosen) as url:
        before, after = migrate(url, chosen.engine)
        aged(checked(url, chosen.engine), chosen)
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
        asked = asked_range(args, chosen, now, floor)
        return run(_run_backfill(db, chosen, args.symbols or None, asked, retry_unavailable=args.retry_unavailable))


async def _run_backfill(
    db: Database,
    chosen: Settings,
    symbols: Sequence[str] | None,
    asked: Range,
    *,
    retry_unavailable: bool = False,
) -> int:
    async with db:
        if symbols is not None:
            async with db.connection() as conn:
                symbols = await ledger.known(conn, symbols)
        with watcher() as display:
            summary = await backfill(db, chosen, symbols, asked, watcher=display, retry_unavailable=retry_unavailable)
    print(summarize(summary), flush=True)
    return FAILED if summary.failures else DONE


def _export(args: argparse.Namespace) -> int:
    from service import cli_export  # noqa: PLC0415 - it needs pyarrow, which takes time that other commands need not pay

    os.nice(POLITE)
    span, chosen = cli_export.check(args), _load()
    with database_url(chosen) as url:
        work = cli_export.run_export(checked(url, chosen.engine), chosen, args, span, utc_now)
        return run(work, "Stopped. Every file that was written is whole; the same command goes over all of them again.")


def _serve(_: argparse.Namespace) -> int:
    chosen = _load()
    with listening(chosen) as (listener, address), database_url(chosen) as url:
        db = aged(checked(url, chosen.engine), chosen)
        with _worker_if_wanted(chosen):
            answer(db, chosen, listener, address)
    return DONE


def _worker_if_wanted(chosen: Settings) -> AbstractContextManager[None]:
    if chosen.enable_sync_scheduler and chosen.polygon_api_key is not None:
        return worker_beside(os.environ)
    if chosen.enable_sync_scheduler:
        _say("POLYGON_API_KEY is not set: what is stored is served, and nothing is fetched.")
    return nullcontext()


def _worker(args: argparse.Namespace) -> int:
    # The schedule counts in local time without a zone: in a zone with summer time it would halt for an hour a year.
    os.environ["TZ"] = "UTC"
    time.tzset()
    os.nice(POLITE)
    chosen = _load()
    chosen.require_api_key()
    with database_url(chosen) as url:
        db = aged(checked(url, chosen.engine), chosen)
        return run(_run_worker(db, chosen, args.while_stdin_is_open), "" if args.while_stdin_is_open else "Stopped.")


async def _run_worker(db: Database, chosen: Settings, beside: bool) -> int:  # noqa: FBT001 - a flag of the command
    if beside:
        asyncio.get_running_loop().add_reader(sys.stdin.fileno(), _interrupt_at_the_end_of_stdin)
    async with db:
        await work(db, chosen)
    return DONE


def _interrupt_at_the_end_of_stdin() -> None:
    if not os.read(sys.stdin.fileno(), 4096):
        asyncio.get_running_loop().remove_reader(sys.stdin.fileno())
        os.kill(os.getpid(), signal.SIGTERM)


def _sync(args: argparse.Namespace) -> int:
    chosen = _load()
    chosen.require_api_key()
    with database_url(chosen) as url:
        return run(_run_sync(checked(url, chosen.engine), chosen, args.symbols or None))


async def _run_sync(db: Database, chosen: Settings, symbols: Sequence[str] | None) -> int:
    async with db:
        if symbols is not None:
            async with db.connection() as conn:
                symbols = await ledger.known(conn, symbols)
        done = await sync_now(db, chosen, symbols, say=_say)
    for symbol, reason in sorted(done.failures.items()):
        _say(f"FAILED {symbol}: {reason}")
    return FAILED if done.failures else DONE


def _status(_: argparse.Namespace) -> int:
    chosen = _load()
    with database_url(chosen) as url:
        return run(_run_status(checked(url, chosen.engine), chosen), told="")


async def _run_status(db: Database, chosen: Settings) -> int:
    now = utc_now()
    async with db, db.connection() as conn:
        overview = await status.overview(conn, db.engine, chosen, now)
        health = await status.health(conn, chosen, now)
        source = await ledger.source(conn)
    status_table.show(overview, health, source=source, keeps=db.engine.keeps(chosen.retention))
    return FAILED if health.reasons else DONE


def _replay(args: argparse.Namespace) -> int:
    replay_server.run(replay_options.config_from(args, os.environ.get("POLYGON_API_KEY")))
    return DONE


def _demo(_: argparse.Namespace) -> int:
    print(WARNING, flush=True)
    with replay_process() as provider:
        chosen = demo_settings(os.environ, provider)
        _log(chosen)
        with listening(chosen) as (listener, address), database_url(chosen) as url:
            migrate(url, chosen.engine)
            now = utc_now()
            asked = Range(Timeframe.D1.floor(now - timedelta(days=chosen.backfill_days)), coverage.minute_floor(now))
            code = run(_run_backfill(checked(url, chosen.engine), chosen, None, asked))
            if code == DONE:
                print(WARNING)
                print(f"Try {address}/api/candles/EURUSD?timeframe=1h", flush=True)
                with worker_beside(demo_environment(os.environ, chosen)):
                    answer(checked(url, chosen.engine), chosen, listener, address)
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


def _say(line: str) -> None:
    print(line, flush=True)


def _complain(what: object, code: int) -> int:
    print(f"candlewick: {what}", file=sys.stderr, flush=True)
    return code
