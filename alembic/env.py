"""Runs the migrations: on the connection that `candlewick migrate` hands over, else on the configured database."""

from sqlalchemy import Connection

from alembic import context
from service.db.schema import SCHEMA, metadata
from service.timeframes import AGGREGATED

DERIVED = {timeframe.table for timeframe in AGGREGATED}
"""Not for autogenerate: tables on one engine, continuous aggregates on the other."""


def run(connection: Connection) -> None:
    """Migrate on this connection; every upgrade is one transaction."""
    context.configure(
        connection=connection,
        target_metadata=metadata,
        version_table_schema=SCHEMA,
        include_schemas=True,
        include_name=lambda name, kind, _: kind != "schema" or name == SCHEMA,
        include_object=lambda _, name, kind, *__: kind != "table" or name not in DERIVED,
        compare_server_default=True,
    )
    with context.begin_transaction():
        context.run_migrations()


if (given := context.config.attributes.get("connection")) is not None:
    run(given)
else:
    from service.db.migrate import configured
    from service.settings import load

    with configured(load()) as (own, engine):
        context.config.attributes["engine"] = engine
        run(own)
        own.commit()
