"""The HTTP API: one file a resource, errors of one shape."""
