"""The settings of every SST-2 recipe, tier by tier; the functions that follow them are in `sst2`."""

from fewshard_models.recipes.fit import FitSettings
from fewshard_models.recipes.text_settings import Experts, FineTuning, Student, Teaching, TextRecipe

_TINY_TEACHING = Teaching(
    FineTuning(FitSettings(epochs=1, learning_rate=5e-5, max_grad_norm=1.0, ema_decay=0.995), batch_size=32),
    states=(2, 4, 6),
)
_TINY_FIT = FitSettings(epochs=5, learning_rate=2e-4, max_grad_norm=1.0, ema_decay=0.995)

TINY_DENSE = TextRecipe(
    "sst2-dense",
    _TINY_TEACHING,
    Student(
        _TINY_FIT,
        batch_size=64,
        layers=(0, 2, 4),
        intermediate_size=896,
        vocabulary_size=8192,
        embedding_size=80,
        imitates=(2, 4, 6),
    ),
)
TINY_MOE = TextRecipe(
    "sst2-moe",
    _TINY_TEACHING,
    Student(
        _TINY_FIT,
        batch_size=64,
        source="start",
        experts=Experts(4, size=208),
        imitates=(2, 4, 6),
    ),
)
TINY_NARROW = TextRecipe(
    "sst2-narrow",
    _TINY_TEACHING,
    Student(
        _TINY_FIT,
        batch_size=64,
        layers=(0, 2, 4),
        # The router's four products a token make two units.
        intermediate_size=210,
        vocabulary_size=8192,
        embedding_size=80,
        imitates=(2, 4, 6),
    ),
)

# Of a larger teacher, at any tier, where one is given.
LARGER_TUNING = FineTuning(
    FitSettings(epochs=1, learning_rate=4e-5, warmup=0.1, max_grad_norm=1.0, ema_decay=0.99), batch_size=64
)

SMALL_TUNING = FineTuning(
    FitSettings(epochs=2, learning_rate=1e-4, max_grad_norm=1.0, ema_decay=0.998),
    batch_size=64,
)
_SMALL_TEACHING = Teaching(SMALL_TUNING, num_teachers=3, states=(2, 4, 6), num_joined=30_000)

SMALL_DENSE = TextRecipe(
    "sst2-dense",
    _SMALL_TEACHING,
    Student(
        FitSettings(epochs=3, learning_rate=1e-4, max_grad_norm=1.0, ema_decay=0.998),
        batch_size=64,
        source="pretrained",
    ),
)
_SMALL_STUDENT_FIT = FitSettings(epochs=6, learning_rate=2e-4, max_grad_norm=1.0, ema_decay=0.998)
SMALL_NARROW = TextRecipe(
    "sst2-narrow",
    _SMALL_TEACHING,
    Student(_SMALL_STUDENT_FIT, batch_size=64, layers=(0, 2, 4), intermediate_size=1280, imitates=(2, 4, 6)),
)
# An expert layer costs a CPU some time a batch beside its products, so one has them. Its experts have as many
# units as the dense layer they come from, so each begins as a copy of it: experts that saw a quarter of the
# texts each from early on ended 1.5 points below the narrow model.
SMALL_MOE = TextRecipe(
    "sst2-moe",
    _SMALL_TEACHING,
    Student(
        FitSettings(epochs=3, learning_rate=1e-4, max_grad_norm=1.0, ema_decay=0.998),
        batch_size=64,
        source="start",
        experts=Experts(4, size=1280, layers=(1,), routing="request"),
        imitates=(2, 4, 6),
    ),
)

BERT_BASE = {
    "hidden_size": 768,
    "num_hidden_layers": 12,
    "num_attention_heads": 12,
    "intermediate_size": 3072,
    "type_vocab_size": 2,
    "pooling": "mean",
    "pooler_act": "tanh",
}
PAPER_DENSE = FineTuning(
    FitSettings(epochs=3, learning_rate=3e-5, max_grad_norm=1.0, ema_decay=0.998),
    batch_size=32,
    architecture=BERT_BASE,
)
PAPER_MOE = TextRecipe(
    "sst2-moe",
    Teaching(PAPER_DENSE, states=(2, 4, 6, 8, 10, 12)),
    Student(
        FitSettings(epochs=5, learning_rate=5e-5, max_grad_norm=1.0, ema_decay=0.998),
        batch_size=64,
        layers=(0, 2, 4, 6, 8, 10),
        experts=Experts(21, size=2304, num_shared=1536),
        imitates=(2, 4, 6, 8, 10, 12),
    ),
)
