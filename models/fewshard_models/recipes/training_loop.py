"""The training loop of every recipe: seeded, resumable, with a progress bar, in bf16 where that is faster."""

import json
import math
import time
from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Literal, Protocol

import torch
from torch import Tensor, nn
from torch.optim.swa_utils import AveragedModel, get_ema_multi_avg_fn
from tqdm import tqdm

from fewshard_models.devices import choose_dtype
from fewshard_models.errors import RecipeError
from fewshard_models.files import whole_file
from fewshard_models.recipes.training_curve import Curve


class BatchSource(Protocol):
    """Batches that depend only on (seed, epoch), so that a resumed run sees the same ones."""

    def steps_per_epoch(self) -> int: ...

    def epoch(self, number: int) -> Iterator[Any]: ...


class UpdateHook(Protocol):
    """A sparsifier's action at each step; its state is saved and restored with the run."""

    def before_update(self, step: int, optimizer: torch.optim.Optimizer) -> None:
        """Called between `backward` and the optimizer's step; may change gradients, weights and momentum."""

    def state_dict(self) -> dict[str, Any]: ...

    def load_state_dict(self, state: dict[str, Any]) -> None: ...


@dataclass(frozen=True, slots=True)
class FitSettings:
    """Settings of a training run.

    warmup: share of the steps in which the learning rate rises; it then falls linearly.
    final_lr_share: final learning rate relative to the peak.
    ema_decay: decay per step of the moving average of the weights, which becomes the result; 0 for none.
    ema_every: the average is updated at every such step.
    max_grad_norm: norm at which gradients are clipped; 0 for no clipping.
    save_every_s: seconds between saved states.
    """

    epochs: int
    learning_rate: float
    optimizer: Literal["adamw", "sgd"] = "adamw"
    weight_decay: float = 0.01
    momentum: float = 0.9
    warmup: float = 0.06
    final_lr_share: float = 0.0
    ema_decay: float = 0.0
    ema_every: int = 8
    max_grad_norm: float = 0.0
    seed: int = 0
    save_every_s: float = 60.0


def fit(
    model: nn.Module,
    batches: BatchSource,
    loss_of: Callable[[nn.Module, Any], Tensor],
    settings: FitSettings,
    run_dir: Path,
    hook: UpdateHook | None = None,
    accuracy_of: Callable[[nn.Module], float] | None = None,
) -> nn.Module:
    """Train `model` and return the trained module (the moving average if one is kept).

    Progress is written to `run_dir/curve.jsonl`, with `accuracy_of` the trained module at the end of each
    epoch. The state is saved to `run_dir/state.pt` every `save_every_s` seconds. A later call with the same
    settings resumes from it; one with other settings raises RecipeError and changes nothing.
    """
    run = _Run(model, batches, settings, run_dir, hook)
    run.resume()
    device = next(model.parameters()).device
    bf16 = choose_dtype(device=device.type).name == "bf16"
    bar = tqdm(total=run.total_steps, initial=run.step, desc=run_dir.name, unit="step", dynamic_ncols=True)
    curve = Curve(run_dir, run.step)
    saved_at = time.monotonic()
    while run.step < run.total_steps:
        epoch, done = divmod(run.step, batches.steps_per_epoch())
        for index, batch in enumerate(batches.epoch(epoch)):
            if index < done:
                continue
            model.train()
            with torch.autocast(device.type, dtype=torch.bfloat16, enabled=bf16):
                loss = loss_of(model, batch)
            run.update(loss)
            ends_epoch = index + 1 == batches.steps_per_epoch()
            accuracy = accuracy_of(run.result()) if accuracy_of and ends_epoch else None
            curve.add(run.step, epoch + 1, loss.item(), float(run.schedule.get_last_lr()[0]), accuracy)
            bar.update()
            if run.step % 20 == 0:
                bar.set_postfix(loss=f"{loss.item():.3f}", epoch=epoch + 1)
            if time.monotonic() - saved_at > settings.save_every_s:
                run.save()
                saved_at = time.monotonic()
    bar.close()
    run.save()
    return run.result()


class _Run:
    """The state of one training run, in memory and on disk."""

    def __init__(
        self,
        model: nn.Module,
        batches: BatchSource,
        settings: FitSettings,
        run_dir: Path,
        hook: UpdateHook | None = None,
    ) -> None:
        torch.manual_seed(settings.seed)
        self.model, self.settings, self.file = model, settings, run_dir / "state.pt"
        self.hook = hook
        self.step = 0
        self.total_steps = settings.epochs * batches.steps_per_epoch()
        self.optimizer = _optimizer(model, settings)
        self.schedule = torch.optim.lr_scheduler.LambdaLR(self.optimizer, self._lr_share)
        self.average = (
            AveragedModel(
                model,
                multi_avg_fn=get_ema_multi_avg_fn(settings.ema_decay**settings.ema_every),
                use_buffers=True,
            )
            if settings.ema_decay
            else None
        )
        self.fingerprint = json.dumps({"settings": asdict(settings), "steps": self.total_steps})

    def update(self, loss: Tensor) -> None:
        if not math.isfinite(loss.item()):
            raise RecipeError(f"the loss is {loss.item()} at step {self.step}; lower the learning rate")
        self.optimizer.zero_grad(set_to_none=True)
        loss.backward()
        if self.hook is not None:
            self.hook.before_update(self.step, self.optimizer)
        if self.settings.max_grad_norm:
            nn.utils.clip_grad_norm_(self.model.parameters(), self.settings.max_grad_norm)
        self.optimizer.step()
        self.schedule.step()
        self.step += 1
        if self.average is not None and (
            self.step % self.settings.ema_every == 0 or self.step == self.total_steps
        ):
            self.average.update_parameters(self.model)

    def result(self) -> nn.Module:
        return (self.model if self.average is None else self.average.module).eval()

    def _lr_share(self, step: int) -> float:
        warmup_steps = max(1, int(self.settings.warmup * self.total_steps))
        if step < warmup_steps:
            return (step + 1) / warmup_steps
        left = (self.total_steps - step) / max(1, self.total_steps - warmup_steps)
        return self.settings.final_lr_share + (1 - self.settings.final_lr_share) * max(0.0, left)

    def save(self) -> None:
        state = {
            "fingerprint": self.fingerprint,
            "step": self.step,
            "model": self.model.state_dict(),
            "optimizer": self.optimizer.state_dict(),
            "schedule": self.schedule.state_dict(),
            "average": None if self.average is None else self.average.state_dict(),
            "hook": None if self.hook is None else self.hook.state_dict(),
            "rng": torch.get_rng_state(),
        }
        with whole_file(self.file) as partial:
            torch.save(state, partial)

    def resume(self) -> None:
        if not self.file.exists():
            return
        state = torch.load(self.file, weights_only=True)
        if state["fingerprint"] != self.fingerprint:
            raise RecipeError(
                f"{self.file} was made with other settings ({state['fingerprint']}); "
                "give another --run-dir, or delete that file to start again"
            )
        # First, because a hook rejects a state that was made with other settings.
        if self.hook is not None:
            self.hook.load_state_dict(state["hook"])
        self.step = state["step"]
        self.model.load_state_dict(state["model"])
        self.optimizer.load_state_dict(state["optimizer"])
        self.schedule.load_state_dict(state["schedule"])
        if self.average is not None:
            self.average.load_state_dict(state["average"])
        torch.set_rng_state(state["rng"])


def _optimizer(model: nn.Module, settings: FitSettings) -> torch.optim.Optimizer:
    """The optimizer, with weight decay on matrices and filters but not on biases and norms."""
    trained = [parameter for parameter in model.parameters() if parameter.requires_grad]
    groups = [
        {"params": [p for p in trained if p.ndim > 1], "weight_decay": settings.weight_decay},
        {"params": [p for p in trained if p.ndim <= 1], "weight_decay": 0.0},
    ]
    if settings.optimizer == "sgd":
        return torch.optim.SGD(groups, lr=settings.learning_rate, momentum=settings.momentum, nesterov=True)
    return torch.optim.AdamW(groups, lr=settings.learning_rate, betas=(0.9, 0.98), fused=True)
