"""A local server that speaks the provider's protocol, so that everything can be tried without a key or a network."""

from service.replay.app import Served
from service.replay.config import ReplayConfig
from service.replay.faults import FAULT_KINDS, HARMLESS, RANDOM_KINDS
from service.replay.options import add_arguments, config_from
from service.replay.server import ReplayServer, run, running

__all__ = [
    "FAULT_KINDS",
    "HARMLESS",
    "RANDOM_KINDS",
    "ReplayConfig",
    "ReplayServer",
    "Served",
    "add_arguments",
    "config_from",
    "run",
    "running",
]
