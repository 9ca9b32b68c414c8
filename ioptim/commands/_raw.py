"""The samples that verdicts are judged from, taken again from the raw measurements that their step kept beside them."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from pathlib import Path

from ioptim import timing
from ioptim.core.metrics import Samples
from ioptim.core.record import NodeRecord
from ioptim.errors import UnavailableError
from ioptim.loadgen import Scenario
from ioptim.steps import _fidelity as fidelity
from ioptim.steps.benchmark.scenarios import COST, FIGURES, THROUGHPUT
from ioptim.steps.benchmark.search import RATE, ServerLoad

ROWS, QUERIES = "rows.jsonl", "latency.parquet"

Columns = Mapping[str, Sequence[float | None]]
"""The values of one metric by model: one for each row, block or round."""


def raw_file(folder: Path) -> Path | None:
    """The raw measurements among a step's kept files."""
    return next((folder / name for name in (ROWS, QUERIES) if (folder / name).is_file()), None)


def derive(raw: Path, node: NodeRecord, samples: Sequence[Samples], prices: Sequence[float]) -> dict[str, Columns]:
    """What the raw file gives, by metric. Memory, size and a rate that was searched for, which it does not tell, are left out.

    Raises:
        UnavailableError: pyarrow is not installed.
        ValueError: the file cannot be read.
    """
    return _of_rows(raw, samples) if raw.name == ROWS else _of_queries(_blocks(raw), node, samples, prices)


def nearest_cost(prices: Sequence[float], rate_per_s: float | None, recorded: float | None) -> float | None:
    """The cost of a million at this rate; of several prices the one meant, for no record says which target a baseline ran on."""
    if not rate_per_s or recorded is None:
        return None
    return min((price / 3600 / rate_per_s * 1e6 for price in prices), key=lambda cost: abs(cost - recorded), default=None)


def _of_rows(path: Path, samples: Sequence[Samples]) -> dict[str, Columns]:
    lines = [json.loads(line) for line in path.read_text().splitlines()]
    found: dict[str, Columns] = {}
    for sample in samples:
        kept_as = fidelity.COSINE.name if sample.metric.name == fidelity.COSINE_P1.name else sample.metric.name
        found[sample.metric.name] = {model: [line.get(kept_as, {}).get(model) for line in lines] for model in sample.values}
    return found


def _of_queries(
    blocks: Mapping[Scenario, Mapping[str, list[list[float]]]], node: NodeRecord, samples: Sequence[Samples], prices: Sequence[float]
) -> dict[str, Columns]:
    kept = {sample.metric.name: sample.values for sample in samples}
    found: dict[str, Columns] = {}
    for scenario, figures in FIGURES.items():
        rows = node.facts.get("scenarios", {}).get(scenario.value, {}).get("rows_per_block", 0)
        for figure in figures:
            found[figure.metric.name] = {model: figure.of_blocks(mine, rows) for model, mine in blocks[scenario].items()}
    rates = found[THROUGHPUT.metric.name]
    if node.config.get("server"):
        load = ServerLoad.model_validate(node.config["server"])
        found[load.tail.name] = tails = {model: _tails_ms(rounds, load) for model, rounds in blocks[Scenario.SERVER].items()}
        rates = kept.get(RATE, {})
        if (asked := load.rate_per_s) is not None:  # what is not served within the bound has no cost
            rates = {model: [asked if tail_ms <= load.latency_bound_ms else 0.0 for tail_ms in mine] for model, mine in tails.items()}
    found[COST.name] = {
        model: [nearest_cost(prices, rate, cost) for rate, cost in zip(rates.get(model, ()), costs, strict=False)]
        for model, costs in kept.get(COST.name, {}).items()
    }
    return found


def _tails_ms(rounds: Sequence[Sequence[float]], load: ServerLoad) -> list[float]:
    tails = [timing.percentile(seconds, load.percentile) for seconds in rounds]
    return [tail * 1e3 for tail in tails if tail is not None]


def _blocks(path: Path) -> dict[Scenario, dict[str, list[list[float]]]]:
    """Seconds of every query, by scenario, model and block."""
    try:
        from pyarrow import parquet
    except ImportError as error:
        raise UnavailableError(f"{path.name} was not read: it needs pyarrow; install it with: pip install pyarrow") from error
    table = parquet.read_table(path).to_pydict()
    found: dict[Scenario, dict[str, dict[int, list[float]]]] = {scenario: {} for scenario in Scenario}
    for model, scenario, block, seconds in zip(*(table[name] for name in ("subject", "scenario", "block", "seconds")), strict=True):
        found[Scenario(scenario)].setdefault(model, {}).setdefault(block, []).append(seconds)
    return {scenario: {model: list(blocks.values()) for model, blocks in mine.items()} for scenario, mine in found.items()}
