"""The embedded server: made, shared, found again, stopped by the last to leave; and what is refused."""

import os
import pwd
import shutil
import signal
import stat
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import suppress
from pathlib import Path

import psutil
import psycopg
import pytest

from service.db import data_dir, embedded, programs
from service.db.embedded import start
from service.errors import DatabaseError

HOLD = """
import select
import sys
from pathlib import Path
from service.db.embedded import start
with start(Path(sys.argv[1])) as held:
    try:
        print(held.url, flush=True)
        while not select.select([sys.stdin], [], [], 0.1)[0]:
            pass
    except KeyboardInterrupt:
        import psycopg
        with psycopg.connect(held.url) as connection:
            print(connection.execute("SELECT 'still there'").fetchone()[0], flush=True)
"""
as_root = pytest.mark.skipif(os.geteuid() != 0, reason="about what root may do")


class Holder:
    """Another process that holds the server until told to leave."""

    def __init__(self, folder: Path) -> None:
        self.process = subprocess.Popen(
            [sys.executable, "-c", HOLD, str(folder)],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
            start_new_session=True,
        )

    def line(self) -> str:
        assert self.process.stdout is not None
        return self.process.stdout.readline().strip()

    def leave(self) -> None:
        self.process.communicate("", timeout=60)


@pytest.fixture(scope="session")
def stopped() -> Iterator[Path]:
    """A DATA_DIR whose server was stopped, to copy: much faster than to make one."""
    folder = Path(tempfile.mkdtemp(prefix="cw-"))
    folder.chmod(0o755)
    start(folder).close()
    yield folder
    shutil.rmtree(folder)


@pytest.fixture
def new(short_tmp: Path) -> Iterator[Path]:
    """A DATA_DIR not yet made; whatever server a test leaves in it is ended."""
    folder = short_tmp / "data"
    yield folder
    if (process := postmaster(folder)) is not None:
        kill(process)


@pytest.fixture
def folder(new: Path, stopped: Path) -> Path:
    """A DATA_DIR that was used before."""
    subprocess.run(["cp", "-a", stopped, new], check=True)  # noqa: S607 - keeps the owner, which shutil does not
    return new


@pytest.fixture
def hold(new: Path) -> Iterator[Callable[[], Holder]]:
    """Make holders of the folder's server; those still there after the test are killed."""
    holders: list[Holder] = []

    def make() -> Holder:
        holders.append(Holder(new))
        return holders[-1]

    yield make
    for holder in holders:
        with holder.process as process:
            process.kill()


def postmaster(folder: Path) -> psutil.Process | None:
    with suppress(FileNotFoundError, psutil.NoSuchProcess):
        process = psutil.Process(int((folder / "cluster" / "postmaster.pid").read_text().split()[0]))
        if str(folder / "cluster") in process.cmdline():
            return process
    return None


def running(folder: Path) -> psutil.Process:
    process = postmaster(folder)
    assert process is not None
    return process


def kill(server: psutil.Process) -> None:
    """As a crash would; its children end themselves."""
    processes = [server, *server.children()]
    server.kill()
    psutil.wait_procs(processes, 10)


def ask(url: str, query: str) -> object:
    with psycopg.connect(url) as connection:
        row = connection.execute(query.encode()).fetchone()
        return row[0] if row else None


def refusal(folder: Path) -> str:
    with pytest.raises(DatabaseError) as caught:
        start(folder)
    assert "\n" not in str(caught.value)
    return str(caught.value)


def test_a_new_folder_becomes_a_database_that_outlives_its_server(new: Path) -> None:
    with start(new) as held:
        assert ask(held.url, "SELECT current_database()") == "candlewick"
        for name, value in {"fsync": "on", "synchronous_commit": "on", "TimeZone": "UTC", "jit": "off"}.items():
            assert ask(held.url, f"SHOW {name}") == value
        assert ask(held.url, "SHOW max_wal_size") == "4GB"
        assert ask(held.url, "SHOW listen_addresses") == ""
        with psycopg.connect(held.url) as connection:
            connection.execute("CREATE TABLE kept AS SELECT 42 AS answer")
    assert postmaster(new) is None
    with start(new) as held:
        assert ask(held.url, "SELECT answer FROM kept") == 42
    held.close()
    assert postmaster(new) is None


def test_nobody_else_gets_in(folder: Path) -> None:
    with start(folder):
        assert stat.S_IMODE((folder / "cluster").stat().st_mode) == 0o700
        assert stat.S_IMODE((folder / "cluster" / ".s.PGSQL.5432").stat().st_mode) == 0o700
        assert running(folder).username() != "root"


def test_the_last_of_several_processes_stops_the_server(new: Path, hold: Callable[[], Holder]) -> None:
    first, second, third = hold(), hold(), hold()
    assert first.line() == second.line() == third.line() != ""
    pid = running(new).pid
    second.leave()
    first.leave()
    with start(new) as held:
        third.leave()
        assert running(new).pid == pid
        assert ask(held.url, "SELECT 1") == 1
    assert postmaster(new) is None


def test_one_process_may_hold_it_twice(folder: Path) -> None:
    with start(folder) as outer:
        with start(folder) as inner:
            assert inner.url == outer.url
        assert ask(outer.url, "SELECT 1") == 1
    assert postmaster(folder) is None


def test_a_server_whose_only_user_was_killed_is_found_again_and_stopped(
    folder: Path, hold: Callable[[], Holder]
) -> None:
    killed = hold()
    killed.line()
    pid = running(folder).pid
    killed.process.kill()
    killed.process.wait()
    assert running(folder).pid == pid
    with start(folder):
        assert running(folder).pid == pid
    assert postmaster(folder) is None


def test_a_killed_user_does_not_keep_the_server_up(folder: Path, hold: Callable[[], Holder]) -> None:
    killed, living = hold(), hold()
    killed.line()
    living.line()
    killed.process.kill()
    killed.process.wait()
    living.leave()
    assert postmaster(folder) is None


def test_a_killed_server_starts_again_with_its_data(folder: Path) -> None:
    with start(folder) as held:
        with psycopg.connect(held.url) as connection:
            connection.execute("CREATE TABLE kept AS SELECT 42 AS answer")
        kill(running(folder))
        with start(folder) as again:
            assert ask(again.url, "SELECT answer FROM kept") == 42


def test_a_pid_that_another_program_got_is_no_server(folder: Path) -> None:
    owner = (folder / "cluster").stat().st_uid
    file = folder / "cluster" / "postmaster.pid"
    user = owner if os.geteuid() == 0 else None
    with subprocess.Popen(["sleep", "60"], user=user) as stranger:  # noqa: S607 - any program will do
        file.write_text(f"{stranger.pid}\n{folder / 'cluster'}\n1700000000\n5432\n{folder / 'cluster'}\n\n\nready\n")
        with start(folder) as held:
            assert ask(held.url, "SELECT 1") == 1
        assert stranger.poll() is None
        stranger.kill()


def test_an_unreadable_pid_file_is_no_server(folder: Path) -> None:
    (folder / "cluster" / "postmaster.pid").write_text("")
    with start(folder) as held:
        assert ask(held.url, "SELECT 1") == 1


def test_ctrl_c_reaches_us_and_not_the_server(folder: Path, hold: Callable[[], Holder]) -> None:
    holder = hold()
    holder.line()
    server = running(folder)
    assert os.getpgid(server.pid) != os.getpgid(holder.process.pid)
    assert os.getsid(server.pid) != os.getsid(holder.process.pid)
    os.killpg(holder.process.pid, signal.SIGINT)
    assert holder.line() == "still there"
    holder.leave()
    assert postmaster(folder) is None


def test_ctrl_c_during_the_first_start_leaves_no_half_made_database(new: Path, hold: Callable[[], Holder]) -> None:
    interrupted = hold()
    while not [*new.glob("cluster.new-*/PG_VERSION")]:
        time.sleep(0.01)
    os.killpg(interrupted.process.pid, signal.SIGINT)
    interrupted.leave()
    assert interrupted.process.returncode != 0
    assert not (new / "cluster").exists()
    with start(new) as held:
        assert ask(held.url, "SELECT 1") == 1


def test_a_server_that_is_slow_to_recover_is_waited_for_and_left_at_work(
    folder: Path, hold: Callable[[], Holder], monkeypatch: pytest.MonkeyPatch
) -> None:
    holder = hold()
    holder.line()
    server = running(folder)
    server.suspend()
    monkeypatch.setattr(embedded, "START_SECONDS", 1)
    assert "try again in a minute" in refusal(folder)
    server.resume()
    holder.leave()
    assert postmaster(folder) is None


def test_a_path_too_long_for_a_socket_has_its_socket_elsewhere(short_tmp: Path) -> None:
    folder = short_tmp / ("x" * 90) / "a folder with ' and %41"
    with start(folder) as held:
        assert ask(held.url, "SELECT 1") == 1
        place = Path(str(ask(held.url, "SHOW unix_socket_directories")))
        assert place.parent == Path("/tmp")  # noqa: S108 - where the program puts it
        assert stat.S_IMODE(place.stat().st_mode) == 0o700
    place.chmod(0o755)
    assert "is not ours" in refusal(folder)
    shutil.rmtree(place)


def test_a_folder_with_other_things_is_left_alone(new: Path) -> None:
    new.mkdir()
    (new / "thesis.txt").write_text("mine")
    assert "thesis.txt" in refusal(new)
    assert [entry.name for entry in new.iterdir()] == ["thesis.txt"]
    (new / "thesis.txt").rename(new / "PG_VERSION")
    assert "PG_VERSION" in refusal(new)
    shutil.rmtree(new)
    (new / "cluster").mkdir(parents=True)
    assert "cluster" in refusal(new)


def test_another_version_of_postgresql_is_refused(folder: Path) -> None:
    (folder / "cluster" / "PG_VERSION").write_text("13\n")
    assert "was made by PostgreSQL 13" in refusal(folder)


def test_a_folder_that_cannot_be_made_is_refused(short_tmp: Path) -> None:
    (short_tmp / "file").write_text("")
    said = refusal(short_tmp / "file" / "data")
    assert "Not a directory" in said
    assert "choose a folder of your own" in said


def test_a_name_that_the_shell_would_read_is_refused(short_tmp: Path) -> None:
    assert "in its name" in refusal(short_tmp / "$(date)")


def test_a_failed_first_start_says_why_and_leaves_room_for_the_next(new: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with monkeypatch.context() as patch:
        patch.setitem(embedded.CONFIGURATION, "shared_buffers", "a lot")
        assert 'invalid value for parameter "shared_buffers"' in refusal(new)
    with start(new) as held:
        assert ask(held.url, "SELECT 1") == 1


def test_a_server_that_does_not_start_says_why(folder: Path) -> None:
    with (folder / "cluster" / "postgresql.conf").open("a") as conf:
        conf.write("no_such_setting = 1\n")
    assert "FATAL" in refusal(folder)
    assert postmaster(folder) is None


def test_a_server_that_does_not_stop_is_told(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    held = start(folder)
    server = running(folder)
    server.suspend()
    monkeypatch.setattr(embedded, "START_SECONDS", 1)
    with pytest.raises(DatabaseError, match="does not stop"):
        held.close()
    server.resume()
    server.wait(20)


def test_one_that_starts_for_ever_is_told(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(data_dir, "LOCK_SECONDS", 0.1)
    with data_dir.open_data_dir(folder).alone():
        assert "another process has been starting or stopping" in refusal(folder)


def test_a_wheel_without_postgresql_is_told(new: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(programs, "WHEEL", "no_such_package")
    assert "install it again" in refusal(new)


@as_root
def test_as_root_no_closed_folder_is_opened(short_tmp: Path) -> None:
    home = short_tmp / "home"
    home.mkdir(mode=0o700)
    said = refusal(home / "candlewick" / "data")
    assert str(home) in said
    assert "/var/lib/candlewick" in said
    assert stat.S_IMODE(home.stat().st_mode) == 0o700
    assert not (home / "candlewick").exists()


@as_root
def test_as_root_programs_out_of_reach_are_copied_and_nothing_is_opened(
    new: Path, short_tmp: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    closed = short_tmp / "venv"
    closed.mkdir(mode=0o700)
    found = programs.find(new / "cluster")
    package = found.bin.parent.parent
    shutil.copytree(found.bin.parent, closed / package.name / "pg", symlinks=True, ignore=programs.NEEDLESS)
    shutil.copytree(package.with_suffix(".libs"), closed / f"{package.name}.libs")
    mine = programs.Programs(bin=closed / package.name / "pg" / "bin", version=found.version)
    monkeypatch.setattr(programs, "find", lambda _: mine)
    for _ in range(2):
        with start(new) as held:
            assert ask(held.url, "SELECT 1") == 1
            assert running(new).cmdline()[0].startswith(str(new / "programs" / found.version))
    assert stat.S_IMODE(closed.stat().st_mode) == 0o700


@as_root
def test_as_root_a_folder_of_another_user_is_served_as_that_user(folder: Path) -> None:
    nobody = pwd.getpwnam("nobody")
    for path in (folder, *folder.rglob("*")):
        os.chown(path, nobody.pw_uid, nobody.pw_gid)
    with start(folder):
        assert running(folder).username() == "nobody"
        assert (folder / "users.lock").stat().st_uid == nobody.pw_uid
    os.chown(folder / "cluster", 0, 0)
    assert "belongs to root" in refusal(folder)


@as_root
def test_as_root_without_a_way_to_make_a_user_the_way_out_is_told(new: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(programs, "SYSTEM_USER", "no such user")
    said = refusal(new)
    assert "could not be made" in said
    assert "DATABASE_URL" in said
