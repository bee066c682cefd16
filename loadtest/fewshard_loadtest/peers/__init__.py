"""Benchmark of Fewshard against other servers, same checkpoint, same machine: `fewshard bench server`."""
