"""Candlewick: a self-hosted store of one-minute market bars that can prove what it serves is complete."""

__version__ = "0.1.0"
