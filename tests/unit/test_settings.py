"""Settings: what is read, what is refused, and that nothing secret is ever shown."""

import pickle
from datetime import timedelta
from pathlib import Path
from typing import Any

import msgspec
import psycopg
import pytest
from hypothesis import given
from hypothesis import strategies as st
from psycopg.conninfo import conninfo_to_dict

from service.errors import SettingsError
from service.settings import SETTINGS, Settings, load
from service.timeframes import Timeframe

KEY = "k3y-that-must-not-show"
PASSWORD = "p@ss/w:rd#?% "


def read(**env: str) -> Settings:
    return load(env, env_file=None)


def refusal(**env: str) -> SettingsError:
    with pytest.raises(SettingsError) as caught:
        read(**env)
    assert "\n" not in str(caught.value)
    assert str(caught.value).startswith(f"{caught.value.variable}: ")
    return caught.value


def test_nothing_set_means_the_documented_defaults(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("os.geteuid", lambda: 0)
    settings = read()
    assert settings.polygon_api_key is None
    assert settings.polygon_base_url == "https://api.polygon.io"
    assert settings.polygon_rate_limit == 5
    assert settings.database_url is None
    assert settings.engine == "plain"
    assert settings.data_dir == Path("/var/lib/candlewick")
    assert settings.enable_sync_scheduler is True
    assert (settings.host, settings.port) == ("127.0.0.1", 8001)
    assert settings.cors_origins is None
    assert settings.retention == {Timeframe.M1: timedelta(days=1825)} | dict.fromkeys(list(Timeframe)[1:])
    assert (settings.settle_minutes, settings.recheck_days, settings.backfill_days) == (15, 30, 30)
    assert settings.lag_alert == timedelta(minutes=30)
    assert settings.log_level == "INFO"


def test_an_ordinary_users_data_are_in_the_users_data_folder(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("os.geteuid", lambda: 1000)
    assert read().data_dir.name == "candlewick"
    assert read().data_dir.is_absolute()


def test_a_folder_may_start_with_the_home_and_becomes_absolute(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("HOME", str(tmp_path))
    assert read(DATA_DIR="~/bars").data_dir == tmp_path / "bars"
    assert read(DATA_DIR="bars").data_dir == Path.cwd() / "bars"
    refusal(DATA_DIR="~nobody-of-this-name/bars")


@pytest.mark.parametrize(
    ("name", "good", "field", "value"),
    [
        ("POLYGON_BASE_URL", "https://api.massive.com/", "polygon_base_url", "https://api.massive.com"),
        (
            "POLYGON_BASE_URL",
            "https://proxy.example:8443/polygon/",
            "polygon_base_url",
            "https://proxy.example:8443/polygon",
        ),
        ("POLYGON_BASE_URL", "http://127.0.0.1:9000", "polygon_base_url", "http://127.0.0.1:9000"),
        ("POLYGON_BASE_URL", "http://[::1]:9000", "polygon_base_url", "http://[::1]:9000"),
        ("POLYGON_RATE_LIMIT", "unlimited", "polygon_rate_limit", None),
        ("POLYGON_RATE_LIMIT", "100", "polygon_rate_limit", 100),
        ("ENABLE_SYNC_SCHEDULER", "Off", "enable_sync_scheduler", False),
        ("ENABLE_SYNC_SCHEDULER", "1", "enable_sync_scheduler", True),
        ("PORT", "0", "port", 0),
        ("CORS_ORIGINS", "*", "cors_origins", ("*",)),
        ("CORS_ORIGINS", "https://Charts.example", "cors_origins", ("https://charts.example",)),
        (
            "CORS_ORIGINS",
            "https://charts.example, http://localhost:3000",
            "cors_origins",
            ("https://charts.example", "http://localhost:3000"),
        ),
        ("SETTLE_MINUTES", "0", "settle_minutes", 0),
        ("LAG_ALERT", "2 hours", "lag_alert", timedelta(hours=2)),
        ("LAG_ALERT", "1 Minute", "lag_alert", timedelta(minutes=1)),
        ("LOG_LEVEL", "debug", "log_level", "DEBUG"),
        ("HOST", "0.0.0.0", "host", "0.0.0.0"),  # noqa: S104 - a value like any other here
    ],
)
def test_a_good_value_is_taken(name: str, good: str, field: str, value: object) -> None:
    assert getattr(read(**{name: good}), field) == value


@pytest.mark.parametrize(
    ("name", "bad"),
    [
        ("POLYGON_API_KEY", "two words"),
        ("POLYGON_API_KEY", "clé"),
        ("POLYGON_BASE_URL", "api.polygon.io"),
        ("POLYGON_BASE_URL", "http://api.polygon.io"),
        ("POLYGON_BASE_URL", "http://127.0.0.1.example.org"),
        ("POLYGON_BASE_URL", "https://api.polygon.io/?apiKey=x"),
        ("POLYGON_BASE_URL", "https://user:pw@api.polygon.io"),
        ("POLYGON_BASE_URL", "https://api.polygon.io#x"),
        ("POLYGON_BASE_URL", "https://api.polygon.io:70000"),
        ("POLYGON_BASE_URL", "https://[::1"),
        ("POLYGON_BASE_URL", "ftp://api.polygon.io"),
        ("POLYGON_BASE_URL", "https://"),
        ("POLYGON_RATE_LIMIT", "0"),
        ("POLYGON_RATE_LIMIT", "-5"),
        ("POLYGON_RATE_LIMIT", "five"),
        ("POLYGON_RATE_LIMIT", "٥"),  # noqa: RUF001 - a digit to Python
        ("DATABASE_URL", "mysql://h/db"),
        ("DATABASE_URL", "localhost:5432/db"),
        ("DATABASE_URL", "postgresql://h/db?no_such_option=1"),
        ("DATABASE_URL", "postgresql://u:p w@h/db"),
        ("ENGINE", "oracle"),
        ("ENGINE", "timescaledb"),
        ("ENABLE_SYNC_SCHEDULER", "maybe"),
        ("PORT", "65536"),
        ("CORS_ORIGINS", "charts.example"),
        ("CORS_ORIGINS", "https://charts.example/"),
        ("CORS_ORIGINS", "https://charts.example/page"),
        ("CORS_ORIGINS", "https://charts.example:70000"),
        ("CORS_ORIGINS", "https://u:p@charts.example"),
        ("CORS_ORIGINS", "https://*.example"),
        ("CORS_ORIGINS", "*,https://charts.example"),
        ("CORS_ORIGINS", "https://charts.example,"),
        ("CORS_ORIGINS", "ftp://charts.example"),
        ("CORS_ORIGINS", "null"),
        ("PORT", "80.0"),
        ("HOST", "my host"),
        ("RETENTION_1M", "5"),
        ("RETENTION_1M", "0 days"),
        ("RETENTION_1M", "36 hours"),
        ("RETENTION_1M", "1000 years"),
        ("RETENTION_1M", "999999999999 years"),
        ("RETENTION_1M", "for ever"),
        ("RETENTION_1D", "-1 days"),
        ("SETTLE_MINUTES", "1441"),
        ("RECHECK_DAYS", "366"),
        ("BACKFILL_DAYS", "0"),
        ("LAG_ALERT", "off"),
        ("LAG_ALERT", "30"),
        ("LAG_ALERT", "30 seconds"),
        ("LOG_LEVEL", "LOUD"),
    ],
)
def test_a_wrong_value_is_refused_by_its_name(name: str, bad: str) -> None:
    assert refusal(**{name: bad}).variable == name


@given(name=st.sampled_from([setting.name for setting in SETTINGS]), text=st.text())
def test_no_text_does_worse_than_be_refused(name: str, text: str) -> None:
    try:
        settings = read(**{name: text})
    except SettingsError as exc:
        settings = None
        variable = exc.variable
    assert settings is not None or variable in {name, "DB_HOST"}


def test_a_refusal_says_what_the_setting_takes() -> None:
    assert str(refusal(PORT="many")) == (
        "PORT: 'many' is refused; it takes the port to serve on, 0 to 65535; 0 takes a free one"
    )


@pytest.mark.parametrize(
    ("text", "length"),
    [
        ("5 years", timedelta(days=1825)),
        ("90 days", timedelta(days=90)),
        ("18 months", timedelta(days=540)),
        ("2 weeks", timedelta(days=14)),
        ("48 hours", timedelta(days=2)),
        ("1day", timedelta(days=1)),
        ("OFF", None),
    ],
)
def test_retention_is_in_whole_days_with_months_of_30_and_years_of_365(text: str, length: timedelta | None) -> None:
    every = {f"RETENTION_{timeframe.value.upper()}": text for timeframe in Timeframe}
    assert read(**every).retention == dict.fromkeys(Timeframe, length)


def test_a_coarser_timeframe_may_not_be_kept_shorter_than_a_finer_one() -> None:
    short = refusal(RETENTION_1M="90 days", RETENTION_5M="1 year", RETENTION_15M="364 days")
    assert short.variable == "RETENTION_15M"
    assert "365 days" in str(short)
    assert refusal(RETENTION_5M="1 year").variable == "RETENTION_5M"
    assert refusal(RETENTION_1M="off", RETENTION_1D="10 years", RETENTION_4H="off").variable == "RETENTION_1D"


def test_an_empty_value_is_unset_and_hides_the_files(tmp_path: Path) -> None:
    file = tmp_path / ".env"
    file.write_text("PORT=9000\nHOST=10.0.0.1\nLOG_LEVEL=  \n")
    settings = load({"PORT": " ", "UNKNOWN": "1"}, env_file=file)
    assert (settings.port, settings.host, settings.log_level) == (8001, "10.0.0.1", "INFO")


def test_the_environment_wins_over_the_file() -> None:
    Path(".env").write_text('export PORT=9000 # comment\nDB_PASSWORD="a ${b} c"\nDB_HOST=db\n')
    assert load({"PORT": "9001"}).port == 9001
    assert load({}).port == 9000
    assert "a%20%24%7Bb%7D%20c" in str(load({}).database_url)


def test_the_real_environment_is_read_unless_another_is_given(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PORT", "9002")
    assert load().port == 9002


def test_a_broken_file_is_refused_with_its_line(tmp_path: Path) -> None:
    file = tmp_path / ".env"
    file.write_text("PORT=9000\nHOST='unclosed\n")
    with pytest.raises(SettingsError, match="line 2"):
        load({}, env_file=file)
    file.write_bytes(b"PORT=\xff\xfe")
    with pytest.raises(SettingsError, match="cannot be read"):
        load({}, env_file=file)


@pytest.mark.parametrize("scheme", ["postgres", "postgresql", "postgresql+psycopg"])
def test_a_database_url_may_have_any_usual_scheme(scheme: str) -> None:
    settings = read(DATABASE_URL=f"{scheme}://u:p@h:1/db?sslmode=require")
    assert settings.database_url == "postgresql://u:p@h:1/db?sslmode=require"
    assert settings.engine == "timescaledb"
    assert read(DATABASE_URL=f"{scheme}://h/db", ENGINE="plain").engine == "plain"


def parts(settings: Settings) -> dict[str, Any]:
    assert settings.database_url is not None
    return conninfo_to_dict(settings.database_url)


def test_a_host_alone_is_a_database() -> None:
    assert parts(read(DB_HOST="db")) == {
        "host": "db",
        "port": "5432",
        "dbname": "candlewick",
        "user": "candlewick",
    }


@pytest.mark.parametrize("host", ["db.example", "/var/run/postgresql", "::1", "one,two"])
def test_every_part_of_a_database_arrives_as_it_was_written(host: str) -> None:
    settings = read(DB_HOST=host, DB_PORT="5433", DB_NAME="a/b", DB_USER="me@x", DB_PASSWORD=f"x{PASSWORD}x")
    assert parts(settings) == {
        "host": host,
        "port": "5433",
        "dbname": "a/b",
        "user": "me@x",
        "password": f"x{PASSWORD}x",
    }


def test_two_ways_to_a_database_are_refused() -> None:
    assert refusal(DATABASE_URL="postgresql://h/db", DB_PASSWORD="x").variable == "DATABASE_URL"


def test_parts_of_a_database_without_a_host_are_refused() -> None:
    assert refusal(DB_NAME="bars").variable == "DB_HOST"


def test_no_secret_is_shown() -> None:
    settings = read(POLYGON_API_KEY=KEY, DATABASE_URL="postgresql://u:hush@h/db")
    assert settings.require_api_key() == KEY
    for shown in (repr(settings), str(settings), f"{settings.polygon_api_key}"):
        assert KEY not in shown
        assert "hush" not in shown
    for refused in (refusal(POLYGON_API_KEY=f"{KEY} x"), refusal(DATABASE_URL="postgresql://u:hush@h/db?x=1")):
        assert KEY not in str(refused)
        assert "hush" not in str(refused)
        assert refused.__cause__ is None


def test_a_secret_leaves_only_when_asked_for() -> None:
    settings = read(POLYGON_API_KEY=KEY)
    with pytest.raises(TypeError):
        msgspec.json.encode(settings)
    assert pickle.loads(pickle.dumps(settings)).require_api_key() == KEY  # noqa: S301 - to a process of our own


def test_a_missing_key_is_told_with_the_way_out() -> None:
    with pytest.raises(SettingsError, match=r"make demo") as caught:
        read().require_api_key()
    assert caught.value.variable == "POLYGON_API_KEY"


def test_the_url_is_one_that_the_driver_takes() -> None:
    with pytest.raises(psycopg.OperationalError):
        psycopg.connect(str(read(DB_HOST="127.0.0.1", DB_PORT="1", DB_PASSWORD="a b").database_url), connect_timeout=2)
