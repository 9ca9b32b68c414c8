"""A training loop that survives its process: AdamW, warm-up and decay, clipping, early stopping, checkpoints.

Knows no step and no task: it is given a module, batches, a loss and a way to tell how good the module is. Devices and processes are
accelerate's: each process has a device of its own, takes every so-manieth batch, and all update with the mean of their gradients.
"""

from __future__ import annotations

import json
import math
import os
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ioptim.core.artifact import write_json
from ioptim.errors import StepError

if TYPE_CHECKING:
    import torch

CHECKPOINT_S = 30.0
"""Between checkpoints, beside those after every evaluation: what a kill can cost."""
BF16_FLAGS = ("avx512_bf16", "amx_bf16")
"""Instruction sets of CPUs with which bfloat16 products are faster than float32 ones."""
CURVE_POINTS = 200
"""Of a whole training, at most about: what a chart can show."""
_STATE = "state.json"
"""Names the files of tensors that belong to it; a kill leaves either the older set or the newer one, whole."""


@dataclass(frozen=True)
class Settings:
    """How to train. `max_minutes` counts every attempt; the learning rate falls to nothing by the end of whichever comes first."""

    epochs: int
    learning_rate: float
    warm_up: float
    weight_decay: float
    clip_norm: float
    accumulate: int
    max_minutes: float | None
    patience: int
    evaluations: int
    seed: int
    bf16: bool
    cpu: bool = True


@dataclass(frozen=True)
class Point:
    """Mean loss since the last point, learning rate (both over `step` batches of each process so far), and where it was looked at the
    quality on the dev rows (higher is better)."""

    step: int
    seconds: float
    loss: float
    rate: float
    quality: float | None = None


@dataclass
class Progress:
    """Where a training is; JSON beside the tensors. `losses` is the sum of `losses_n` since the last point."""

    step: int = 0
    seconds: float = 0.0
    best: float | None = None
    best_step: int = 0
    since_best: int = 0
    losses: float = 0.0
    losses_n: int = 0
    attempts: int = 1
    points: list[Point] = field(default_factory=list)
    ended: str = ""


class Training:
    """One training of `module` in place. `batches[i]` is what `loss` takes; `run` leaves the best weights in the module, on the CPU.

    `loss` is called with the number of a batch and the batch on the training's device, and returns a scalar; `quality` (of the module in
    evaluation mode, where it was trained) is what early stopping goes by. `order` gives the indices of an epoch's batches. `extra` is
    trained as well, `still` only put on the same device. The state in `folder` fits only this very training: whoever names the folder
    sees to that.

    Raises:
        StepError: the loss is not a number before anything was good enough to keep; fewer batches than make an update.
    """

    def __init__(
        self,
        module: torch.nn.Module,
        batches: Sequence[Any],
        loss: Callable[[int, Any], torch.Tensor],
        quality: Callable[[], float],
        order: Callable[[int], Sequence[int]],
        settings: Settings,
        folder: Path,
        tell: Callable[[float, str], None],
        extra: Sequence[torch.nn.Module] = (),
        still: Sequence[torch.nn.Module] = (),
    ) -> None:
        import torch
        from accelerate import PartialState

        self.module, self.batches, self.loss, self.quality, self.order = module, batches, loss, quality, order
        self.settings, self.folder, self.tell = settings, folder, tell
        self.place = PartialState(cpu=settings.cpu)
        self.trained = torch.nn.ModuleList([module, *extra]).to(self.place.device)
        for parameter in self.trained.parameters():  # what is saved of the optimizer has the parameter's layout; safetensors has one
            parameter.data = parameter.data.contiguous()
        for other in still:
            other.to(self.place.device)
        # Fused: one pass over the memory of the embedding table in place of a dozen, a third of the time of a small model's step.
        self.optimizer = torch.optim.AdamW(_groups(self.trained, settings.weight_decay), lr=settings.learning_rate, fused=True)
        self.progress = Progress()
        self.per_epoch = len(batches) // self.place.num_processes
        self.total = settings.epochs * self.per_epoch // settings.accumulate * settings.accumulate
        if not self.total:
            needed = settings.accumulate * self.place.num_processes
            text = f"{settings.epochs} epochs of {len(batches)} batches are fewer than the {needed} that make an update"
            raise StepError(f"{text}; lower accumulate or give more rows")
        folder.mkdir(parents=True, exist_ok=True)

    def run(self) -> Progress:
        """Train, or go on where an earlier attempt was ended."""
        import torch

        torch.manual_seed(self.settings.seed + self.place.process_index)
        self._restore()
        self._began, self._saved = time.monotonic() - self.progress.seconds, self.progress.seconds
        if not self.progress.ended:
            self._train()
            self._save()
        self.place.wait_for_everyone()  # the best weights are written by one process and read by all
        self._load_best()
        self.module.eval()
        return self.progress

    def _train(self) -> None:
        """Steps until the epochs, the time or the patience is used up; says in `progress.ended` which."""
        every = math.ceil(self.per_epoch / self.settings.evaluations)  # rounded up: never more looks than were asked for
        drawn = max(1, self.total // CURVE_POINTS)
        self.trained.train()
        for index in self._remaining():
            value, seconds = self._agreed(self._step(index), time.monotonic() - self._began)
            if not math.isfinite(value):
                self._not_a_number()
                return
            self.progress.losses += value
            self.progress.losses_n += 1
            self.progress.step += 1
            self.progress.seconds = seconds
            last = self._done() >= 1
            evaluated = self.progress.step % every == 0 or last
            if evaluated and not self._evaluate():
                self._not_a_number()
                return
            if not evaluated and self.progress.step % drawn == 0:
                self._point(None)
            self._report(value)
            if last or self.progress.since_best >= self.settings.patience:
                self.progress.ended = self._why(last)
                return
            between_updates = self.progress.step % self.settings.accumulate == 0  # gradients are not saved
            if between_updates and (evaluated or seconds - self._saved > CHECKPOINT_S):
                self._save()
        self.progress.ended = f"after {self.settings.epochs} epochs"

    def _why(self, last: bool) -> str:
        if not last:
            return f"no better in {self.progress.since_best} evaluations"
        settings = self.settings
        return f"after {settings.epochs} epochs" if self.progress.step >= self.total else f"after {settings.max_minutes:g} minutes"

    def _step(self, index: int) -> float:
        import torch
        from accelerate.utils import send_to_device

        settings, step = self.settings, self.progress.step
        if step % settings.accumulate == 0:
            for group in self.optimizer.param_groups:
                group["lr"] = settings.learning_rate * self._rate()
        batch = send_to_device(self.batches[index], self.place.device)
        with torch.autocast(self.place.device.type, torch.bfloat16, enabled=settings.bf16):
            loss = self.loss(index, batch)
        (loss / settings.accumulate).backward()  # type: ignore[no-untyped-call]
        if (step + 1) % settings.accumulate == 0:
            self._average()
            torch.nn.utils.clip_grad_norm_(self.trained.parameters(), settings.clip_norm)
            self.optimizer.step()
            self.optimizer.zero_grad(set_to_none=True)
        return float(loss.detach())

    def _average(self) -> None:
        """Every process's gradients become the mean of all processes'."""
        import torch
        from accelerate.utils import reduce

        if self.place.num_processes == 1:
            return
        gradients = [p.grad for p in self.trained.parameters() if p.grad is not None]
        mean = reduce(torch.cat([g.flatten() for g in gradients]), "mean")
        for gradient, part in zip(gradients, mean.split([g.numel() for g in gradients]), strict=True):
            gradient.copy_(part.view_as(gradient))

    def _agreed(self, loss: float, seconds: float) -> tuple[float, float]:
        """The mean loss of all processes, and the first one's clock: what each of them goes by."""
        import torch
        from accelerate.utils import reduce

        if self.place.num_processes == 1:
            return loss, seconds
        said = torch.tensor([loss, seconds if self.place.is_main_process else 0.0], dtype=torch.float64, device=self.place.device)
        total, clock = reduce(said, "sum").tolist()
        return total / self.place.num_processes, clock

    def _rate(self) -> float:
        """Of the learning rate: a linear rise over `warm_up` of the training, a half cosine down to zero after it."""
        done, warm = self._done(), self.settings.warm_up
        return (
            min(1.0, max(done, self.settings.accumulate / self.total) / warm)
            if done < warm
            else (1 + math.cos(math.pi * (done - warm) / (1 - warm))) / 2
        )

    def _done(self) -> float:
        """Share of the training that is behind: of its steps or of its time, whichever is further."""
        limit = self.settings.max_minutes
        return min(1.0, max(self.progress.step / self.total, self.progress.seconds / 60 / limit if limit else 0.0))

    def _remaining(self) -> Iterator[int]:
        first, skip = divmod(self.progress.step, self.per_epoch)
        for epoch in range(first, self.settings.epochs):
            mine = self.order(epoch)[self.place.process_index :: self.place.num_processes][: self.per_epoch]
            yield from mine[skip if epoch == first else 0 :]

    def _evaluate(self) -> bool:
        """Look at the dev rows, keep the weights where none were better; False where the quality is not a number.

        Few dev rows make equals: of these the later are kept, for they were trained longer, and patience goes on counting.
        """
        self.module.eval()
        quality, _ = self._agreed(self.quality(), 0.0)
        self.module.train()
        if not math.isfinite(quality):
            return False
        progress = self.progress
        self._point(quality)
        before = progress.best
        progress.since_best = 0 if before is None or quality > before else progress.since_best + 1
        if before is None or quality >= before:
            progress.best, progress.best_step = quality, progress.step
            if self.place.is_main_process:
                _write(self._best(), _owned(self.module))
        return True

    def _point(self, quality: float | None) -> None:
        progress, rate = self.progress, self.settings.learning_rate * self._rate()
        progress.points.append(Point(progress.step, progress.seconds, progress.losses / progress.losses_n, rate, quality))
        progress.losses, progress.losses_n = 0.0, 0

    def _best(self) -> Path:
        return self.folder / f"{self.progress.best_step}-best.safetensors"

    def _not_a_number(self) -> None:
        if self.progress.best is None:
            text = f"the loss is not a number at step {self.progress.step + 1}, before anything was good enough to keep"
            raise StepError(f"{text}; lower learning_rate ({self.settings.learning_rate:g})")
        self.progress.ended = f"the loss was not a number at step {self.progress.step + 1}; the best before it was kept"

    def _report(self, loss: float) -> None:
        done, progress = self._done(), self.progress
        left = progress.seconds / done * (1 - done)
        best = "" if progress.best is None else f", best {progress.best:.4f}"
        self.tell(done, f"epoch {progress.step / self.per_epoch:.2f}, loss {loss:.4f}{best}, {left / 60:.1f} min left")

    # What survives

    def _save(self) -> None:
        """Tensors first, then the state that names them, then the older ones go."""
        import torch
        from accelerate.utils import gather_object

        self._saved = self.progress.seconds
        drawn = gather_object([_random_state(self.place.device)])
        if not self.place.is_main_process:
            return
        tensors = {f"module.{name}": value for name, value in _owned(self.trained).items()}
        for place, values in self.optimizer.state_dict()["state"].items():
            tensors |= {f"optimizer.{place}.{name}": torch.as_tensor(value).clone() for name, value in values.items()}
        for process, states in enumerate(drawn):
            tensors |= {f"random.{process}.{kind}": value for kind, value in states.items()}
        state = self.folder / f"{self.progress.step}-state.safetensors"
        _write(state, tensors)
        write_json(self.folder / _STATE, {**asdict(self.progress), "tensors": state.name})
        for old in self.folder.glob("*.safetensors*"):
            if old not in (state, self._best()):
                old.unlink()

    def _restore(self) -> None:
        import torch
        from safetensors.torch import load_file

        path = self.folder / _STATE
        if not path.is_file():
            return
        state = json.loads(path.read_text())
        tensors = load_file(self.folder / state.pop("tensors"), device="cpu")
        state["points"] = [Point(**point) for point in state["points"]]
        self.progress = Progress(**state)
        self.progress.attempts += 1
        self.trained.load_state_dict({name[7:]: value for name, value in tensors.items() if name.startswith("module.")}, strict=False)
        kept: dict[int, dict[str, torch.Tensor]] = {}
        for name, value in tensors.items():
            if name.startswith("optimizer."):
                _, place, key = name.split(".")
                kept.setdefault(int(place), {})[key] = value
        self.optimizer.load_state_dict({**self.optimizer.state_dict(), "state": kept})
        mine = f"random.{self.place.process_index}."
        torch.set_rng_state(tensors[f"{mine}cpu"])
        if f"{mine}cuda" in tensors:
            torch.cuda.set_rng_state(tensors[f"{mine}cuda"], self.place.device)

    def _load_best(self) -> None:
        from safetensors.torch import load_file

        self.module.cpu().load_state_dict(load_file(self._best()), strict=False)


def _groups(module: torch.nn.Module, decay: float) -> list[dict[str, Any]]:
    """Matrices decay; biases and norms do not."""
    matrices = [p for p in module.parameters() if p.requires_grad and p.ndim > 1]
    others = [p for p in module.parameters() if p.requires_grad and p.ndim <= 1]
    return [{"params": matrices, "weight_decay": decay}, {"params": others, "weight_decay": 0.0}]


def _random_state(device: torch.device) -> dict[str, torch.Tensor]:
    """Where this process's draws are: dropout on a GPU has a generator of its own."""
    import torch

    found = {"cpu": torch.get_rng_state()}
    return found | ({"cuda": torch.cuda.get_rng_state(device)} if device.type == "cuda" else {})


def _owned(module: torch.nn.Module) -> dict[str, torch.Tensor]:
    """The state, each tensor once and on its own memory (tied weights would be refused by safetensors)."""
    found, seen = {}, set()
    for name, value in module.state_dict().items():
        if value.data_ptr() not in seen or not value.numel():
            seen.add(value.data_ptr())
            found[name] = value.detach().cpu().contiguous().clone()
    return found


def _write(path: Path, tensors: dict[str, torch.Tensor]) -> None:
    """Aside first and down to the disk, so that neither a kill nor a power cut leaves half a file under the name."""
    from safetensors.torch import save_file

    aside = path.with_name(f"{path.name}.new")
    save_file(tensors, aside)
    with aside.open("rb") as file:
        os.fsync(file.fileno())
    aside.replace(path)
