"""LitServe with a Hugging Face model and batching; runs in LitServe's own environment."""

import json
import os

import litserve
import torch
from transformers import AutoModelForSequenceClassification, AutoTokenizer

SETTINGS = json.loads(os.environ["PEER_SETTINGS"])


class Classifier(litserve.LitAPI):
    def setup(self, device):
        if SETTINGS["threads"]:
            torch.set_num_threads(SETTINGS["threads"])
        self.tokenizer = AutoTokenizer.from_pretrained(SETTINGS["model"])
        dtype = getattr(torch, SETTINGS["torch_dtype"])
        model = AutoModelForSequenceClassification.from_pretrained(SETTINGS["model"], dtype=dtype)
        self.model = model.to(device).eval()

    def decode_request(self, request):
        return request["text"]

    def batch(self, inputs):
        return list(inputs)

    def predict(self, texts):
        encoded = self.tokenizer(texts, padding=True, truncation=True, return_tensors="pt")
        with torch.inference_mode():
            logits = self.model(**encoded.to(self.model.device)).logits.float()
        scores, classes = logits.softmax(-1).max(-1)
        return list(zip(classes.tolist(), scores.tolist(), strict=True))

    def unbatch(self, output):
        return output

    def encode_response(self, output):
        label, score = output
        return {"label": self.model.config.id2label[label], "score": score}


if __name__ == "__main__":
    api = Classifier(max_batch_size=SETTINGS["batch"], batch_timeout=SETTINGS["wait_ms"] / 1000)
    server = litserve.LitServer(api, accelerator="cpu", workers_per_device=SETTINGS["workers"] or 1)
    server.run(host="127.0.0.1", port=int(SETTINGS["port"]), generate_client_file=False, log_level="warning")
