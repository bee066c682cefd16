"""Thin shells of Ray Serve round plain classes; only `launch` is called from outside."""
