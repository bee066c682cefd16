"""Runs a server of fake models as `fewshard serve` would; started by the tests as a process of its own."""

import json
import sys

from fewshard_serve.config import FewshardConfig
from fewshard_serve.errors import StartError
from fewshard_serve.rayserve.launch import serve_until_signalled

if __name__ == "__main__":
    config = FewshardConfig.model_validate(json.loads(sys.argv[1]))
    try:
        status = serve_until_signalled(
            config, on_ready=lambda: print("READY", flush=True), loader="fake_models:load_model"
        )
    except StartError as error:
        print(f"StartError: {error}", flush=True)
        sys.exit(1)
    sys.exit(status)
