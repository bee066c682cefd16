"""Fewshard's load generator: speaks to servers over the network alone and imports nothing of theirs."""
