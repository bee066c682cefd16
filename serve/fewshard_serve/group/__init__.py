"""One model split over several shards: a leader, its workers, and recovery when one of them dies.

The package depends on neither Ray nor HTTP. `backends.sharded_text` wraps a group as a `Classifier`;
`rayserve.shard_actors` starts workers in Ray.
"""
