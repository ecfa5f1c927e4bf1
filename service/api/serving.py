"""What every handler works with; made once by the composition root."""

from collections.abc import Callable
from datetime import datetime

from service.db.connect import Database
from service.settings import Settings


class Serving:
    """The database, the settings and the clock (aware UTC), and the source of the data once it is known."""

    def __init__(self, db: Database, settings: Settings, clock: Callable[[], datetime]) -> None:
        self.db = db
        self.settings = settings
        self.clock = clock
        self.source: str | None = None
        """As recorded in the database: polygon, replay:synthetic, replay:csv; None before the first bar."""
