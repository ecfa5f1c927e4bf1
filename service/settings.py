"""The settings: read once from the environment and `.env`, checked here and nowhere else."""

import os
from collections.abc import Callable, Mapping
from datetime import timedelta
from pathlib import Path
from typing import Any, Literal, NamedTuple
from urllib.parse import quote

import msgspec
import platformdirs
from dotenv.parser import parse_stream

from service import setting_values as read
from service.errors import SettingsError
from service.timeframes import AGGREGATED, Timeframe

EngineName = Literal["timescaledb", "plain"]

DATABASE_PARTS = ("DB_HOST", "DB_PORT", "DB_NAME", "DB_USER", "DB_PASSWORD")
DAYS = "`off` (for ever) or whole days: `90 days`, `18 months` (of 30 days), `5 years` (of 365)"


class Setting(NamedTuple):
    """One variable: what `.env.example`, the README's table and the error messages say of it."""

    name: str
    default: str
    """As it would stand in `.env`; empty where there is none, and `takes` says what that means."""
    takes: str
    read: Callable[[str], Any]
    """Raises ValueError where the text is not what `takes` says."""
    secret: bool = False


SETTINGS: tuple[Setting, ...] = (
    Setting(
        "POLYGON_API_KEY",
        "",
        "a Polygon.io / Massive.com key; none: only `candlewick demo` has data",
        read.word,
        secret=True,
    ),
    Setting(
        "POLYGON_BASE_URL",
        "https://api.polygon.io",
        "an https:// URL without a query (http:// only to this machine: the key travels with each call)",
        read.base_url,
    ),
    Setting("POLYGON_RATE_LIMIT", "5", "your plan's calls a minute, a whole number from 1, or `unlimited`", read.rate),
    Setting(
        "DATABASE_URL",
        "",
        "postgresql://user:password@host:port/name, special characters percent-encoded; none: DB_*, or else embedded",
        read.database_url,
        secret=True,
    ),
    Setting("DB_HOST", "", "instead of DATABASE_URL: the database's host, or the folder of its socket", read.word),
    Setting("DB_PORT", "5432", "its port, a whole number from 1 to 65535; needs DB_HOST", read.whole(1, 65535)),
    Setting("DB_NAME", "candlewick", "its name; needs DB_HOST", str),
    Setting("DB_USER", "candlewick", "its user; needs DB_HOST", str),
    Setting("DB_PASSWORD", "", "its user's password; needs DB_HOST", str, secret=True),
    Setting(
        "ENGINE",
        "",
        "timescaledb or plain; none: timescaledb where a database is given, plain for the embedded one",
        read.one_of("timescaledb", "plain"),
    ),
    Setting(
        "DATA_DIR",
        "",
        "the embedded database's own folder; none: candlewick in your user data folder, as root /var/lib/candlewick",
        read.folder,
    ),
    Setting("ENABLE_SYNC_SCHEDULER", "true", "whether `serve` keeps the bars up to date: true or false", read.switch),
    Setting("HOST", "127.0.0.1", "the address to serve on; 0.0.0.0 is every interface", read.word),
    Setting("PORT", "8001", "the port to serve on, 0 to 65535; 0 takes a free one", read.whole(0, 65535)),
    Setting(
        "CORS_ORIGINS",
        "",
        "origins of web pages that may read answers, with commas (https://charts.example), or `*` for all; none: none",
        read.origins,
    ),
    Setting("CACHE_MB", "256", "memory for answers that are sent again: 0 (none) to 65536 MB", read.whole(0, 65536)),
    Setting("RETENTION_1M", "5 years", f"how long bars are kept: {DAYS}", read.retention),
    *(
        Setting(
            f"RETENTION_{timeframe.value.upper()}",
            "off",
            f"the same for {timeframe.value} candles, never shorter than a finer timeframe: {DAYS}",
            read.retention,
        )
        for timeframe in AGGREGATED
    ),
    Setting("SETTLE_MINUTES", "15", "how long a bar may still be revised: 0 to 1440 minutes", read.whole(0, 1440)),
    Setting("RECHECK_DAYS", "30", "how far back bars are fetched anew once a day: 0 to 365 days", read.whole(0, 365)),
    Setting("BACKFILL_DAYS", "30", "the history that a new symbol starts with: 1 to 36500 days", read.whole(1, 36500)),
    Setting("LAG_ALERT", "30 minutes", "the lag that counts as late: `30 minutes`, `2 hours`, `1 day`", read.interval),
    Setting(
        "LOG_LEVEL",
        "INFO",
        "DEBUG, INFO, WARNING, ERROR or CRITICAL",
        read.one_of("DEBUG", "INFO", "WARNING", "ERROR", "CRITICAL"),
    ),
)
"""Every setting, in the order of `.env.example`."""


class Settings(msgspec.Struct, frozen=True, kw_only=True):
    """All settings, checked; made by `load`. A field without a comment is described under its name in `SETTINGS`."""

    polygon_api_key: read.Secret | None
    polygon_base_url: str
    polygon_rate_limit: int | None
    """Calls in any 60 seconds; None = unlimited."""
    database_url: str | None
    """A postgresql:// URL, made of DB_* too; it may hold a password: never log it. None = the embedded database."""
    engine: EngineName
    data_dir: Path
    enable_sync_scheduler: bool
    host: str
    port: int
    cors_origins: tuple[str, ...] | None
    cache_mb: int
    retention: Mapping[Timeframe, timedelta | None]
    """How long each timeframe is kept, never shorter than a finer one; None = for ever."""
    settle_minutes: int
    recheck_days: int
    backfill_days: int
    lag_alert: timedelta
    log_level: str

    def __repr__(self) -> str:
        shown = {name: repr(getattr(self, name)) for name in self.__struct_fields__}
        if self.database_url is not None:
            shown["database_url"] = "<secret>"
        return f"Settings({', '.join(f'{name}={text}' for name, text in shown.items())})"

    def require_api_key(self) -> str:
        """The provider's key; SettingsError where none is set."""
        if self.polygon_api_key is None:
            raise SettingsError(
                "POLYGON_API_KEY",
                "is not set: put POLYGON_API_KEY=<your key> into .env (a key, also a free one, is made in the "
                "dashboard of massive.com, formerly polygon.io), or run `make demo`, which needs none",
            )
        return self.polygon_api_key.reveal()


def load(env: Mapping[str, str] | None = None, env_file: Path | None = Path(".env")) -> Settings:
    """Read and check all settings.

    env: the real environment unless given; it wins over env_file (absent: no error; None: not read). An empty value
    means unset, also where it hides a value of the file. Other variables are ignored. SettingsError says what is wrong.
    """
    merged = {**_read_file(env_file), **(os.environ if env is None else env)}
    given = {setting.name: text for setting in SETTINGS if (text := merged.get(setting.name, "").strip())}
    values = {setting.name: _value(setting, given.get(setting.name)) for setting in SETTINGS}
    retention = {timeframe: values.pop(f"RETENTION_{timeframe.value.upper()}") for timeframe in Timeframe}
    _check_order(retention)
    url = _database(given, {name: values.pop(name) for name in ("DATABASE_URL", *DATABASE_PARTS)})
    usual: EngineName = "plain" if url is None else "timescaledb"
    engine: EngineName = values.pop("ENGINE") or usual
    if url is None and engine == "timescaledb":
        raise SettingsError("ENGINE", "timescaledb needs DATABASE_URL or DB_HOST: the embedded database is plain")
    key = values.pop("POLYGON_API_KEY")
    return Settings(
        polygon_api_key=read.Secret(key) if key else None,
        database_url=url,
        engine=engine,
        data_dir=values.pop("DATA_DIR") or _default_data_dir(),
        retention=retention,
        **{name.lower(): value for name, value in values.items()},
    )


def _read_file(path: Path | None) -> dict[str, str]:
    if path is None or not path.is_file():
        return {}
    try:
        with path.open(encoding="utf-8-sig") as lines:
            bindings = list(parse_stream(lines))
    except (OSError, UnicodeDecodeError) as exc:
        raise SettingsError(str(path), f"cannot be read: {exc}") from exc
    for binding in bindings:
        if binding.error:
            raise SettingsError(str(path), f"line {binding.original.line} is not of the form NAME=value")
    return {binding.key: binding.value or "" for binding in bindings if binding.key}


def _value(setting: Setting, text: str | None) -> Any:  # noqa: ANN401 - each setting has a type of its own
    chosen = text or setting.default
    try:
        return setting.read(chosen) if chosen else None
    except ValueError:
        shown = "what is set" if setting.secret else repr(text)
        raise SettingsError(setting.name, f"{shown} is refused; it takes {setting.takes}") from None


def _check_order(retention: Mapping[Timeframe, timedelta | None]) -> None:
    for timeframe in AGGREGATED:
        length = retention[timeframe]
        finer = timeframe.finer or Timeframe.M1
        least = retention[finer]
        if length is not None and (least is None or length < least):
            kept = "for ever" if least is None else f"for {least.days} days"
            raise SettingsError(
                f"RETENTION_{timeframe.value.upper()}",
                f"{length.days} days is too short: {finer.value} is kept {kept} (RETENTION_{finer.value.upper()}), and "
                "a coarser timeframe is kept at least as long as a finer one",
            )


def _database(given: Mapping[str, str], values: Mapping[str, Any]) -> str | None:
    parts = [name for name in DATABASE_PARTS if name in given]
    url: str | None = values["DATABASE_URL"]
    if url is not None and parts:
        raise SettingsError("DATABASE_URL", f"is set, and {parts[0]} as well: keep one of the two ways")
    if url is not None or not parts:
        return url
    if "DB_HOST" not in given:
        raise SettingsError(
            "DB_HOST", f"is not set, but {parts[0]} is: set DB_HOST, or no DB_* for the embedded database"
        )
    login = ":".join(quote(values[name], safe="") for name in ("DB_USER", "DB_PASSWORD") if values[name])
    # Host and port stand in the query: there a socket's folder, an IPv6 address and a list of hosts need no care.
    where = f"host={quote(values['DB_HOST'])}&port={values['DB_PORT']}"
    return f"postgresql://{login}@/{quote(values['DB_NAME'], safe='')}?{where}"


def _default_data_dir() -> Path:
    return Path("/var/lib/candlewick") if os.geteuid() == 0 else platformdirs.user_data_path("candlewick")
