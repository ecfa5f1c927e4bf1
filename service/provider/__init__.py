"""The market-data provider (Polygon.io / Massive.com) over HTTP: the one place where bars enter from outside."""
