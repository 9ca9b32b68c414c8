"""Multiply-adds of a row, counted while it passes through."""

from __future__ import annotations

from typing import Any

import pytest

from ioptim.steps.prune.work import work


@pytest.mark.integration
def test_attention_by_torchs_own_function_is_counted() -> None:
    """On the CPU it is a kernel that torch's counter has no formula for."""
    torch = pytest.importorskip("torch")

    class Attention(torch.nn.Module):  # type: ignore[misc, name-defined]
        def __init__(self) -> None:
            super().__init__()
            self.project = torch.nn.Linear(8, 8)

        def forward(self, x: Any) -> Any:
            y = self.project(x).view(len(x), -1, 2, 4).transpose(1, 2)  # (batch, heads, tokens, 4)
            return torch.nn.functional.scaled_dot_product_attention(y, y, y)

    found = work(Attention().eval(), [{"x": torch.ones(1, tokens, 8)} for tokens in (4, 6)])
    projected, attended = (4 + 6) * 8 * 8, 2 * (4 * 4 + 6 * 6) * 8
    assert found.multiply_adds == (projected + attended) / 2
    assert found.by_layer == {"project": (72, projected / 2)}
