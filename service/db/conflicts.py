"""What a transaction may lose against another one; begun again it works."""

import psycopg

CONFLICTS = (
    psycopg.errors.LockNotAvailable,
    psycopg.errors.DeadlockDetected,
    psycopg.errors.SerializationFailure,
)
"""55P03, 40P01, 40001."""
