"""What a tier may say of its text recipes; the tiers themselves are in `sst2_tiers`."""

from dataclasses import dataclass
from typing import Any, Literal

from fewshard_models.recipes.fit import FitSettings


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
