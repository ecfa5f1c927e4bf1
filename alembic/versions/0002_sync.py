"""The sync service: what the worker keeps across restarts, says of itself, and is asked for

Revision ID: 0002
"""

from pathlib import Path

from alembic import op

revision = "0002"
down_revision = "0001"

SQL = Path(__file__).parents[1] / "sql"


def run(name: str) -> None:
    """Execute a file of SQL statements, each ended by a semicolon at the end of its line."""
    for statement in (SQL / name).read_text().split(";\n"):
        if statement.strip():
            op.get_bind().exec_driver_sql(statement)


def upgrade() -> None:
    op.execute("SET LOCAL lock_timeout = '10s'")
    run("0002_sync.sql")


def downgrade() -> None:
    op.execute("SET LOCAL lock_timeout = '10s'")
    run("0002_drop_sync.sql")
