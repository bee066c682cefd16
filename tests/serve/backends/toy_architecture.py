"""An architecture in one file: what a stranger writes to have it loaded, served and evaluated."""

from pathlib import Path

import numpy as np
import torch
from transformers import AutoConfig, AutoModelForSequenceClassification, PreTrainedConfig, PreTrainedModel
from transformers.modeling_outputs import SequenceClassifierOutput

from fewshard_core.values import Item, ModelOutput, TextInput
from fewshard_models.checkpoint import save_checkpoint
from fewshard_models.classifier.network import TextClassifier
from fewshard_models.classifier.registry import register
from fewshard_models.errors import UnusableInput
from fewshard_serve.backends.load import load_model

__all__ = ["load_model", "make"]
LETTERS = "abcdefghijklmnopqrstuvwxyz"


class ToyConfig(PreTrainedConfig):
    model_type = "toy_letters"

    def count_macs(self, num_tokens):
        return len(LETTERS) * self.num_labels

    def describe_input(self, num_tokens):
        return "one text"


class ToyForSequenceClassification(PreTrainedModel):
    """A linear model of how often each letter occurs."""

    config_class = ToyConfig

    def __init__(self, config):
        super().__init__(config)
        self.head = torch.nn.Linear(len(LETTERS), config.num_labels)
        self.post_init()

    def forward(self, counts):
        return SequenceClassifierOutput(logits=self.head(counts))


AutoConfig.register("toy_letters", ToyConfig)
AutoModelForSequenceClassification.register(ToyConfig, ToyForSequenceClassification)


class Letters:
    def estimate(self, inputs):
        return len(inputs)

    def to_input(self, value):
        return TextInput(value)

    def from_card(self, stored):
        return TextInput(stored)

    def probe_inputs(self):
        return [TextInput("a"), TextInput("eerie banana")]

    def items(self, inputs, truncate):
        for index, one in enumerate(inputs):
            if not isinstance(one, TextInput):
                raise UnusableInput(index, "letters only")
        return [Item(np.array([one.text.count(x) for x in LETTERS], np.float32), 1) for one in inputs]


@register("ToyForSequenceClassification")
class ToyClassifier(TextClassifier):
    def __init__(self, checkpoint, info):
        super().__init__(checkpoint, info)
        self.preprocessor = Letters()

    def run(self, items):
        with torch.inference_mode():
            counts = torch.from_numpy(np.stack([item.features for item in items])).to(self.dtype)
            return ModelOutput(self.network(counts).logits.float().numpy())


def make(directory: Path) -> Path:
    """A checkpoint that says "many" where there are more e than a."""
    network = ToyForSequenceClassification(ToyConfig(id2label={0: "few", 1: "many"}))
    with torch.no_grad():
        network.head.weight.zero_()
        network.head.bias.zero_()
        network.head.weight[1, LETTERS.index("e")] = 1.0
        network.head.weight[1, LETTERS.index("a")] = -1.0
    save_checkpoint(network, directory)
    return directory
