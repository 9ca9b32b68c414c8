"""Do two runs of the same benchmark agree, an hour apart? Everything that a gate bounds is measured again, and the intervals compared.

    python benchmarks/repeat.py [--recipe FILE] [--runs 2] [--apart MINUTES] [--home DIR]

Gates of the recipe are judged as they stand; what it asks is only that for every gate with an interval those of all runs have a value in
common. Exits with 1 when one has none, or when no gate of the recipe has an interval.
"""

from __future__ import annotations

import argparse
import tempfile
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from measure import ioptim, machine, table

LOCAL = ("--engine", "local", "--tracking", "none", "--json")
ENDED = (0, 1)
"""A gate may fail or be undecided in an hour that is busy: that is not the question."""


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--recipe", default="recipes/bert-int8.yaml")
    parser.add_argument("--runs", type=int, default=2)
    parser.add_argument("--apart", type=float, default=60, metavar="MINUTES", help="from the end of a run to the start of the next")
    parser.add_argument("--home", type=Path, help="folder of the store, kept (default: a temporary one)")
    args = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        home = args.home or Path(folder)
        ioptim("run", args.recipe, *LOCAL, home=home).require(*ENDED)  # the models are made once, so that only measuring is repeated
        runs = []
        for number in range(args.runs):
            if number:
                time.sleep(args.apart * 60)
            print(f"{time.strftime('%H:%M')}: {machine()}")
            runs.append(gates(ioptim("run", args.recipe, *LOCAL, "--force", "benchmark", home=home).require(*ENDED).json()))
    if not runs[0]:
        raise SystemExit(f"{args.recipe} bounds nothing that the benchmark measures with an interval; name another with --recipe")
    rows = [[name, *(_said(run[name]) for run in runs), "yes" if agree([run[name] for run in runs]) else "NO"] for name in runs[0]]
    print(table(["gate", *(f"run {i + 1}: estimate (interval)" for i in range(args.runs)), "agree"], rows))
    apart = [row[0] for row in rows if row[-1] == "NO"]
    print("\nAll runs agree." if not apart else f"\nThey do not agree on {'; '.join(apart)}.")
    return 1 if apart else 0


def gates(document: Mapping[str, Any]) -> dict[str, Mapping[str, Any]]:
    """What the benchmark measured and a gate has an interval of."""
    measured = {name for step in document["steps"] if step["step"] == "benchmark" for of in step["subjects"].values() for name in of}
    return {
        f"{gate['metric']} of {gate['candidate']['name']} against {gate['baseline']['name']}": gate
        for gate in document["gates"]
        if gate["metric"] in measured and gate["interval"] is not None
    }


def agree(found: list[Mapping[str, Any]]) -> bool:
    """Whether all intervals have a value in common."""
    return max(gate["interval"][0] for gate in found) <= min(gate["interval"][1] for gate in found)


def _said(gate: Mapping[str, Any]) -> str:
    low, high = gate["interval"]
    return f"{gate['estimate']:.3f} ({low:.3f}-{high:.3f})"


if __name__ == "__main__":
    raise SystemExit(main())
