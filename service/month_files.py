"""Where an export's files lie, what they say of themselves, and how each gets there whole: written aside, then renamed.

The folder is partitioned as Hive does it: `symbol=EURUSD/month=2024-03/candles.parquet`.
"""

import errno
import fcntl
import os
import re
from collections.abc import Iterable, Iterator
from contextlib import contextmanager, suppress
from datetime import datetime, timedelta
from pathlib import Path
from urllib.parse import unquote

import msgspec
from pyarrow import parquet

from service.bars import from_ms, to_ms
from service.errors import CandlewickError, UsageError
from service.proof import Head
from service.ranges import Range
from service.spans import Span

FILE, PARTIAL = "candles.parquet", ".candles.parquet.partial"
_NO_NAME = re.compile(r"[\x00-\x1f\x7f\"#%'*/:=?\\{\[\]^]")
"""What Hive and Spark percent-encode in the name of a partition."""


class CannotWrite(CandlewickError):
    """A file could not be written: the disk is full, or the folder went away."""


class Gap(msgspec.Struct, frozen=True, kw_only=True):
    """A part of the range that is not there. Instants are Unix ms UTC."""

    start: int = msgspec.field(name="from")
    end: int = msgspec.field(name="to")
    reason: str


class Told(msgspec.Struct, frozen=True, kw_only=True, omit_defaults=True):
    """What a file says of its candles, in the words of the API's answers. Instants are Unix ms UTC."""

    symbol: str
    timeframe: str
    tz: str = "UTC"
    start: int = msgspec.field(name="from")
    end: int = msgspec.field(name="to")
    complete: bool
    settled_to: int | None
    missing: tuple[Gap, ...]

    @property
    def range(self) -> Range:
        """The range that it was made for."""
        return Range(from_ms(self.start), from_ms(self.end))


class About(msgspec.Struct, frozen=True, kw_only=True):
    """All of it, as it stands under `candlewick` in the file's metadata."""

    source: str | None
    symbols: tuple[Told, ...]


def about(head: Head) -> About:
    """What a file of these candles says."""
    gaps = [Gap(start=to_ms(one.range.start), end=to_ms(one.range.end), reason=one.reason) for one in head.missing]
    told = Told(
        symbol=head.symbol,
        timeframe=head.span.name,
        tz=head.span.zone,
        start=to_ms(head.asked.start),
        end=to_ms(head.asked.end),
        complete=head.complete,
        settled_to=None if head.settled_to is None else to_ms(head.settled_to),
        missing=tuple(gaps),
    )
    return About(source=head.state.source, symbols=(told,))


def month_of(at: datetime) -> str:
    """The month that holds an instant (aware UTC), as 2024-03."""
    return f"{at:%Y-%m}"


def range_of(month: str) -> Range:
    """The range of a month in UTC."""
    start = datetime.fromisoformat(f"{month}-01T00:00Z")
    return Range(start, (start + timedelta(days=32)).replace(day=1))


def partition(name: str, value: str) -> str:
    """Name of a partition's folder; what cannot stand in a file's name is percent-encoded."""
    return f"{name}={_NO_NAME.sub(lambda found: f'%{ord(found[0]):02X}', value)}"


@contextmanager
def claimed(out: Path) -> Iterator[None]:
    """Make the folder, and keep other exports out of it meanwhile; what a killed one left half written goes."""
    try:
        out.mkdir(parents=True, exist_ok=True)
        held = os.open(out, os.O_RDONLY | os.O_DIRECTORY)
    except OSError as exc:
        why = "is a file, not a folder" if out.is_file() else exc.strerror
        raise UsageError(f"--out {out}: {why}") from exc
    try:
        if not os.access(out, os.W_OK | os.X_OK):
            raise UsageError(f"--out {out}: cannot be written to")
        try:
            fcntl.flock(held, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError as exc:
            # Some network file systems lock no folder: there two exports are kept apart by their user.
            if exc.errno in {errno.EWOULDBLOCK, errno.EACCES}:
                raise UsageError(f"--out {out}: another export is writing there; wait for its end") from exc
        for partial in out.glob(f"symbol=*/month=*/{PARTIAL}"):
            partial.unlink(missing_ok=True)
        yield
    finally:
        os.close(held)


def refuse_mixture(out: Path, span: Span, source: str | None) -> None:
    """UsageError where the folder holds candles of another length, zone or source: its readers would take all of it."""
    for path in out.glob(f"symbol=*/month=*/{FILE}"):
        held = _read(path)
        told = held.symbols[0]
        kind, wanted = (told.timeframe, told.tz, held.source), (span.name, span.zone, source or held.source)
        if kind != wanted:
            there, here = (f"{timeframe} candles ({zone}) of {origin}" for timeframe, zone, origin in (kind, wanted))
            raise UsageError(f"--out {out}: holds {there}, and these are {here}: take another folder")
        return


class MonthFiles:
    """The files of one symbol."""

    def __init__(self, out: Path, symbol: str) -> None:
        self._folder = out / partition("symbol", symbol)

    def months(self) -> list[str]:
        """The months that have a file, ascending."""
        found = self._folder.glob(f"month=*/{FILE}")
        return sorted(unquote(path.parent.name.partition("=")[2]) for path in found)

    def told(self, month: str) -> Told | None:
        """What the month's file says of its candles; None where there is none."""
        path = self._path(month)
        return _read(path).symbols[0] if path.exists() else None

    def put(self, month: str, parts: Iterable[bytes]) -> int:
        """Write the month's file, or replace it by a whole one at one stroke; returns its size in bytes."""
        path = self._path(month)
        partial = path.with_name(PARTIAL)
        try:
            path.parent.mkdir(parents=True, exist_ok=True)
            with partial.open("wb") as file:
                file.writelines(parts)
                file.flush()
                os.fsync(file.fileno())
                size = file.tell()
            partial.replace(path)
        except OSError as exc:
            with suppress(OSError):
                partial.unlink(missing_ok=True)
            raise CannotWrite(
                f"cannot write {path}: {exc.strerror}; the files written so far are whole, the same command goes on"
            ) from exc
        return size

    def remove(self, month: str) -> None:
        """Remove the month's file, and its folder unless something else is in there."""
        path = self._path(month)
        try:
            path.unlink(missing_ok=True)
        except OSError as exc:
            raise CannotWrite(f"cannot remove {path}: {exc.strerror}") from exc
        with suppress(OSError):
            path.parent.rmdir()

    def _path(self, month: str) -> Path:
        return self._folder / partition("month", month) / FILE


def _read(path: Path) -> About:
    try:
        metadata = parquet.read_schema(path).metadata or {}
        return msgspec.json.decode(metadata[b"candlewick"], type=About)
    except (OSError, ValueError, KeyError, msgspec.MsgspecError) as exc:
        raise UsageError(f"{path} was not made by an export: move it away, or take another folder") from exc
