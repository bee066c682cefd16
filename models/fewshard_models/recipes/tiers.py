"""Settings of all recipes by tier: SST-2 texts (used by `sst2`) and CIFAR-10 images (used by `cifar10`).

The dataclasses define what a tier can set; the constants are the tiers.
"""

from dataclasses import dataclass
from typing import Any, Literal

from fewshard_models.recipes.training_loop import FitSettings


@dataclass(frozen=True, slots=True)
class FineTuning:
    """Fine-tuning of the pretrained encoder on the labels.

    fit: training settings.
    batch_size: texts per step.
    architecture: configuration for a run with random weights if no encoder is given; None requires one.
    """

    fit: FitSettings
    batch_size: int
    architecture: dict[str, Any] | None = None


@dataclass(frozen=True, slots=True)
class Teaching:
    """The teachers of a distillation.

    tuning: fine-tuning of each teacher.
    num_teachers: number of teachers, which differ in seed only; the student imitates their mean logits.
    states: hidden states of the first teacher to imitate (0: the embeddings).
    num_joined: number of additional texts, each joined from two training texts (see `joined_texts`).
    """

    tuning: FineTuning
    num_teachers: int = 1
    states: tuple[int, ...] = ()
    num_joined: int = 0


@dataclass(frozen=True, slots=True)
class Experts:
    """The experts of a student.

    count: number of experts per layer.
    size: units of each expert.
    layers: layers of the student with experts; None for all.
    num_shared: units that all experts share ("split" only).
    start: "split" divides the dense units among the experts; "upcycle" copies them to each.
    routing: whether tokens or requests choose experts.
    dropout: expert dropout.
    """

    count: int
    size: int
    layers: tuple[int, ...] | None = None
    num_shared: int = 0
    start: Literal["split", "upcycle"] = "split"
    routing: Literal["token", "request"] = "token"
    dropout: float = 0.1


@dataclass(frozen=True, slots=True)
class Student:
    """A smaller model and its training.

    source: what it is cut from: the first teacher, the pretrained encoder, or the starting recipe's model.
    layers: layers of the source to keep; None keeps all.
    intermediate_size: units to keep in each dense layer; None keeps all.
    vocabulary_size, embedding_size: sizes of a trimmed and factorised vocabulary; None keeps all.
    experts: the experts, or None for a dense student.
    imitates: the teacher's state that each layer imitates; empty for none.
    state_weight, label_weight, temperature: parameters of `distillation_loss`.
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
    """A text recipe; `name` is the recipe's name without its tier, and the name of its phase."""

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
        # The router's four products per token cost as much as two units.
        intermediate_size=210,
        vocabulary_size=8192,
        embedding_size=80,
        imitates=(2, 4, 6),
    ),
)

# Fine-tuning of a larger teacher, for every tier.
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
# An expert layer costs a CPU some time per batch in addition to its products, so only one layer has experts.
# Its experts have as many units as the dense layer, so each begins as a copy of it: experts that each saw a
# quarter of the texts from early on ended 1.5 points below the narrow model.
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
    """Sizes and training of a tier's CIFAR-10 networks.

    stage_channels, block_channels: widths of the dense network.
    epochs, static_epochs: epochs from scratch, and of fine-tuning after pruning.
    max_shift, cutout: augmentation in pixels, as in `ImageBatches`.
    static_share, dynamic_share: MACs that remain, relative to the dense network.
    density: share of the dense network's weights that RigL keeps.
    round_to: multiple of which widths are.
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
