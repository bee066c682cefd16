"""What is loaded leaves the garbage collector's sight; in a process of its own, since that lasts."""

import subprocess
import sys

FROZEN = """
import gc, weakref
from fewshard_serve.rayserve.actor_process import YOUNG_OBJECTS, freeze_loaded

class Node:
    pass

loaded = Node()
loaded.itself = loaded
freeze_loaded()
assert not any(each is loaded for each in gc.get_objects()), "a collection would look at it again"
assert gc.isenabled() and gc.get_threshold()[0] == YOUNG_OBJECTS
later = Node()
later.itself = later
gone = weakref.ref(later)
del later
gc.collect()
assert gone() is None, "cycles made later are still collected"
"""


def test_what_is_loaded_is_not_looked_at_again():
    done = subprocess.run([sys.executable, "-c", FROZEN], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
