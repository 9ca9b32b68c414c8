"""Torch's counter of operations, with the formulas that it lacks."""

from __future__ import annotations

from typing import Any


def flop_counter() -> Any:
    """A `FlopCounterMode`; its `flop_registry` has a formula for every operator that it counts.

    Torch 2.13 knows the attention kernels of GPUs and not the one of the CPU.
    """
    import torch
    from torch.utils.flop_counter import FlopCounterMode, sdpa_flop_count

    def attention(query: Any, key: Any, value: Any, *_: Any, **__: Any) -> int:
        """Of shapes, which is what the counter hands to a formula."""
        return int(sdpa_flop_count(query, key, value))

    return FlopCounterMode(display=False, custom_mapping={torch.ops.aten._scaled_dot_product_flash_attention_for_cpu: attention})
