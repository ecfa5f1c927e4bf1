"""The README's examples are run as they stand, but for the port."""

import json
import os
import re
import shlex
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import httpx
import psycopg
import pytest

README = Path(__file__).parents[2] / "README.md"


def _block(heading: str, language: str) -> str:
    """The code block of this language below this heading."""
    section = README.read_text().split(f"\n## {heading}\n")[1].split("\n## ")[0]
    found = re.search(rf"```{language}\n(.*?)```", section, re.DOTALL)
    assert found is not None
    return found[1]


def _free_port() -> int:
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        port: int = taken.getsockname()[1]
        return port


@contextmanager
def _program(words: list[str], env: dict[str, str]) -> Iterator[str]:
    """A server of ours as a process; yields its first line."""
    with subprocess.Popen([sys.executable, "-m", "service", *words], env=env, stdout=subprocess.PIPE, text=True) as one:
        try:
            assert one.stdout is not None
            yield one.stdout.readline()
        finally:
            one.terminate()


def test_every_example_of_the_readme_works(database: str, engine: str, capsys: pytest.CaptureFixture[str]) -> None:
    """Command line, HTTP, SQL and Python, one after the other, as a newcomer would type them."""
    port = _free_port()
    env = os.environ | {"DATABASE_URL": database, "ENGINE": engine, "POLYGON_API_KEY": "key", "PORT": str(port)}
    env |= {"POLYGON_RATE_LIMIT": "unlimited", "ENABLE_SYNC_SCHEDULER": "false"}
    lines = [shlex.split(line)[1:] for line in _block("Command line", "sh").splitlines()]
    commands = [line for line in lines if line[0] in {"migrate", "backfill", "sync", "export", "status"}]
    assert [line[0] for line in lines if line not in commands] == ["serve", "worker", "replay"]
    with _program(["replay", "--port", "0"], env) as said:
        env["POLYGON_BASE_URL"] = said.split()[-1]
        for words in commands:
            done = subprocess.run(
                [sys.executable, "-m", "service", *words], env=env, capture_output=True, text=True, check=False
            )
            assert done.returncode == (1 if words == ["status"] else 0), done.stderr
            assert ("NOT WELL: no worker is running" in done.stdout) == (words == ["status"])
    with _program(["serve"], env) as said:
        assert f"127.0.0.1:{port}" in said
        _wait_for(port)
        _http(port)
        _sql(database)
        for heading in ("Python", "pandas, Polars, DuckDB", "Speak the provider's own calls"):
            exec(_block(heading, "python").replace("8001", str(port)), {})  # noqa: S102 - the README's own words
        _udf(port)
    assert re.search(r"^672 candles, the last closes at [0-9.]+$", capsys.readouterr().out, re.MULTILINE)


def _wait_for(port: int) -> None:
    deadline = time.monotonic() + 20
    while time.monotonic() < deadline:
        try:
            httpx.get(f"http://127.0.0.1:{port}/health").raise_for_status()
        except httpx.TransportError:
            time.sleep(0.1)
        else:
            return
    pytest.fail("the server does not answer")


def _http(port: int) -> None:
    urls = re.findall(r"'(http://[^']+)'", _block("HTTP", "sh"))
    found = [httpx.get(url.replace("8001", str(port))).raise_for_status() for url in urls]
    assert len(found[6].text.splitlines()) == 1 + 61  # two-hour candles of a week of forex
    answers = [one.json() for one in (*found[:6], found[7])]
    assert [len(answer.get("candles", [])) for answer in answers] == [3, 7, 100, 0, 3, 0, 0]
    assert [len(one["candles"]) for one in answers[5]["symbols"]] == [24, 24]
    assert [one["symbol"] for one in answers[6]["symbols"]] == ["BTCUSD", "EURUSD", "SPX500"]
    shown = json.loads(_block("HTTP", "json"))
    assert list(shown) == list(answers[1])
    assert list(shown["candles"][0]) == list(answers[1]["candles"][0])
    assert (shown["from"], shown["to"], shown["complete"], shown["missing"]) == tuple(
        answers[1][name] for name in ("from", "to", "complete", "missing")
    )


def _udf(port: int) -> None:
    urls = re.findall(r"'(http://[^']+)'", _block("TradingView charts", "sh"))
    answers = [httpx.get(url.replace("8001", str(port))).raise_for_status().json() for url in urls]
    assert answers[0]["session"] == "1700-1700"
    assert [one["symbol"] for one in answers[1]] == ["XAUUSD"]
    assert [len(one["t"]) for one in answers[2:]] == [5, 24]


def _sql(database: str) -> None:
    statements = _block("SQL", "sql").split(";\n")
    with psycopg.connect(database) as conn:
        counts = [len(conn.execute(one.encode()).fetchall()) for one in statements if one.strip()]
    assert counts[:2] == [121, 5]
    assert counts[2] <= 3
