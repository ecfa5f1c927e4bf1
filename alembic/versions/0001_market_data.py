"""The schema market_data: instruments, bars, the five aggregates, the ledger and what is kept about changes

Revision ID: 0001
"""

from pathlib import Path

from alembic import context, op

revision = "0001"
down_revision = None

SQL = Path(__file__).parents[1] / "sql"


def run(name: str) -> None:
    """Execute a file of SQL statements, each ended by a semicolon at the end of its line."""
    for statement in (SQL / name).read_text().split(";\n"):
        if statement.strip():
            op.get_bind().exec_driver_sql(statement)


def upgrade() -> None:
    engine = context.config.attributes["engine"]
    op.execute("SET LOCAL lock_timeout = '10s'")
    run("0001_tables.sql")
    run(f"0001_aggregates_{engine}.sql")
    run("0001_seed.sql")
    op.get_bind().exec_driver_sql(
        "INSERT INTO market_data.installation (engine) VALUES (%(engine)s)", {"engine": engine}
    )


def downgrade() -> None:
    engine = context.config.attributes["engine"]
    op.execute("SET LOCAL lock_timeout = '10s'")
    run(f"0001_drop_aggregates_{engine}.sql")
    run("0001_drop_tables.sql")
