"""A Ray with its dashboard on the loopback address, for `serve deploy`; ends with its standard input.

Run by test_serve_deploy: `python ray_head.py WORK_DIR DASHBOARD_PORT`.
"""

import sys

from fewshard_serve.rayserve.environment import prepare_environment


def main() -> None:
    work_dir, port = sys.argv[1], int(sys.argv[2])
    prepare_environment(work_dir)
    import ray

    ray.init(
        address="local",
        num_cpus=4,
        include_dashboard=True,
        dashboard_host="127.0.0.1",
        dashboard_port=port,
        object_store_memory=128 * 2**20,
        _node_ip_address="127.0.0.1",
        log_to_driver=False,
    )
    print("READY", flush=True)
    sys.stdin.read()
    ray.shutdown()


if __name__ == "__main__":
    main()
