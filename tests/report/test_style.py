"""Colours that everyone can tell apart, on both backgrounds."""

from __future__ import annotations

import itertools
import math
from collections.abc import Mapping

import pytest

from ioptim.report.style import CSS, DARK, LIGHT, TONES

# Machado, Oliveira and Fernandes, A Physiologically-based Model for Simulation of Color Vision Deficiency (2009), severity 1.0.
VISION = {
    "all colours": ((1, 0, 0), (0, 1, 0), (0, 0, 1)),
    "protanopia": ((0.152286, 1.052583, -0.204868), (0.114503, 0.786281, 0.099216), (-0.003882, -0.048116, 1.051998)),
    "deuteranopia": ((0.367322, 0.860646, -0.227968), (0.280085, 0.672501, 0.047413), (-0.011820, 0.042940, 0.968881)),
    "tritanopia": ((1.255528, -0.076749, -0.178779), (-0.078411, 0.930809, 0.147602), (0.004733, 0.691367, 0.303900)),
}


def linear(colour: str) -> list[float]:
    parts = [int(colour[i : i + 2], 16) / 255 for i in (1, 3, 5)]
    return [part / 12.92 if part <= 0.04045 else ((part + 0.055) / 1.055) ** 2.4 for part in parts]


def contrast(one: str, other: str) -> float:
    """WCAG 2.2."""
    light, dark = sorted((0.2126 * r + 0.7152 * g + 0.0722 * b for r, g, b in map(linear, (one, other))), reverse=True)
    return (light + 0.05) / (dark + 0.05)


def lab(colour: str, vision: str) -> tuple[float, float, float]:
    """CIE L*a*b* (D65) of the colour as it is seen."""
    r, g, b = (min(1.0, max(0.0, sum(m * c for m, c in zip(row, linear(colour), strict=True)))) for row in VISION[vision])
    xyz = (
        (0.4124 * r + 0.3576 * g + 0.1805 * b) / 0.9505,
        0.2126 * r + 0.7152 * g + 0.0722 * b,
        (0.0193 * r + 0.1192 * g + 0.9505 * b) / 1.089,
    )
    x, y, z = (t ** (1 / 3) if t > 0.008856 else 7.787 * t + 16 / 116 for t in xyz)
    return 116 * y - 16, 500 * (x - y), 200 * (y - z)


@pytest.mark.parametrize("scheme", [LIGHT, DARK], ids=["light", "dark"])
def test_series_stand_out_and_apart(scheme: Mapping[str, str]) -> None:
    tones = [scheme[f"t{i}"] for i in range(TONES)]
    assert min(contrast(tone, scheme["card"]) for tone in tones) >= 3
    for vision in VISION:
        nearest = min((math.dist(lab(a, vision), lab(b, vision)), a, b) for a, b in itertools.combinations(tones, 2))
        assert nearest[0] > 15, (vision, nearest)


@pytest.mark.parametrize("scheme", [LIGHT, DARK], ids=["light", "dark"])
def test_text_can_be_read(scheme: Mapping[str, str]) -> None:
    on_card = [contrast(scheme[name], scheme["card"]) for name in ("ink", "soft", "link", "pass", "fail", "warn")]
    on_own = [contrast(scheme[name], scheme[f"{name}-bg"]) for name in ("pass", "fail", "warn")]
    assert min(on_card + on_own) >= 4.5


def test_nothing_is_fetched() -> None:
    assert "url(" not in CSS and "@import" not in CSS
