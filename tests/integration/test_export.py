"""What an export leaves in its folder: every candle and no other, whole files only, and what is missing told."""

import asyncio
import fcntl
import json
import os
import pty
import re
import select
import shutil
import signal
import subprocess
import sys
import time
import tracemalloc
from collections.abc import Callable, Iterator
from contextlib import suppress
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any, LiteralString, NamedTuple

import polars as pl
import psutil
import psycopg
import pyarrow as pa
import pytest
from litestar.testing import TestClient
from psycopg import sql
from pyarrow import dataset, parquet

from service import catalogue
from service.api.app import create_app
from service.cli import main
from service.db.connect import Database
from service.db.migrate import migrate
from service.db.preflight import checked
from service.errors import UsageError
from service.ledger import want
from service.month_files import CannotWrite, MonthFiles, claimed, partition
from service.ranges import Range
from service.settings import load
from tests.integration.backfilling import command, environment, started
from tests.integration.marketdata import at, invent, minutes, only_active, put

FIRST, LAST = at("2023-09-10 00:00"), at("2024-04-05 00:00")
"""EURUSD has every minute from one to the other: 299,520 bars."""
NOW = at("2024-04-05 12:00")
SPRING = ("--from", "2024-02-20", "--to", "2024-04-01")
NAMES = ("ts", "open", "high", "low", "close", "volume", "vwap", "trades")
ODD = "A:B^C"
RELATIONS: dict[str, LiteralString] = {
    timeframe: f"SELECT ts, open, high, low, close, volume, vwap, trades FROM market_data.candles_{timeframe}"  # noqa: S608 - constants only
    " WHERE symbol = %s AND ts >= '2024-02-20' AND ts < '2024-04-01' ORDER BY ts"
    for timeframe in ("1m", "1h")
}


class Told(NamedTuple):
    """What a command said."""

    code: object
    out: str
    err: str


Export = Callable[..., Told]


@pytest.fixture(scope="module", params=["plain", pytest.param("timescaledb", marks=pytest.mark.timescaledb)])
def filled(request: pytest.FixtureRequest) -> Iterator[Database]:
    """A database that no test here changes.

    EURUSD: half a year of minutes. SPX500: one session, without volume. GBPUSD: asked for, and mostly not fetched.
    BTCUSD: asked for, no bar. ODD: a few minutes, and a name that no file can have.
    """
    server = request.getfixturevalue(f"{request.param}_server")
    name = f"candlewick_{os.getpid()}_export"
    server.admin.execute(sql.SQL("CREATE DATABASE {} TEMPLATE template0").format(sql.Identifier(name)))
    try:
        migrate(server.url(name), server.engine)
        asyncio.run(_fill(checked(server.url(name), server.engine)))
        yield checked(server.url(name), server.engine)
    finally:
        server.admin.execute(sql.SQL("DROP DATABASE {} WITH (FORCE)").format(sql.Identifier(name)))


async def _fill(db: Database) -> None:
    async with db, db.connection() as conn:
        await only_active(conn, "EURUSD", "GBPUSD")
        await catalogue.add(conn, "BRK.B", ODD)
        await catalogue.change(conn, ODD, active=False)
        await put(conn, db.engine, "EURUSD", FIRST, LAST, now=NOW)
        session = invent(minutes(at("2024-03-04 14:30"), at("2024-03-04 21:00")), volume=False)
        await put(conn, db.engine, "SPX500", at("2023-11-01 00:00"), at("2024-03-05 00:00"), now=NOW, bars=session)
        await want(conn, ["GBPUSD", "BTCUSD"], Range(at("2024-03-01 00:00"), LAST))
        for day in range(2, 20, 2):
            start = at(f"2024-03-{day:02} 00:00")
            await put(conn, db.engine, "GBPUSD", start, start + timedelta(hours=4), now=NOW)
        await put(conn, db.engine, ODD, at("2024-03-04 15:00"), at("2024-03-04 16:00"), now=NOW)
        await db.engine.refresh(conn, {}, NOW)


@pytest.fixture
def variables(filled: Database) -> dict[str, str]:
    """The variables of a command. There is no key among them."""
    return {"DATABASE_URL": filled.url, "ENGINE": filled.engine.name, "RETENTION_1M": "off"}


@pytest.fixture
def export(
    variables: dict[str, str], monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> Iterator[Export]:
    """Run `candlewick export` in this process."""
    before = signal.getsignal(signal.SIGTERM)

    def run(*words: str, out: Path | str = "out", **changes: str) -> Told:
        for name, text in (variables | changes).items():
            monkeypatch.setenv(name, text)
        with pytest.raises(SystemExit) as ended:
            main(["export", *words, "--out", str(out)])
        return Told(ended.value.code, *capsys.readouterr())

    yield run
    signal.signal(signal.SIGTERM, before)


def rows(url: str, query: LiteralString, *values: object) -> list[tuple[Any, ...]]:
    """What SQL says, its times in UTC."""
    with psycopg.connect(url, options="-c timezone=UTC") as conn:
        return conn.execute(query, values).fetchall()


def read(folder: Path, symbol: str) -> list[tuple[Any, ...]]:
    """What the files of a symbol hold, in the order of time, by pyarrow's dataset."""
    table = dataset.dataset(folder, partitioning="hive").to_table(filter=dataset.field("symbol") == symbol)
    table = table.select(NAMES).sort_by("ts")
    return list(zip(*(table[name].to_pylist() for name in NAMES), strict=True))


def files(folder: Path) -> dict[str, bytes]:
    """Everything in the folder."""
    return {str(path.relative_to(folder)): path.read_bytes() for path in sorted(folder.rglob("*")) if path.is_file()}


@pytest.mark.parametrize("timeframe", ["1m", "1h"])
def test_the_files_hold_the_relation_row_by_row(filled: Database, export: Export, timeframe: str) -> None:
    """Every value to the last bit, absent ones as nulls, cut at the months and at the range."""
    done = export("EURUSD", "SPX500", *SPRING, "--timeframe", timeframe)
    assert done.code == 0, done.err
    counts = {"1m": (59_040, 390), "1h": (984, 7)}[timeframe]
    for symbol, count in zip(("EURUSD", "SPX500"), counts, strict=True):
        wanted = rows(filled.url, RELATIONS[timeframe], symbol)
        assert len(wanted) == count
        assert read(Path("out"), symbol) == wanted
    assert list(files(Path("out"))) == [
        "symbol=EURUSD/month=2024-02/candles.parquet",
        "symbol=EURUSD/month=2024-03/candles.parquet",
        "symbol=SPX500/month=2024-03/candles.parquet",
    ]
    assert parquet.read_schema("out/symbol=EURUSD/month=2024-03/candles.parquet").names == [*NAMES, "final"]


def test_days_of_a_zone_lie_in_the_month_in_which_they_start_in_utc(filled: Database, export: Export) -> None:
    """Also where the clocks go forward, and where a day begins on the evening before in UTC."""
    for zone, first in (("America/New_York", "2024-03-01 05:00"), ("Asia/Tokyo", "2024-03-01 15:00")):
        out = Path(zone.replace("/", "-"))
        assert export("EURUSD", *SPRING, "--timeframe", "1d", "--tz", zone.lower(), out=out).code == 0
        wanted = rows(
            filled.url,
            "SELECT date_trunc('day', ts, %s) AS day, (array_agg(open ORDER BY ts))[1], max(high), min(low),"
            " (array_agg(close ORDER BY ts DESC))[1], sum(volume), sum(vwap * volume) / sum(volume),"
            " sum(trades)::bigint FROM market_data.candles_1m WHERE symbol = 'EURUSD' GROUP BY day"
            " HAVING min(ts) AT TIME ZONE %s >= '2024-02-20' AND min(ts) AT TIME ZONE %s < '2024-04-01'"
            " ORDER BY day",
            *(zone,) * 3,
        )
        found = read(out, "EURUSD")
        assert [row[:5] + row[7:] for row in found] == [row[:5] + row[7:] for row in wanted]
        assert [row[5:7] for row in found] == [pytest.approx(row[5:7], rel=1e-9) for row in wanted]
        march = parquet.read_table(out / "symbol=EURUSD/month=2024-03/candles.parquet")
        assert march["ts"][0].as_py() == at(first)


def test_arrow_polars_and_duckdb_read_the_folder_as_one_table(export: Export) -> None:
    """With symbol and month as columns; names that no file can have are whole again."""
    assert export("EURUSD", ODD.lower(), "--from", "2024-02-01", "--to", "2024-04-01").code == 0
    assert Path("out/symbol=A%3AB%5EC/month=2024-03/candles.parquet").is_file()
    wanted = [("A:B^C", "2024-03", 60), ("EURUSD", "2024-02", 41_760), ("EURUSD", "2024-03", 44_640)]
    table = dataset.dataset("out", partitioning="hive").to_table().group_by(["symbol", "month"])
    assert sorted(map(tuple, (row.values() for row in table.aggregate([("ts", "count")]).to_pylist()))) == wanted
    for lazy in (pl.scan_parquet("out/**/*.parquet", hive_partitioning=True), pl.scan_parquet("out")):
        assert sorted(lazy.group_by("symbol", "month").agg(pl.len()).collect().rows()) == wanted
    # In a process of its own: DuckDB complains at the end of one in which a command has run.
    query = "SELECT symbol, month, count(*) FROM 'out/*/*/*.parquet' GROUP BY ALL ORDER BY ALL"
    program = f"import duckdb; print(duckdb.sql({query!r}).fetchall())"
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True)
    assert done.stdout == f"{wanted}\n"


def test_a_file_says_what_the_api_says_of_the_same_range(
    filled: Database, variables: dict[str, str], export: Export
) -> None:
    """Source, range, completeness, the settled edge and what is missing, for the file's own part of the range."""
    assert export("EURUSD", "GBPUSD", *SPRING, "--timeframe", "1h", "--tz", "Europe/London").code == 0
    asked = {"EURUSD/month=2024-02": ("2024-02-20", "2024-03-01T00:00Z")}
    asked |= {f"{symbol}/month=2024-03": ("2024-03-01T00:00Z", "2024-04-01") for symbol in ("EURUSD", "GBPUSD")}
    with TestClient(create_app(filled, load(variables, None))) as client:
        for place, (start, end) in asked.items():
            own = {"timeframe": "1h", "tz": "Europe/London", "format": "parquet", "from": start, "to": end}
            answer = client.get(f"/api/candles/{place.partition('/')[0]}", params=own)
            served = parquet.read_table(pa.BufferReader(answer.content))
            written = parquet.read_table(f"out/symbol={place}/candles.parquet", partitioning=None)
            told = (json.loads(table.schema.metadata[b"candlewick"]) for table in (served, written))
            assert next(told) == next(told)
            assert written.schema.metadata[b"symbols"] == served.schema.metadata[b"symbols"]
            assert served.drop_columns("symbol").equals(written)


def test_a_repeated_export_writes_the_same_bytes_anew(export: Export) -> None:
    """Another file in the place of each."""
    first = export("EURUSD", *SPRING)
    before, path = files(Path("out")), Path("out/symbol=EURUSD/month=2024-03/candles.parquet")
    inode = path.stat().st_ino
    second = export("EURUSD", *SPRING)
    assert (first.code, second.code, first.out.count("\n")) == (0, 0, 3)
    assert files(Path("out")) == before
    assert path.stat().st_ino != inode


def test_plain_lines_tell_the_plan_first_and_the_sum_last(export: Export) -> None:
    """One line a symbol between them; all active symbols where none is named."""
    done = export("--all", *SPRING, "--timeframe", "4h")
    plan, *middle, total, incomplete = done.out.splitlines()
    assert plan == "Export of 2 symbols, [2024-02-20 00:00, 2024-04-01 00:00) UTC, 4h candles, to out."
    assert middle == ["EURUSD: 246 candles in 2 files (1/2)", "GBPUSD: 9 candles in 1 file (2/2)"]
    assert re.fullmatch(r"Exported 2 symbols: 255 candles, 3 files, 0\.\d MB, \d+\.\d s\.", total)
    assert incomplete.startswith("INCOMPLETE GBPUSD: [2024-02-20 00:00, 2024-03-01 00:00) never requested, [2024-03-01")
    assert (done.code, done.err) == (0, "")


def test_what_is_missing_is_told_and_required_where_asked_for(export: Export) -> None:
    """A few ranges with their reasons; with --require-complete nothing of that symbol is touched, and the code is 1."""
    words = ("GBPUSD", "BTCUSD", "EURUSD", "--from", "2024-03-02", "--to", "2024-04-01")
    done = export(*words)
    assert done.code == 0
    total, pounds, coins = done.out.splitlines()[-3:]
    assert "3 symbols" in total
    assert pounds.startswith("INCOMPLETE GBPUSD: [2024-03-02 04:00, 2024-03-04 00:00) pending, [2024-03-04 04:00")
    assert pounds.endswith("[2024-03-10 04:00, 2024-03-12 00:00) pending, and 4 more.")
    assert coins == "INCOMPLETE BTCUSD: [2024-03-02 00:00, 2024-04-01 00:00) pending."
    inode = Path("out/symbol=GBPUSD/month=2024-03/candles.parquet").stat().st_ino
    strict = export(*words, "--require-complete")
    assert strict.code == 1
    assert strict.out.splitlines()[1:4] == [
        "GBPUSD: left out (1/3)",
        "BTCUSD: left out (2/3)",
        "EURUSD: 43,200 candles in 1 file (3/3)",
    ]
    assert "Exported 1 symbol: 43,200 candles, 1 file" in strict.out
    assert strict.out.count("; nothing of it was written.\n") == 2
    assert Path("out/symbol=GBPUSD/month=2024-03/candles.parquet").stat().st_ino == inode
    assert (
        export("GBPUSD", "--from", "2024-03-04", "--to", "2024-03-04T04:00", "--require-complete", out="new").code == 0
    )


def test_a_month_that_is_known_to_be_empty_has_no_file(export: Export) -> None:
    """An earlier one of the range goes; those of other months and symbols stay, and one of which nothing is known."""
    assert export("SPX500", "--from", "2024-03-01", "--to", "2024-04-01").code == 0
    for month in ("2023-10", "2023-12", "2024-02", "2024-04"):
        shutil.copytree("out/symbol=SPX500/month=2024-03", f"out/symbol=SPX500/month={month}")
    Path("out/symbol=SPX500/month=2023-12/notes.txt").touch()
    shutil.copytree("out/symbol=SPX500", "out/symbol=DAX40")
    told = "KEPT SPX500: 1 earlier file, 2023-10: the database does not have all that is in there."
    for start, kept in (("2023-11-10", False), ("2023-10-10", True)):
        done = export("SPX500", "--from", start, "--to", "2024-03-20")
        assert (done.code, told in done.out) == (0, kept)
        assert [path for path in files(Path("out")) if "SPX500" in path] == [
            "symbol=SPX500/month=2023-10/candles.parquet",
            "symbol=SPX500/month=2023-12/notes.txt",
            "symbol=SPX500/month=2024-03/candles.parquet",
            "symbol=SPX500/month=2024-04/candles.parquet",
        ]
    assert not Path("out/symbol=SPX500/month=2024-02").exists()
    assert len(list(Path("out/symbol=DAX40").iterdir())) == 5


def test_a_month_never_covers_less_than_before(export: Export) -> None:
    """Exported bit by bit, a month grows; completeness is required of what is asked for alone."""
    for start, end in (("2024-03-05", "2024-03-20"), ("2024-03-18", "2024-04-02"), ("2024-02-28", "2024-03-07")):
        assert export("EURUSD", "--from", start, "--to", end, "--require-complete").code == 0
    found = read(Path("out"), "EURUSD")
    assert (found[0][0], found[-1][0], len(found)) == (at("2024-02-28 00:00"), at("2024-04-01 23:59"), 34 * 1440)
    assert export("GBPUSD", "--from", "2024-03-02", "--to", "2024-03-03").code == 0
    again = export("GBPUSD", "--from", "2024-03-04", "--to", "2024-03-04T04:00", "--require-complete")
    assert (again.code, "INCOMPLETE" in again.out) == (0, False)
    assert len(read(Path("out"), "GBPUSD")) == 480


def test_a_file_of_candles_that_expired_is_kept(filled: Database, export: Export) -> None:
    """On TimescaleDB, which forgets: the folder may be the last place that has them. It is said."""
    words = ("EURUSD", "--from", "2024-01-20", "--to", "2024-04-01")
    assert export(*words).code == 0
    before, inode = files(Path("out")), Path("out/symbol=EURUSD/month=2024-03/candles.parquet").stat().st_ino
    days = (datetime.now(UTC) - at("2024-02-15 00:00")).days
    done = export(*words, RETENTION_1M=f"{days} days")
    assert done.code == 0
    assert files(Path("out")) == before
    assert Path("out/symbol=EURUSD/month=2024-03/candles.parquet").stat().st_ino != inode
    told = "KEPT EURUSD: 2 earlier files, 2024-01 to 2024-02: the database does not have all that is in there."
    assert (told in done.out, " expired" in done.out) == (filled.engine.name == "timescaledb",) * 2


@pytest.mark.parametrize(
    ("words", "told"),
    [
        (["--days", "3"], "name the symbols to export, or --all"),
        (["EURUSD", "--all", "--days", "3"], "name the symbols to export, or --all"),
        (["EURUSD"], "say which range: --from DATE (and --to DATE), or --days N"),
        (["EURUSD", "--to", "2024-01-01"], "--to needs --from"),
        (["EURUSD", "--days", "0"], "--days 0: give a whole number"),
        (["EURUSD", "--from", "2024-02-30"], "--from 2024-02-30: give a date"),
        (["EURUSD", "--from", "2024-03-02", "--to", "2024-03-01"], "--from 2024-03-02 does not lie before 2024-03-01"),
        (["EURUSB", "--days", "3"], "unknown symbol 'EURUSB'; nearest: EURUSD"),
        (
            ["EURUSD", "--days", "3", "--tz", "Europe/Berlim"],
            "--tz: unknown time zone 'Europe/Berlim': did you mean Europe/Berlin",
        ),
        (
            ["EURUSD", "--days", "3", "--timeframe", "7x"],
            "--timeframe: unknown timeframe '7x': give a whole number from 1",
        ),
        (["EURUSD", "--days", "3", "--timeframe", "0m"], "--timeframe: unknown timeframe '0m'"),
        (["EURUSD", "--days", "3", "--fill", "flat"], "unrecognized arguments: --fill flat"),
    ],
)
@pytest.mark.parametrize("filled", ["plain"], indirect=True)
def test_what_cannot_be_meant_is_told_in_one_line(export: Export, words: list[str], told: str) -> None:
    """Exit code 2, and no folder was made."""
    done = export(*words)
    assert (done.code, done.out, done.err.count("\n")) == (2, "", 1)
    assert told in done.err
    assert not Path("out").exists()


@pytest.mark.parametrize("filled", ["plain"], indirect=True)
def test_a_folder_that_cannot_be_used_is_told_in_one_line(export: Export, tmp_path: Path) -> None:
    """A file, below a file, not to be written to, of other candles, not of an export, or in use: exit code 2."""
    (tmp_path / "file").touch()
    (tmp_path / "alien/symbol=EURUSD/month=2024-03").mkdir(parents=True)
    (tmp_path / "alien/symbol=EURUSD/month=2024-03/candles.parquet").write_text("not Parquet")
    assert export("EURUSD", *SPRING, "--timeframe", "1d", out="days").code == 0
    before = files(Path("days"))
    for out, told in (
        ("", "--out: name a folder"),
        ("file", "--out file: is a file, not a folder"),
        ("file/below", "--out file/below: Not a directory"),
        ("/sys/candles", "--out /sys/candles: "),
        (
            "days",
            "--out days: holds 1d candles (UTC) of replay:csv, and these are 1m candles (UTC) of replay:csv: take an",
        ),
        ("alien", "alien/symbol=EURUSD/month=2024-03/candles.parquet was not made by an export: move it away"),
    ):
        done = export("EURUSD", *SPRING, out=out)
        assert (done.code, done.err.count("\n")) == (2, 1)
        assert done.err.startswith(f"candlewick: {told}")
    assert files(Path("days")) == before
    held = os.open("days", os.O_RDONLY)
    fcntl.flock(held, fcntl.LOCK_EX)
    done = export("EURUSD", *SPRING, "--timeframe", "1d", out="days")
    os.close(held)
    assert (done.code, done.err) == (2, "candlewick: --out days: another export is writing there; wait for its end\n")


@pytest.mark.parametrize("filled", ["plain"], indirect=True)
def test_a_full_disk_is_told_in_one_line(variables: dict[str, str]) -> None:
    """Exit code 1; the file that did not fit is not there."""
    limited = "import resource, sys; resource.setrlimit(resource.RLIMIT_FSIZE, (200_000, 200_000));"
    words = ["export", "EURUSD", "--from", "2024-02-28", "--to", "2024-04-01", "--out", "out"]
    program = f"{limited} from service.cli import main; main(sys.argv[1:])"
    done = subprocess.run(
        [sys.executable, "-c", program, *words],
        env=environment(**variables),
        capture_output=True,
        text=True,
        check=False,
    )
    path = "out/symbol=EURUSD/month=2024-03/candles.parquet"
    told = f"cannot write {path}: File too large; the files written so far are whole, the same command goes on\n"
    assert (done.returncode, done.stderr) == (1, f"candlewick: {told}")
    assert list(files(Path("out"))) == ["symbol=EURUSD/month=2024-02/candles.parquet"]


def test_a_file_is_replaced_at_one_stroke_or_not_at_all(tmp_path: Path) -> None:
    """What fails while it is written leaves the one before; what a killed one left goes with the next export."""
    month = MonthFiles(tmp_path, "EURUSD")
    month.put("2024-03", [b"before"])

    def broken() -> Iterator[bytes]:
        yield b"half"
        names = sorted(path.name for path in tmp_path.rglob("*") if path.is_file())
        assert names == [".candles.parquet.partial", "candles.parquet"]
        raise OSError(28, "No space left on device")

    with pytest.raises(CannotWrite, match="No space left on device"):
        month.put("2024-03", broken())
    assert files(tmp_path) == {"symbol=EURUSD/month=2024-03/candles.parquet": b"before"}
    (tmp_path / "symbol=EURUSD/month=2024-03/.candles.parquet.partial").touch()
    with claimed(tmp_path):
        assert list(files(tmp_path)) == ["symbol=EURUSD/month=2024-03/candles.parquet"]
        with pytest.raises(UsageError, match="another export is writing there"), claimed(tmp_path):
            pass
    assert partition("symbol", "^A=B/C%:.-_") == "symbol=%5EA%3DB%2FC%25%3A.-_"


def _wait_for_files(process: "subprocess.Popen[str]", count: int) -> None:
    while len(list(Path("out").glob("*/*/candles.parquet"))) < count:
        assert process.poll() is None, "it ended too soon"
        time.sleep(0.001)


@pytest.mark.parametrize(("number", "code"), [(signal.SIGKILL, -9), (signal.SIGINT, 130), (signal.SIGTERM, 130)])
def test_stopped_or_killed_in_the_middle_it_leaves_whole_files(
    variables: dict[str, str], export: Export, number: signal.Signals, code: int
) -> None:
    """Each with all candles of its month; the same command completes it and clears away what a killed one left."""
    words = ("EURUSD", "--from", "2023-09-10", "--to", "2024-04-05")
    for count in (1, 3):
        shutil.rmtree("out", ignore_errors=True)
        with started("export", *words, "--out", "out", env=environment(**variables)) as process:
            _wait_for_files(process, count)
            process.send_signal(number)
            assert process.wait(20) == code
            assert process.stdout is not None
            said = process.stdout.read()
        assert ("Stopped. Every file that was written is whole" in said) == (code == 130)
        whole = list(Path("out").glob("*/*/candles.parquet"))
        assert count <= len(whole) < 8
        for path in whole:
            month = path.parent.name.removeprefix("month=")
            start = max(at(f"{month}-01 00:00"), FIRST)
            end = min((at(f"{month}-01 00:00") + timedelta(days=32)).replace(day=1), LAST)
            assert parquet.read_metadata(path).num_rows == (end - start) // timedelta(minutes=1)
        (whole[0].parent / ".candles.parquet.partial").touch()
    assert export(*words).code == 0
    assert len(files(Path("out"))) == 8
    assert dataset.dataset("out", partitioning="hive").count_rows() == 299_520


def test_memory_stays_flat_however_long_the_range_is(variables: dict[str, str]) -> None:
    """Six times the bars cost the process little more: its allocators keep what a few months took."""

    def peak(start: str, bars: int) -> int:
        words = ["export", "EURUSD", "--from", start, "--to", "2024-04-05", "--out", f"from-{start}"]
        with started(*words, env=environment(**variables)) as process:
            child, most = psutil.Process(process.pid), 0
            while process.poll() is None:
                with suppress(psutil.Error):
                    most = max(most, child.memory_info().rss)
                time.sleep(0.002)
            assert process.stdout is not None
            assert f"EURUSD: {bars:,} candles" in process.stdout.read()
        return most

    short = peak("2024-03-01", 50_400)
    long = peak("2023-09-10", 299_520)
    assert long - short < 80e6, f"{short / 1e6:.0f} MB, {long / 1e6:.0f} MB"


def test_no_more_than_a_month_is_held(export: Export) -> None:
    """Arrays and bytes of Python's own: of six times the bars as much as of the last month; all would be 16 MB more."""
    peaks = []
    for start in ("2024-03-01", "2023-09-10"):
        tracemalloc.start()
        done = export("EURUSD", "--from", start, "--to", "2024-04-05", out=f"from-{start}")
        peaks.append(tracemalloc.get_traced_memory()[1])
        tracemalloc.stop()
        assert done.code == 0
    assert peaks[1] - peaks[0] < 8e6, peaks


@pytest.mark.parametrize("filled", ["plain"], indirect=True)
def test_on_a_terminal_each_symbol_has_a_bar(variables: dict[str, str]) -> None:
    """The plan stands above the bars, the sum below them."""
    env = environment(**variables, TERM="xterm-256color", COLUMNS="110", LINES="40")
    ours, theirs = pty.openpty()
    parts = []
    with started("export", "EURUSD", "SPX500", *SPRING, "--out", "out", env=env, output=theirs) as process:
        os.close(theirs)
        with suppress(OSError):  # its end
            while select.select([ours], [], [], 30)[0]:
                parts.append(os.read(ours, 65_536))
        assert process.wait(20) == 0
    os.close(ours)
    text = re.sub(r"\x1b\[[0-9;?]*[a-zA-Z]", "", b"".join(parts).decode()).replace("\r", "\n")
    assert text.startswith("Export of 2 symbols, [2024-02-20 00:00, 2024-04-01 00:00) UTC, 1m candles, to out.")
    assert re.search(r"EURUSD +━{20,} 2/2 +59,040 candles 0:00:\d\d", text)
    assert re.search(r"SPX500 +━{20,} 2/2 +390 candles 0:00:\d\d", text)
    assert re.search(r"Exported 2 symbols: 59,430 candles, 3 files, .* s\.\n+INCOMPLETE SPX500: ", text)


def test_no_other_command_waits_for_pyarrow() -> None:
    """It is imported by those that use it."""
    program = "import sys, service.cli; sys.exit('pyarrow' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", program], check=False).returncode == 0
    assert "--require-complete" in command("export", "--help", env=environment()).stdout


@pytest.mark.parametrize(
    ("given", "asked"),
    [
        (["OUT=lake", "DAYS=30"], 'export --all --days 30 --out "lake"'),
        (
            ["SYMBOL=EURUSD,BTCUSD", "FROM=2024-01-01", "TO=2024-02-01", "TIMEFRAME=1h", "OUT=my lake"],
            'export EURUSD BTCUSD --from "2024-01-01" --to "2024-02-01" --timeframe "1h" --out "my lake"',
        ),
    ],
)
def test_make_export_passes_on_what_it_is_given(repository: Path, given: list[str], asked: str) -> None:
    words = ["make", "--dry-run", "--old-file=.venv/.installed", "--directory", str(repository), "export", *given]
    said = subprocess.run(words, capture_output=True, text=True, check=True).stdout
    assert f"candlewick {asked})" in re.sub(r"[\s\\]+", " ", said)
