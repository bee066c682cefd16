"""Compares Fewshard with transformers on a tiny random checkpoint of every architecture.

`matrix` runs the comparisons, `text` makes those of texts, `report` writes the table.
"""
