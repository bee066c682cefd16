"""Thin wrappers that run plain classes under Ray Serve. Other packages import only `launch`."""
