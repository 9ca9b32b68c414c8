"""What a teacher said about each batch: asked once, kept in memory and beside the training's state."""

from __future__ import annotations

import time
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    import torch

KEEP_S = 30.0
"""Between two writes of what is new: what a kill can cost."""


class Answers:
    """The teacher's answers by batch number. Each is asked for when its batch first comes, so that no time goes into rows that a training
    never reaches; from the second epoch on, and after a kill, a batch costs no pass of the teacher.

    The order of rows within a batch is what it was when it was asked; `folder` belongs to one training.
    """

    def __init__(self, ask: Callable[[int], torch.Tensor], folder: Path, *, writes: bool = True) -> None:
        from safetensors.torch import load_file

        self._ask, self._folder, self._writes = ask, folder, writes
        self._new: dict[str, torch.Tensor] = {}
        self._written = time.monotonic()
        self._known: dict[str, torch.Tensor] = {}
        self.asked = 0
        for part in sorted(folder.glob("*.safetensors")):
            self._known |= load_file(part)

    def __getitem__(self, batch: int) -> torch.Tensor:
        name = str(batch)
        if name not in self._known:
            self.asked += 1
            self._known[name] = self._new[name] = self._ask(batch).detach().cpu().contiguous().clone()
            if self._writes and time.monotonic() - self._written > KEEP_S:
                self.keep()
        return self._known[name]

    def keep(self) -> None:
        """Write what is new to a file of its own, under its name only when it is whole."""
        from safetensors.torch import save_file

        self._written = time.monotonic()
        if not self._new:
            return
        self._folder.mkdir(parents=True, exist_ok=True)
        part = self._folder / f"{len(list(self._folder.glob('*.safetensors')))}.safetensors"
        save_file(self._new, aside := part.with_suffix(".new"))
        aside.replace(part)
        self._new = {}
