"""Brings a database to the schema of this code, and tells when it is not there."""

import importlib.resources
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import psycopg
import sqlalchemy
from alembic.config import Config
from alembic.script import ScriptDirectory
from sqlalchemy.pool import NullPool

from alembic import command
from service.db.connect import check_engine, connect, database_url, engine_named
from service.errors import DatabaseError
from service.settings import Settings

MIGRATION_LOCK = 0x63616E646C67
"""Key of the advisory lock under which one process at a time migrates."""


def migrate(url: str, engine: str, revision: str = "head") -> tuple[str | None, str | None]:
    """Upgrade to a revision (`head`), or downgrade to `base`; at it already: nothing happens.

    Returns the revision before and after. Each run is one transaction: it works whole or not at all.
    Raises DatabaseError where the server lacks what the engine needs or was made for another engine.
    """
    with _prepared(url, engine) as conn:
        before = _current(conn)
        config = _config()
        with _sqlalchemy(url).connect() as connection:
            config.attributes.update(connection=connection, engine=engine)
            (command.downgrade if revision == "base" else command.upgrade)(config, revision)
            connection.commit()
        return before, _current(conn)


def check_schema(conn: psycopg.Connection[Any]) -> None:
    """Raise DatabaseError unless the database's schema is that of this code."""
    config = _config()
    current, head = _current(conn), ScriptDirectory.from_config(config).get_current_head()
    if current is None:
        raise DatabaseError("this database has no Candlewick schema yet: run `candlewick migrate`")
    _refuse_newer(config, current)
    if current != head:
        raise DatabaseError(
            f"this database's schema ({current}) is older than this Candlewick ({head}): run `candlewick migrate`"
        )


@contextmanager
def configured(settings: Settings) -> Iterator[tuple[sqlalchemy.Connection, str]]:
    """The configured database for the `alembic` command itself: a connection, and the engine's name."""
    with (
        database_url(settings) as url,
        _prepared(url, settings.engine),
        _sqlalchemy(url).connect() as connection,
    ):
        yield connection, settings.engine


@contextmanager
def _prepared(url: str, engine: str) -> Iterator[psycopg.Connection[Any]]:
    """Alone at it, in a database of this engine and of no newer schema, with all that the migrations build on."""
    with connect(url) as conn:
        conn.execute("SELECT pg_advisory_lock(%s)", (MIGRATION_LOCK,))
        check_engine(conn, engine)
        current = _current(conn)
        if current is not None:
            _refuse_newer(_config(), current)
        engine_named(engine).prepare(conn)
        conn.execute("CREATE SCHEMA IF NOT EXISTS market_data")
        yield conn


def _refuse_newer(config: Config, current: str) -> None:
    known = {script.revision for script in ScriptDirectory.from_config(config).walk_revisions()}
    if current not in known:
        raise DatabaseError(
            f"this database's schema ({current}) is newer than this Candlewick: install the newer release"
        )


def _current(conn: psycopg.Connection[Any]) -> str | None:
    if conn.execute("SELECT to_regclass('market_data.alembic_version')").fetchone() == (None,):
        return None
    row = conn.execute("SELECT version_num FROM market_data.alembic_version").fetchone()
    return row[0] if row else None


def _config() -> Config:
    config = Config()
    config.set_main_option("script_location", str(_scripts()).replace("%", "%%"))
    config.set_main_option("path_separator", "os")
    return config


def _scripts() -> Path:
    """The migrations: within the package when installed from a wheel, beside it in a checkout."""
    package = Path(str(importlib.resources.files("service")))
    return next(folder for folder in (package / "alembic", package.parent / "alembic") if folder.is_dir())


def _sqlalchemy(url: str) -> sqlalchemy.Engine:
    return sqlalchemy.create_engine("postgresql+psycopg://", creator=lambda: psycopg.connect(url), poolclass=NullPool)
