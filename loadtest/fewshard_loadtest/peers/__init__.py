"""Fewshard beside other servers, the same checkpoint on the same machine: `fewshard bench server`."""
