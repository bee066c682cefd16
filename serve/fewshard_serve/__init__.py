"""Fewshard's server: Ray Serve deployments, HTTP, configuration, metrics and the `fewshard` command."""

__version__ = "0.1.0"

__all__ = ["__version__"]
