"""Python's garbage collector in a replica: what was imported and loaded is not looked at again.

By default every full collection walks through all objects of torch, transformers and Ray. They are rare
while requests come and go, but under overload thousands wait at once, outlive the young generations and
make full collections frequent: a third of the event loop's time went to them (docs/log.md).
"""

import gc

YOUNG_OBJECTS = 10_000
"""New objects between two collections; Python's own 700 are a handful of requests."""


def freeze_loaded() -> None:
    """Call once all is loaded. Objects keep being freed by their counts; only cycles among them stay."""
    gc.collect()
    gc.freeze()
    gc.set_threshold(YOUNG_OBJECTS, *gc.get_threshold()[1:])
