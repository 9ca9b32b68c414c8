"""What ioptim costs beside the steps: whole processes timed from outside, against the limits below.

    python benchmarks/overhead.py [--recipe FILE ...] [--runs N] [--local-only]

Every series starts in a fresh store. The overhead of a run is its wall time, from the start of the process to its end, less the
seconds of the steps that it computed. Exits with 1 when a median exceeds its limit.
"""

from __future__ import annotations

import argparse
import statistics
import tempfile
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

from measure import Timed, ioptim, machine, spread, table

LOCAL = ("--engine", "local", "--tracking", "none")
FULL = ("--engine", "prefect", "--tracking", "mlflow")
ENDED = (0, 1)
"""A gate may fail on a busy machine; the overhead of the run is the same."""


@dataclass(frozen=True)
class Measured:
    what: str
    limit_s: float
    seconds: tuple[float, ...]

    @property
    def missed(self) -> bool:
        return statistics.median(self.seconds) > self.limit_s

    def row(self) -> list[object]:
        verdict = "MISSED" if self.missed else "met"
        return [self.what, len(self.seconds), spread(self.seconds), f"{self.limit_s:g}", verdict]


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--recipe", action="append", help="recipe to run (default: recipes/vision-int8.yaml and recipes/bert-int8.yaml)")
    parser.add_argument("--runs", type=int, default=5, help="cached runs in each mode; uncached ones are a third of them, at least one")
    parser.add_argument("--local-only", action="store_true", help="leave out Prefect and MLflow")
    args = parser.parse_args()
    recipes = args.recipe or ["recipes/vision-int8.yaml", "recipes/bert-int8.yaml"]
    print(machine())
    measured = list(_commands(recipes[0], 2 * args.runs))
    for recipe in recipes:
        measured += _local(recipe, args.runs)
        if not args.local_only:
            measured += _full(recipe, args.runs)
    print(table(["what", "n", "median (least-most) s", "limit s", ""], [one.row() for one in measured]))
    missed = [one.what for one in measured if one.missed]
    print("\nEvery limit is met." if not missed else f"\nMissed: {'; '.join(missed)}.")
    return 1 if missed else 0


def _commands(recipe: str, n: int) -> Iterator[Measured]:
    for arguments in (["--help"], ["validate", recipe]):
        run = _running(*arguments)
        run()  # the first one compiles the modules
        yield Measured(f"`ioptim {' '.join(arguments)}`", 0.35, tuple(run().seconds for _ in range(n)))


def _local(recipe: str, n: int) -> Iterator[Measured]:
    with tempfile.TemporaryDirectory() as folder:
        runs = [_running("run", recipe, "--json", "--no-cache", *LOCAL, home=Path(folder)) for _ in range(max(1, n // 3))]
        yield Measured(f"{recipe}: beside the steps, local", 2, tuple(_overhead(run()) for run in runs))
        again = _running("run", recipe, "--json", *LOCAL, home=Path(folder))
        yield Measured(f"{recipe}: all cached, local", 2, tuple(_cached(again()) for _ in range(n)))


def _full(recipe: str, n: int) -> Iterator[Measured]:
    with tempfile.TemporaryDirectory() as folder:
        new = _running("run", recipe, "--json", "--no-cache", *FULL, home=Path(folder))
        yield Measured(f"{recipe}: beside the steps, Prefect and MLflow, first time ever", 12, (_overhead(new()),))
        yield Measured(
            f"{recipe}: beside the steps, Prefect and MLflow", 6, tuple(_overhead(new()) for _ in range(max(1, n // 3)))
        )
        again = _running("run", recipe, "--json", *FULL, home=Path(folder))
        yield Measured(f"{recipe}: all cached, Prefect and MLflow", 6, tuple(_cached(again()) for _ in range(n)))


def _running(*arguments: str, home: Path | None = None) -> Callable[[], Timed]:
    return lambda: ioptim(*arguments, home=home).require(*ENDED)


def _overhead(run: Timed) -> float:
    """Wall time less the steps' own."""
    steps = run.json()["steps"]
    if any(step["cached"] for step in steps):
        raise SystemExit(f"{' '.join(run.command)} took steps from the store; its overhead was to be measured without")
    return run.seconds - sum(step["seconds"] for step in steps)


def _cached(run: Timed) -> float:
    """Wall time of a run that computed nothing."""
    computed = [step["id"] for step in run.json()["steps"] if not step["cached"]]
    if computed:
        raise SystemExit(f"{' '.join(run.command)} computed {', '.join(computed)} again; nothing had changed")
    return run.seconds


if __name__ == "__main__":
    raise SystemExit(main())
