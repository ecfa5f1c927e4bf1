"""The instruments that are kept: which there are, and how one is added, switched on and off, or removed."""

import re
from collections.abc import Sequence
from datetime import UTC, datetime
from typing import Any, LiteralString, NoReturn, get_args

import msgspec
from psycopg import AsyncConnection

from service import ledger
from service.db.connect import WRITER_LOCK, as_range
from service.db.engines import Engine
from service.errors import UsageError
from service.instruments import AssetType
from service.ranges import Range
from service.timeframes import EPOCH

ASSET_TYPES: tuple[AssetType, ...] = get_args(AssetType)
TICKER_FORMS = ("C:EURUSD (forex)", "C:XAUUSD (metal)", "X:BTCUSD (crypto)", "I:SPX (index)", "AAPL or BRK.A (stock)")
_FORMS: tuple[tuple[AssetType, str], ...] = (
    ("forex", "C:(?P<base>[A-Z]{3})(?P<quote>[A-Z]{3})"),
    ("crypto", "X:(?P<coin>[A-Z0-9]{4,20})"),
    ("index", "I:(?P<index>[A-Z0-9][A-Z0-9._-]{0,19})"),
    ("stock", r"(?P<stock>[A-Z][A-Za-z0-9]{0,9}(\.[A-Za-z]{1,4})?)"),
)
TICKER_PATTERN = f"^({'|'.join(re.sub('[?]P<[a-z]+>', '', form) for _, form in _FORMS)})$"
"""What a ticker looks like, for documents."""
SYMBOL_FORM = "[A-Z0-9^][A-Z0-9.:_^-]{0,31}"
SYMBOL_WORDS = "1 to 32 of A-Z 0-9 . : _ - ^, beginning with a letter, a digit or ^"
LONGEST_NAME = 100
_ALWAYS = Range(EPOCH, datetime(9999, 1, 1, tzinfo=UTC))
"""What changes with a removal: also that there are no bars before the first one is known no more."""
_METALS = frozenset({"XAU", "XAG", "XPT", "XPD"})


class Listed(msgspec.Struct, frozen=True, kw_only=True):
    """An instrument, and from when to when it has bars. Instants are aware UTC."""

    symbol: str
    """Our key."""
    ticker: str
    """The provider's spelling."""
    name: str
    asset_type: AssetType
    active: bool
    """Whether it is to be kept up to date."""
    first_bar: datetime | None
    """Start of the first bar; None without any."""
    last_bar: datetime | None


class Conflict(UsageError):
    """What is asked for contradicts what is there; `allowed` names what would do."""

    def __init__(self, message: str, allowed: Sequence[str] = ()) -> None:
        super().__init__(message)
        self.allowed = tuple(allowed)


class BadInstrument(UsageError):
    """A ticker, symbol or name that cannot be; `allowed` lists what can."""

    def __init__(self, message: str, allowed: Sequence[str] = ()) -> None:
        super().__init__(message)
        self.allowed = tuple(allowed)


async def instruments(
    conn: AsyncConnection[Any], *, asset_type: str | None = None, active: bool | None = None
) -> list[Listed]:
    """All instruments by symbol, or those of one asset type, or only those switched on or off."""
    cursor = await conn.execute(_LIST, {"asset_type": asset_type, "active": active, "symbol": None}, binary=True)
    return [_listed(row) for row in await cursor.fetchall()]


async def instrument(conn: AsyncConnection[Any], symbol: str) -> Listed:
    """One instrument, its symbol in any case; UnknownSymbol with the nearest names."""
    parameters = {"asset_type": None, "active": None, "symbol": symbol.upper()}
    row = await (await conn.execute(_LIST, parameters, binary=True)).fetchone()
    if row is None:
        raise await ledger.unknown(conn, symbol)
    return _listed(row)


async def add(conn: AsyncConnection[Any], ticker: str, symbol: str | None = None, name: str | None = None) -> Listed:
    """A new instrument, switched on; a worker hears of it and begins with its history.

    Asset type and usual symbol follow from the ticker. Raises BadInstrument, and Conflict where the symbol or the
    ticker is taken.
    """
    asset_type, own = classify(ticker)
    chosen = (own if symbol is None else symbol).upper()
    if not re.fullmatch(SYMBOL_FORM, chosen):
        raise BadInstrument(f"symbol {chosen[:40]!r} cannot be used: give {SYMBOL_WORDS}")
    called = _usual_name(ticker, own) if name is None else _name(name)
    async with conn.transaction():
        cursor = await conn.execute(
            "INSERT INTO market_data.instruments (symbol, ticker, asset_type, name)"
            " VALUES (%(symbol)s, %(ticker)s, %(asset_type)s, %(name)s) ON CONFLICT DO NOTHING",
            {"symbol": chosen, "ticker": ticker, "asset_type": asset_type, "name": called},
        )
        if not cursor.rowcount:
            await _refuse_taken(conn, chosen, ticker)
        await conn.execute("INSERT INTO market_data.sync_state (symbol) VALUES (%s)", (chosen,))
        await ledger.call_worker(conn)
    return await instrument(conn, chosen)


async def change(
    conn: AsyncConnection[Any], symbol: str, *, active: bool | None = None, name: str | None = None
) -> Listed:
    """Switch an instrument on or off, or call it otherwise; what is None stays. Twice the same changes nothing.

    Switched off it keeps its bars and serves them; only what was asked for explicitly is still fetched. Switched on
    again it is caught up with. Raises UnknownSymbol and BadInstrument.
    """
    called = None if name is None else _name(name)
    async with conn.transaction():
        before = await _locked(conn, symbol)
        await conn.execute(
            "UPDATE market_data.instruments SET active = coalesce(%(active)s, active), name = coalesce(%(name)s, name)"
            " WHERE symbol = %(symbol)s",
            {"active": active, "name": called, "symbol": before.symbol},
        )
        if active is False:
            await conn.execute(
                "UPDATE market_data.sync_state"
                " SET tracked_from = NULL, tracked_since = NULL, asked_to = NULL, requested = '{}' WHERE symbol = %s",
                (before.symbol,),
            )
        elif active and not before.active:
            await conn.execute(
                "UPDATE market_data.sync_state SET next_attempt_at = NULL WHERE symbol = %s", (before.symbol,)
            )
            await ledger.call_worker(conn)
    return await instrument(conn, before.symbol)


async def remove(conn: AsyncConnection[Any], engine: Engine, symbol: str, *, purge: bool = False) -> None:
    """Forget an instrument. One transaction; what is fetched for it meanwhile is passed over.

    purge: with all its bars and candles, however old. Raises Conflict where it has bars and purge is false, and
    UnknownSymbol.
    """
    async with conn.transaction():
        one = await _locked(conn, symbol)
        if one.last_bar is not None and one.first_bar is not None:
            if not purge:
                raise Conflict(
                    f"{one.symbol} has bars from {one.first_bar:%Y-%m-%d} to {one.last_bar:%Y-%m-%d}: switch it off "
                    "instead, or delete it together with its bars by purge=true",
                    ["purge=true"],
                )
            await engine.purge(conn, one.symbol)
            await conn.execute("SELECT pg_advisory_xact_lock(%s)", (WRITER_LOCK,))
            await conn.execute(
                "INSERT INTO market_data.changes (symbol, range) VALUES (%s, %s)",
                (one.symbol, as_range(_ALWAYS)),
            )
        for statement in _FORGET:
            await conn.execute(statement, {"symbol": one.symbol})


def classify(ticker: str) -> tuple[AssetType, str]:
    """Asset type and usual symbol of a ticker in the provider's spelling; BadInstrument where it has no such form."""
    for asset_type, form in _FORMS:
        if found := re.fullmatch(form, ticker):
            own = "".join(found.groupdict().values()).upper()
            return ("commodity" if asset_type == "forex" and found["base"] in _METALS else asset_type), own
    why = "options are not kept" if ticker.startswith("O:") else "it has none of the forms of a ticker, case included"
    raise BadInstrument(f"{ticker[:40]!r} cannot be kept: {why}", TICKER_FORMS)


def _usual_name(ticker: str, own: str) -> str:
    return f"{own[:3]} / {own[3:]}" if ticker.startswith("C:") else own


def _name(text: str) -> str:
    name = " ".join(text.split())
    if not name or len(name) > LONGEST_NAME or not name.isprintable():
        raise BadInstrument(f"name {name[:40]!r} cannot be used: give 1 to {LONGEST_NAME} printable characters")
    return name


async def _refuse_taken(conn: AsyncConnection[Any], symbol: str, ticker: str) -> NoReturn:
    cursor = await conn.execute(
        "SELECT symbol, ticker, asset_type FROM market_data.instruments"
        " WHERE symbol = %(symbol)s OR ticker = %(ticker)s ORDER BY ticker = %(ticker)s DESC LIMIT 1",
        {"symbol": symbol, "ticker": ticker},
    )
    row = await cursor.fetchone()
    holder, its_ticker, asset_type = row or (symbol, ticker, "removed meanwhile")
    if its_ticker == ticker:
        raise Conflict(f"ticker {ticker} is kept already, as {holder} ({asset_type})", [holder])
    raise Conflict(
        f'symbol {symbol} is taken by {its_ticker} ({asset_type}): give another one for {ticker}, as "symbol"'
    )


async def _locked(conn: AsyncConnection[Any], symbol: str) -> Listed:
    """The instrument, held against whatever stores or asks for its bars until the transaction ends."""
    await conn.execute("SELECT FROM market_data.sync_state WHERE symbol = %s FOR UPDATE", (symbol.upper(),))
    return await instrument(conn, symbol)


def _listed(row: Sequence[Any]) -> Listed:
    return Listed(**dict(zip(Listed.__struct_fields__, row, strict=True)))


_LIST: LiteralString = """
    SELECT symbol, ticker, name, asset_type, active, first_bar, last_bar
    FROM market_data.instruments JOIN market_data.sync_state USING (symbol)
    WHERE (%(symbol)s::text IS NULL OR symbol = %(symbol)s)
        AND (%(asset_type)s::text IS NULL OR asset_type = %(asset_type)s)
        AND (%(active)s::boolean IS NULL OR active = %(active)s)
    ORDER BY symbol
"""
_FORGET: tuple[LiteralString, ...] = (
    (
        "DELETE FROM market_data.pending_refreshes AS p USING market_data.changes AS c"
        " WHERE c.id = p.change_id AND c.symbol = %(symbol)s"
    ),
    "DELETE FROM market_data.bar_revisions WHERE symbol = %(symbol)s",
    "DELETE FROM market_data.rejected_bars WHERE symbol = %(symbol)s",
    "DELETE FROM market_data.missed_bars WHERE symbol = %(symbol)s",
    "DELETE FROM market_data.instruments WHERE symbol = %(symbol)s",
)
