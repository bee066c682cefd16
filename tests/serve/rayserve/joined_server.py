"""A Ray that others join, until its standard input closes; run by test_joined_server with a folder.

It prints its address, and then, for each line of standard input, the applications that run on it as JSON.
"""

import json
import sys

from fewshard_serve.rayserve.environment import prepare_environment


def main() -> None:
    prepare_environment(sys.argv[1])
    import ray
    from ray import serve

    ray.init(
        address="local",
        num_cpus=4,
        include_dashboard=False,
        object_store_memory=128 * 2**20,
        _node_ip_address="127.0.0.1",
        log_to_driver=False,
    )
    print(ray.get_runtime_context().gcs_address, flush=True)
    for _ in sys.stdin:
        print(json.dumps(sorted(serve.status().applications)), flush=True)
    ray.shutdown()


if __name__ == "__main__":
    main()
