"""The command line of `candlewick replay`: what can be said there, and one line on what cannot be meant."""

import argparse
from collections.abc import Callable, Sequence
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from service.errors import UsageError
from service.replay.config import ReplayConfig
from service.replay.faults import FAULT_KINDS, RANDOM_KINDS, check

_Reader = Callable[[Any], Any]


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declare the options; their values stay texts until `config_from` reads them."""
    market = parser.add_argument_group("market")
    market.add_argument(
        "--bars",
        action="append",
        metavar="SYMBOL=CSV",
        help="serve this file (t,o,h,l,c,v, plain or .gz) instead of the synthetic market; may be repeated",
    )
    market.add_argument("--seed", metavar="N", help="which synthetic market (default 0)")
    market.add_argument("--now", metavar="ISO", help="pin the clock, UTC unless it names an offset")
    market.add_argument("--history-start", metavar="ISO", help="no bar before it exists")
    market.add_argument("--history-refused", action="store_true", help="refuse (403) what begins before it")
    market.add_argument("--bad-bar", action="append", metavar="SYMBOL@ISO", help="make this bar impossible for ever")
    server = parser.add_argument_group("server")
    server.add_argument("--host", help="address to listen on (default 127.0.0.1)")
    server.add_argument("--port", metavar="N", help="0, the default, takes any free port")
    server.add_argument("--latency", metavar="MS", help="milliseconds added to every answer")
    server.add_argument("--cache-mb", metavar="MB", help="bound of the cache of rendered days (default 400)")
    plan = parser.add_argument_group("plan")
    plan.add_argument("--rate-limit", metavar="N", help="calls a minute; more are refused with 429")
    plan.add_argument("--delay", metavar="MINUTES", help="hide what is newer, as a delayed plan does")
    plan.add_argument("--end-of-day", action="store_true", help="hide what is newer than New York's last midnight")
    plan.add_argument("--today-refused", action="store_true", help="refuse (403) what ends after that midnight")
    plan.add_argument("--deny", action="append", metavar="TICKER", help="refuse (403) this ticker or prefix, as I:")
    faults = parser.add_argument_group("faults")
    faults.add_argument("--fault-rate", metavar="SHARE", help="share of requests, 0 to 1, that go wrong")
    faults.add_argument("--fault-seed", metavar="N", help="which faults (default 0)")
    faults.add_argument("--fault-kinds", metavar="KIND,...", help=f"of {', '.join(FAULT_KINDS)}")
    faults.add_argument("--fault-delay", metavar="SECONDS", help="silence before a timeout hangs up (default 30)")


def config_from(args: argparse.Namespace, api_key: str | None) -> ReplayConfig:
    """Read the options; UsageError names the first that cannot be meant. An empty api_key accepts any key."""
    fields: dict[str, Any] = {"api_key": api_key or None}
    for option, (field, reader) in _READERS.items():
        given = getattr(args, option.replace("-", "_"))
        if given is not None:
            try:
                fields[field] = reader(given)
            except ValueError as exc:
                raise UsageError(f"--{option}: {exc}") from exc
    return ReplayConfig(**fields)


def _integer(least: int, most: int = 2**63) -> _Reader:
    def read(text: str) -> int:
        if not text.removeprefix("-").isdecimal() or not least <= int(text) <= most:
            raise ValueError(f"{text!r} is not a whole number from {least} to {most}")
        return int(text)

    return read


def _number(least: float, most: float) -> _Reader:
    def read(text: str) -> float:
        try:
            value = float(text)
        except ValueError:
            value = float("nan")
        if not least <= value <= most:
            raise ValueError(f"{text!r} is not a number from {least:g} to {most:g}")
        return value

    return read


def _time(text: str) -> datetime:
    try:
        at = datetime.fromisoformat(text)
    except ValueError:
        raise ValueError(f"{text!r} is not a time like 2024-01-02T10:00") from None
    return at.replace(tzinfo=UTC) if at.tzinfo is None else at.astimezone(UTC)


def _files(texts: Sequence[str]) -> dict[str, Path]:
    files: dict[str, Path] = {}
    for text in texts:
        symbol, _, path = text.partition("=")
        if not symbol or not path:
            raise ValueError(f"{text!r} is not SYMBOL=CSV")
        if symbol in files:
            raise ValueError(f"{symbol} is given twice")
        files[symbol] = Path(path)
    return files


def _bad_bars(texts: Sequence[str]) -> tuple[tuple[str, datetime], ...]:
    pairs = []
    for text in texts:
        symbol, _, minute = text.rpartition("@")
        if not symbol:
            raise ValueError(f"{text!r} is not SYMBOL@ISO")
        pairs.append((symbol, _time(minute)))
    return tuple(pairs)


def _kinds(text: str) -> tuple[str, ...]:
    kinds = tuple(part.strip() for part in text.split(",") if part.strip())
    for kind in kinds:
        check(kind)
    return kinds or RANDOM_KINDS


_READERS: dict[str, tuple[str, _Reader]] = {
    "bars": ("bars", _files),
    "seed": ("seed", _integer(0)),
    "now": ("now", _time),
    "history-start": ("history_start", _time),
    "history-refused": ("history_refused", bool),
    "bad-bar": ("bad_bars", _bad_bars),
    "host": ("host", str),
    "port": ("port", _integer(0, 65_535)),
    "latency": ("latency", _number(0, 600_000)),
    "cache-mb": ("cache_mb", _integer(0, 1_000_000)),
    "rate-limit": ("rate_limit", _integer(1)),
    "delay": ("delay", _integer(0, 5_000_000)),
    "end-of-day": ("end_of_day", bool),
    "today-refused": ("today_refused", bool),
    "deny": ("denied", tuple),
    "fault-rate": ("fault_rate", _number(0, 1)),
    "fault-seed": ("fault_seed", _integer(0)),
    "fault-kinds": ("fault_kinds", _kinds),
    "fault-delay": ("fault_delay", _number(0, 3600)),
}
"""Option -> the field of ReplayConfig and how to read it."""
