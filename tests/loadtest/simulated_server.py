"""A server of known service time, for the tests: one item after the other, each for its model's time.

Run as a program: `simulated_server.py PORT '{"dense": {"ms": 10}, …}'`. It speaks what a load test asks of a
server: `/classify`, `/config`, `/stats`, `/metrics` and liveness. It computes nothing, so the machine stays
free. A model may say `wrong` (share of wrong answers) and `trouble`, which begins with the third question for
its statistics: a load test asks for them before and after each run, so that is between the first run and the
second. "fail": predictions answer 500. "sick": the server is not live either. "die": it dies at the fourth.
"""

import asyncio
import json
import os
import sys

MODELS = json.loads(sys.argv[2])
LABELS = {"fine": "positive", "bad": "negative"}
HEAD = "HTTP/1.1 {} OK\r\nContent-Type: application/json\r\nContent-Length: {}\r\n\r\n"
busy_until = 0.0
late_ms: list[float] = []  # how late this process woke up, which a busy machine causes
asked = dict.fromkeys(MODELS, 0)
asked_for_stats = dict.fromkeys(MODELS, 0)


async def answer(path: str, body: bytes) -> tuple[int, bytes]:
    if path == "/v2/health/live":
        return 503 if any(has_trouble(name, "sick") for name in MODELS) else 200, b"{}"
    if path == "/late":
        return 200, json.dumps(sorted(late_ms)[int(0.99 * len(late_ms))]).encode()
    if path == "/metrics":
        return 200, metrics()
    name, verb = path.removeprefix("/v2/models/").split("/")
    if name not in MODELS:
        return 404, json.dumps({"error": f"no model named {name!r} is served here"}).encode()
    if verb == "config":
        return 200, json.dumps(config(name)).encode()
    if verb == "stats":
        return 200, json.dumps({"model_stats": [stats(name)]}).encode()
    return await classify(name, json.loads(body)["inputs"])


async def classify(name: str, inputs: str) -> tuple[int, bytes]:
    global busy_until
    model, loop = MODELS[name], asyncio.get_running_loop()
    asked[name] += 1
    if has_trouble(name, "fail", "sick"):
        return 500, b'{"error": "broken on purpose"}'
    busy_until = max(busy_until, loop.time()) + model["ms"] / 1000
    due = busy_until
    await asyncio.sleep(due - loop.time())
    late_ms.append(1000 * (loop.time() - due))
    is_wrong = hash_share(f"{name}{inputs}") < model.get("wrong", 0.0)
    label = "positive" if ("fine" in inputs) != is_wrong else "negative"
    return 200, json.dumps({"predictions": [[{"label": label, "score": 0.9}]]}).encode()


def hash_share(text: str) -> float:
    return int.from_bytes(text.encode()[-6:], "big") * 2654435761 % 2**32 / 2**32


def config(name: str) -> dict:
    card = {"macs": MODELS[name].get("macs", 100), "parameters_total": 10, "parameters_active": 10}
    kind = MODELS[name].get("kind", "dense")
    task = MODELS[name].get("task", "text")
    return {"name": name, "task": task, "kind": kind, "dtype": "fp32", "device": "cpu", "card": card}


def has_trouble(name: str, *kinds: str) -> bool:
    return MODELS[name].get("trouble") in kinds and asked_for_stats[name] >= 3


def stats(name: str) -> dict:
    asked_for_stats[name] += 1
    if has_trouble(name, "die") and asked_for_stats[name] == 4:
        os._exit(9)
    infer = {"count": asked[name], "ns": round(asked[name] * MODELS[name]["ms"] * 1e6)}
    return {
        "inference_count": asked[name],
        "execution_count": asked[name],
        "inference_stats": {"queue": infer},
        "batch_stats": [{"batch_size": 1, "compute_infer": infer}],
    }


def metrics() -> bytes:
    lines = ["# TYPE fewshard_expert_tokens_total counter"]
    lines += [
        f'fewshard_expert_tokens_total{{model="{name}",layer="0",expert="{expert}"}} '
        f"{asked[name] * (expert + 1)}"
        for name, model in MODELS.items()
        if model.get("kind") == "moe"
        for expert in range(3)
    ]
    return "\n".join([*lines, ""]).encode()


async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
    try:
        while head := await reader.readuntil(b"\r\n\r\n"):
            first, *fields = head.decode().split("\r\n")
            lengths = [f.split(":")[1] for f in fields if f.lower().startswith("content-length")]
            body = await reader.readexactly(int(lengths[0])) if lengths else b""
            status, content = await answer(first.split()[1], body)
            writer.write(HEAD.format(status, len(content)).encode() + content)
            await writer.drain()
    except (asyncio.IncompleteReadError, ConnectionError):
        pass
    finally:
        writer.close()


async def main() -> None:
    server = await asyncio.start_server(serve, "127.0.0.1", int(sys.argv[1]))
    async with server:
        await server.serve_forever()


asyncio.run(main())
