"""Whether a database can be worked with: what is wrong is said in one line before anything else happens."""

from service.db.connect import Database, check_engine, connect, engine_named
from service.db.migrate import check_schema
from service.settings import Settings


def checked(url: str, engine: str) -> Database:
    """The database, not yet opened, after it was reached and its engine and schema were found right.

    Raises DatabaseError: unreachable, refused, without the extension, of another engine, of another schema.
    """
    implementation = engine_named(engine)
    with connect(url) as conn:
        check_engine(conn, engine)
        check_schema(conn)
        return Database(url, implementation, implementation.verify(conn))


def aged(db: Database, settings: Settings) -> Database:
    """The same database, whose policies are what the settings ask for now."""
    with connect(db.url) as conn:
        db.engine.age(conn, settings.retention, settings.recheck_days)
    return db
