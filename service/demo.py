"""`candlewick demo`: the whole data path on an invented market, in a database of its own."""

import os
import subprocess
import sys
from collections.abc import Iterator, Mapping
from contextlib import contextmanager

from service import settings as setting
from service.errors import CandlewickError
from service.settings import Settings

WARNING = "DEMO: every price is invented (source replay:synthetic, header X-Data-Source); nothing here is real."
_PASSED_ON = ("HOST", "PORT", "BACKFILL_DAYS", "LOG_LEVEL")


def demo_settings(env: Mapping[str, str], provider_url: str) -> Settings:
    """Settings of the demo: the user's own HOST, PORT, BACKFILL_DAYS and LOG_LEVEL, and a neighbour of DATA_DIR.

    The database is always the embedded one in a folder of its own, so that invented bars never meet real ones.
    """
    usual = setting.load({name: env[name] for name in ("DATA_DIR",) if name in env}, None).data_dir
    own = {
        "DATA_DIR": str(usual.with_name(f"{usual.name}-demo")),
        "POLYGON_BASE_URL": provider_url,
        "POLYGON_API_KEY": "demo",
        "POLYGON_RATE_LIMIT": "unlimited",
    }
    return setting.load({**{name: env[name] for name in _PASSED_ON if name in env}, **own}, None)


def demo_environment(env: Mapping[str, str], chosen: Settings) -> dict[str, str]:
    """The environment in which a child process has the demo's settings, whatever `.env` says."""
    own = {
        "DATA_DIR": str(chosen.data_dir),
        "POLYGON_BASE_URL": chosen.polygon_base_url,
        "POLYGON_API_KEY": chosen.require_api_key(),
        "POLYGON_RATE_LIMIT": "unlimited",
    }
    unset = {one.name: "" for one in setting.SETTINGS}
    return {**env, **unset, **{name: env[name] for name in _PASSED_ON if name in env}, **own}


@contextmanager
def replay_process() -> Iterator[str]:
    """The replay server's synthetic market as a child process; yields its URL."""
    command = [sys.executable, "-P", "-m", "service", "replay", "--port", "0"]
    env = {name: text for name, text in os.environ.items() if name != "POLYGON_API_KEY"}
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True, env=env) as child:  # noqa: S603 - our own
        try:
            line = child.stdout.readline().strip() if child.stdout else ""
            if " on http://" not in line:
                raise CandlewickError(f"the replay server did not start: {line or 'it said nothing'}")
            yield line.rsplit(" ", 1)[-1]
        finally:
            child.terminate()
            try:
                child.wait(5)
            except subprocess.TimeoutExpired:
                child.kill()
