"""One model over several shards: a leader, its workers, and what happens when one of them dies.

Knows neither Ray nor HTTP; `backends.sharded_text` makes a `Classifier` of it, `rayserve.shards` starts
workers in Ray.
"""
