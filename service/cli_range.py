"""Reads from the command line which range of the past is asked for."""

import argparse
import re
from datetime import UTC, datetime
from zoneinfo import ZoneInfo

from service import coverage
from service.errors import UsageError
from service.plan import days_back
from service.ranges import Range
from service.settings import Settings
from service.timeframes import EPOCH, Timeframe


def asked_range(
    args: argparse.Namespace, chosen: Settings, now: datetime, floor: datetime | None, zone: str = "UTC"
) -> Range:
    """The range on the command line, on whole minutes, at most up to now.

    zone: whose clocks a date or time without offset means, as in the API.
    """
    if args.days is not None and (args.start or args.end):
        raise UsageError("--days goes without --from and --to")
    if args.end and not args.start:
        raise UsageError("--to needs --from")
    if args.start:
        start = _when("--from", args.start, zone)
        end = min(_when("--to", args.end, zone) if args.end else now, now)
        if start >= end:
            raise UsageError(f"--from {args.start} does not lie before {args.end or 'now'}")
        return Range(coverage.minute_floor(start), min(Timeframe.M1.ceil(end), coverage.minute_floor(now)))
    most = (now - EPOCH).days
    if args.days is not None and not (re.fullmatch("[1-9][0-9]{0,4}", args.days) and int(args.days) <= most):
        raise UsageError(f"--days {args.days}: give a whole number from 1 to {most}")
    start = days_back(now, int(args.days) if args.days else None, chosen.backfill_days, floor)
    return Range(start, coverage.minute_floor(now))


def _when(option: str, text: str, zone: str) -> datetime:
    try:
        at = datetime.fromisoformat(text)
        at = (at.replace(tzinfo=ZoneInfo(zone)) if at.tzinfo is None else at).astimezone(UTC)
    except (ValueError, OverflowError):
        raise UsageError(f"{option} {text}: give a date (2024-01-31) or ISO 8601 (2024-01-31T09:30Z), {zone}") from None
    if at < EPOCH:
        raise UsageError(f"{option} {text}: there are no bars before {EPOCH:%Y}")
    return at
