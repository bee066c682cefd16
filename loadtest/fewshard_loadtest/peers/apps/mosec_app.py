"""mosec with a text classifier and dynamic batching; runs in mosec's own environment."""

import json
import os

import engine
from mosec import Server, Worker

SETTINGS = json.loads(os.environ["PEER_SETTINGS"])
BATCHING = (
    {}
    if SETTINGS["batch"] is None
    else {
        "num": SETTINGS["workers"],
        "max_batch_size": SETTINGS["batch"],
        "max_wait_time": int(SETTINGS["wait_ms"]),
        "timeout": 30,
    }
)


class Classifier(Worker):
    def __init__(self):
        self.classifier = engine.load(SETTINGS)

    def forward(self, data):
        """One request as shipped, a list of requests where it batches."""
        requests = data if isinstance(data, list) else [data]
        answers = [
            {"label": label, "score": score}
            for label, score in self.classifier([request["text"] for request in requests])
        ]
        return answers if isinstance(data, list) else answers[0]


if __name__ == "__main__":
    server = Server()
    server.append_worker(Classifier, **BATCHING)
    server.run()
