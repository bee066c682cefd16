"""schemathesis against our own OpenAPI document, on a port of this machine, for a bounded time."""

import json
import os
import re
import subprocess
import sys

import httpx
import pytest

CHECKS = (
    "not_a_server_error",
    "status_code_conformance",
    "content_type_conformance",
    "response_headers_conformance",
    "response_schema_conformance",
    "unsupported_method",
)
MAX_SECONDS = 1800


def with_models(document, names):
    """The document with the models there are, where any name may stand: else most answers were 404."""
    for path in document["paths"].values():
        for operation in path.values():
            for parameter in operation["parameters"]:
                if parameter["name"] == "model":
                    parameter["schema"] = {"enum": names}
    for schema in document["components"]["schemas"].values():
        if "model" in schema.get("properties", {}) and "Response" not in schema["title"]:
            schema["properties"]["model"] = {"enum": names}
            schema["required"] = [*schema.get("required", []), "model"]
    return document


def fuzz(address, folder, *more):
    """The exit code and what was printed."""
    document = with_models(httpx.get(f"http://{address}/openapi.json").json(), ["text", "image", "nobody"])
    file = folder / "openapi.json"
    file.write_text(json.dumps(document))
    command = [
        *(sys.executable, "-m", "schemathesis.cli", "run", str(file), "--url", f"http://{address}"),
        *("--checks", ",".join(CHECKS)),
        *("--phases", "examples,coverage,fuzzing"),
        *("--seed", "1", "--no-color", "--max-failures", "20", "--request-timeout", "20"),
        *more,
    ]
    env = {**os.environ, "NO_PROXY": "127.0.0.1", "PYTEST_DISABLE_PLUGIN_AUTOLOAD": "1"}
    done = subprocess.run(
        command, cwd=folder, capture_output=True, text=True, timeout=MAX_SECONDS, check=False, env=env
    )
    return done.returncode, done.stdout + done.stderr


@pytest.mark.slow
@pytest.mark.timeout(MAX_SECONDS + 60)
def test_schemathesis_finds_no_5xx_and_nothing_undocumented(address, tmp_path):
    assert address.startswith("127.0.0.1:")
    examples = os.environ.get("FEWSHARD_FUZZ_EXAMPLES", "50")
    status, output = fuzz(address, tmp_path, "--max-examples", examples)
    print(output)
    assert status == 0, output
    assert re.search(r"\d+ (passed|generated)", output), "it did run"
    answer = httpx.post(f"http://{address}/v2/models/text/classify", json={"inputs": "still there"})
    assert answer.status_code == 200
