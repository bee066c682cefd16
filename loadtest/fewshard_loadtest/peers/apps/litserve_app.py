"""LitServe with a text classifier and batching; runs in LitServe's own environment."""

import json
import os

import engine
import litserve

SETTINGS = json.loads(os.environ["PEER_SETTINGS"])


class Classifier(litserve.LitAPI):
    def setup(self, device):
        self.classifier = engine.load(SETTINGS)

    def decode_request(self, request):
        return request["text"]

    def batch(self, inputs):
        return list(inputs)

    def predict(self, texts):
        return self.classifier(texts)

    def unbatch(self, output):
        return output

    def encode_response(self, output):
        label, score = output
        return {"label": label, "score": score}


if __name__ == "__main__":
    api = Classifier(max_batch_size=SETTINGS["batch"], batch_timeout=SETTINGS["wait_ms"] / 1000)
    server = litserve.LitServer(api, accelerator="cpu", workers_per_device=SETTINGS["workers"] or 1)
    server.run(host="127.0.0.1", port=int(SETTINGS["port"]), generate_client_file=False, log_level="warning")
