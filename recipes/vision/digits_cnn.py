"""A small residual network for 8 × 8 images of digits: what `python:vision.digits_cnn:build` loads."""

from __future__ import annotations

import torch
from torch import Tensor, nn


class Block(nn.Module):
    """Two 3 × 3 convolutions with batch normalization, and a way around them."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(channels, channels, 3, padding=1, bias=False)
        self.norm1 = nn.BatchNorm2d(channels)
        self.conv2 = nn.Conv2d(channels, channels, 3, padding=1, bias=False)
        self.norm2 = nn.BatchNorm2d(channels)

    def forward(self, x: Tensor) -> Tensor:
        y = torch.relu(self.norm1(self.conv1(x)))
        return torch.relu(x + self.norm2(self.conv2(y)))


class DigitsCNN(nn.Module):
    """About 145 000 parameters. Every normalization follows a convolution, so that it can be folded into its weights."""

    def __init__(self, classes: int = 10) -> None:
        super().__init__()
        self.stem = nn.Sequential(nn.Conv2d(1, 32, 3, padding=1, bias=False), nn.BatchNorm2d(32), nn.ReLU())
        self.block1 = Block(32)
        self.down = nn.Sequential(nn.Conv2d(32, 64, 3, stride=2, padding=1, bias=False), nn.BatchNorm2d(64), nn.ReLU())
        self.block2 = Block(64)
        self.head = nn.Linear(64 * 4 * 4, 32)
        self.classifier = nn.Linear(32, classes)

    def forward(self, image: Tensor) -> Tensor:
        """(batch, 1, 8, 8) from 0 to 1 -> logits (batch, classes)."""
        x = self.stem(image)
        x = self.block1(x)  # (batch, 32, 8, 8)
        x = self.down(x)  # (batch, 64, 4, 4)
        x = self.block2(x)
        x = torch.relu(self.head(x.flatten(1)))
        return self.classifier(x)


def build() -> nn.Module:
    """The network with random weights; the recipe's `weights` are put into it."""
    return DigitsCNN()
