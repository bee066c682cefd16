"""What a tier may say of its text recipes; the tiers themselves are in `sst2_tiers`.

The settings of every SST-2 recipe, tier by tier; the functions that follow them are in `sst2`.

How large the CIFAR-10 networks of each tier are, and how long they train; read by the recipes.
"""

from dataclasses import dataclass
from typing import Any, Literal

from fewshard_models.recipes.training_loop import FitSettings


@dataclass(frozen=True, slots=True)
class FineTuning:
    """Training of the pretrained encoder on the labels. `architecture`: the configuration to run with random
    weights where no encoder is given; None where one must be."""

    fit: FitSettings
    batch_size: int
    architecture: dict[str, Any] | None = None


@dataclass(frozen=True, slots=True)
class Teaching:
    """`num_teachers` fine-tuned encoders, different in seed alone, whose mean logits are imitated, and the
    first one's hidden states numbered `states` (0 the embeddings). They also answer `num_joined` texts joined
    of two training texts each (see `joined_texts`)."""

    tuning: FineTuning
    num_teachers: int = 1
    states: tuple[int, ...] = ()
    num_joined: int = 0


@dataclass(frozen=True, slots=True)
class Experts:
    """`count` experts of `size` units in each of `layers` (of the student; None for all).

    `start`: "split" the dense units among experts that share `num_shared` of them, or "upcycle" copies."""

    count: int
    size: int
    layers: tuple[int, ...] | None = None
    num_shared: int = 0
    start: Literal["split", "upcycle"] = "split"
    routing: Literal["token", "request"] = "token"
    dropout: float = 0.1


@dataclass(frozen=True, slots=True)
class Student:
    """A smaller model out of `source`: the first teacher, the pretrained encoder itself, or the checkpoint of
    the recipe this one starts from.

    `layers`: those of the source that are kept; `intermediate_size`: its units that each dense layer keeps;
    `vocabulary_size` and `embedding_size`: those of a trimmed, factorised vocabulary. None keeps all.
    `imitates`: the teacher's state that each layer is drawn to, weighted by `state_weight`; () for none.
    """

    fit: FitSettings
    batch_size: int
    source: Literal["teacher", "pretrained", "start"] = "teacher"
    layers: tuple[int, ...] | None = None
    intermediate_size: int | None = None
    vocabulary_size: int | None = None
    embedding_size: int | None = None
    experts: Experts | None = None
    imitates: tuple[int, ...] = ()
    state_weight: float = 1.0
    label_weight: float = 0.2
    temperature: float = 2.0


@dataclass(frozen=True, slots=True)
class TextRecipe:
    """`name` is the last part of the recipe's, and its phase's."""

    name: str
    teaching: Teaching
    student: Student


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


@dataclass(frozen=True, slots=True)
class ImageTier:
    """`stage_channels` and `block_channels` of the dense network; `epochs` from scratch, `static_epochs` of
    fine-tuning after pruning; shifts of up to `max_shift` pixels, a square of `cutout` pixels hidden;
    `static_share` and `dynamic_share`: MACs left, of the dense; `density`: weights RigL keeps, of the dense.
    """

    name: str
    stage_channels: tuple[int, ...]
    block_channels: tuple[int, ...]
    epochs: int
    static_epochs: int
    batch_size: int = 512
    learning_rate: float = 0.4
    static_learning_rate: float = 0.1
    max_shift: int = 2
    cutout: int = 0
    ema_decay: float = 0.99
    static_share: float = 0.5
    dynamic_share: float = 0.4
    density: float = 0.4
    round_to: int = 16


TINY = ImageTier("tiny", (64, 192, 256), (64, 128, 128), epochs=12, static_epochs=6)
SMALL = ImageTier(
    "small",
    (64, 256, 256),
    (64, 256, 256),
    epochs=40,
    static_epochs=20,
    max_shift=4,
    cutout=8,
    ema_decay=0.995,
)
PAPER = ImageTier(
    "paper",
    (128, 512, 512),
    (128, 512, 512),
    epochs=60,
    static_epochs=30,
    max_shift=4,
    cutout=12,
    ema_decay=0.995,
    density=0.25,
)
TIERS = {tier.name: tier for tier in (TINY, SMALL, PAPER)}
