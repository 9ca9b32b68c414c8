"""Trains `digits_cnn.py` and writes `digits_cnn.safetensors` beside it. Half a minute on one core:

    python recipes/vision/train.py

Learns from the split `train` alone. `test` is read once, at the end, for the figure that is printed.
"""

from __future__ import annotations

from pathlib import Path

import numpy as np
import torch
from digits_cnn import build
from safetensors.torch import save_file
from torch import Tensor, nn

from ioptim.core.source import DataSpec
from ioptim.sources import data_source

HERE = Path(__file__).parent
EPOCHS, BATCH, PEAK_RATE = 30, 64, 3e-3


def read(split: str) -> tuple[Tensor, Tensor]:
    table = data_source(DataSpec(source="sklearn:digits", split=split), HERE, None).read()
    return torch.from_numpy(np.stack(table.columns["image"])), torch.tensor(table.columns["label"])


def shifted(images: Tensor, draw: torch.Generator) -> Tensor:
    """Each image moved by at most one pixel: there are few of them."""
    padded = nn.functional.pad(images, (1, 1, 1, 1))
    places = torch.randint(0, 3, (len(images), 2), generator=draw).tolist()
    return torch.stack([image[:, y : y + 8, x : x + 8] for image, (y, x) in zip(padded, places, strict=True)])


def train(module: nn.Module, images: Tensor, labels: Tensor, draw: torch.Generator) -> None:
    steps = -(-len(images) // BATCH)
    optimizer = torch.optim.AdamW(module.parameters(), weight_decay=0.01)
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, PEAK_RATE, epochs=EPOCHS, steps_per_epoch=steps)
    module.train()
    for _ in range(EPOCHS):
        for rows in torch.randperm(len(images), generator=draw).split(BATCH):
            logits = module(shifted(images[rows], draw))
            loss = nn.functional.cross_entropy(logits, labels[rows], label_smoothing=0.05)
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
            schedule.step()


def main() -> None:
    torch.manual_seed(0)
    module = build()
    train(module, *read("train"), torch.Generator().manual_seed(0))
    module.eval()
    save_file(module.state_dict(), HERE / "digits_cnn.safetensors", {"format": "pt"})
    images, labels = read("test")
    with torch.inference_mode():
        right = int((module(images).argmax(1) == labels).sum())
    print(f"test accuracy {right / len(labels):.4f} ({right} of {len(labels)})")


if __name__ == "__main__":
    main()
