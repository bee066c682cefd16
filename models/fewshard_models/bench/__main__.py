"""`python -m fewshard_models.bench`: the kernel benchmark without the server package.

For GPU machines that have only torch and transformers. `make gpu-check` calls it; elsewhere use
`fewshard bench kernels`.
"""

import argparse
import shlex
import sys
from pathlib import Path

from fewshard_models.bench.grid import SIZES
from fewshard_models.bench.session import bench_kernels


def main() -> int:
    parser = argparse.ArgumentParser(
        prog="python -m fewshard_models.bench", description="Measure the expert layer."
    )
    parser.add_argument("--size", choices=SIZES, default="default")
    parser.add_argument("--device", choices=("auto", "cpu", "cuda"), default="auto")
    parser.add_argument("--out", type=Path, required=True, help="folder for kernels.json and kernels.md")
    parser.add_argument("--tune", action="store_true", help="first find the fastest tiles; writes tiles.json")
    args = parser.parse_args()
    command = shlex.join(["python", "-m", "fewshard_models.bench", *sys.argv[1:]])
    for path in bench_kernels(command, args.size, args.device, args.out, tunes=args.tune):
        print(path)
    return 0


if __name__ == "__main__":
    sys.exit(main())
