"""Runs a server of fake models as `fewshard serve` would; started by the tests as a process of its own."""

import json
import sys
from pathlib import Path

from pydantic import ValidationError

from fewshard_serve.config import FewshardConfig
from fewshard_serve.errors import ConfigError, StartError
from fewshard_serve.logs import write_line
from fewshard_serve.rayserve.launch import serve_until_signalled

if __name__ == "__main__":

    def read():
        """The file is written again for an update."""
        try:
            return FewshardConfig.model_validate(json.loads(Path(sys.argv[1]).read_text()))
        except ValidationError as error:
            raise ConfigError(str(error)) from None

    config = read()
    try:
        status = serve_until_signalled(
            config,
            on_ready=lambda: write_line("READY"),
            loader="fake_models:load_model",
            read_again=read,
        )
    except StartError as error:
        write_line(f"StartError: {error}")
        sys.exit(1)
    sys.exit(status)
