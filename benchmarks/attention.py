"""How long does a training step of an encoder take with torch's fused attention, and with attention spelt out in plain products?

    python benchmarks/attention.py [--rounds N] [--tokens N ...]

A BERT of MiniLM's width with four layers and random weights, 32 rows a step, forward and backward as `distill` runs them, the two in turns.
Ratios are within a round. Prints only: which of them `distill` takes on a CPU was decided by this.
"""

from __future__ import annotations

import argparse
import time
from typing import TYPE_CHECKING

from measure import machine, spread, table

if TYPE_CHECKING:
    import torch

ROWS, WORDS = 32, 30_522


def main() -> int:
    import torch

    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=10)
    parser.add_argument("--tokens", type=int, nargs="+", default=[16, 32, 64, 128])
    args = parser.parse_args()
    print(machine())
    modules = {kind: encoder(kind) for kind in ("sdpa", "eager")}
    rows = []
    for precision in (torch.float32, torch.bfloat16):
        for tokens in args.tokens:
            seconds: dict[str, list[float]] = {kind: [] for kind in modules}
            for number in range(args.rounds + 1):
                for kind in sorted(modules, reverse=bool(number % 2)):
                    seconds[kind].append(step(modules[kind], tokens, precision))
            fused, plain = (seconds[kind][1:] for kind in ("sdpa", "eager"))  # the first round warms up
            ratios = [a / b for a, b in zip(fused, plain, strict=True)]
            numbers = (spread([1e3 * s for s in fused], 0), spread([1e3 * s for s in plain], 0), spread(ratios))
            rows.append([str(precision).removeprefix("torch."), tokens, *numbers])
    print(table(["products in", "tokens", "fused ms", "spelt out ms", "fused ÷ spelt out"], rows))
    return 0


def encoder(attention: str) -> torch.nn.Module:
    import torch
    from transformers import BertConfig, BertModel

    torch.manual_seed(0)
    sizes = {"hidden_size": 384, "num_hidden_layers": 4, "num_attention_heads": 12, "intermediate_size": 1536, "vocab_size": WORDS}
    config = BertConfig(**sizes, hidden_dropout_prob=0.0, attention_probs_dropout_prob=0.0, attn_implementation=attention)
    return BertModel(config, add_pooling_layer=False).train()


def step(module: torch.nn.Module, tokens: int, precision: torch.dtype) -> float:
    """Seconds of one pass there and back; a row in seven is padded, so that there is a mask."""
    import torch

    ids = torch.randint(1000, WORDS, (ROWS, tokens))
    mask = torch.ones_like(ids)
    mask[::7, -3:] = 0
    module.zero_grad(set_to_none=True)
    begin = time.perf_counter()
    with torch.autocast("cpu", precision, enabled=precision != torch.float32):
        loss = module(input_ids=ids, attention_mask=mask).last_hidden_state.float().square().mean()
    loss.backward()
    return time.perf_counter() - begin


if __name__ == "__main__":
    raise SystemExit(main())
