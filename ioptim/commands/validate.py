"""`ioptim validate`: is the recipe well-formed? Looks at nothing but the file."""

from __future__ import annotations

import argparse

from ioptim.commands._common import load, print_json
from ioptim.errors import ExitCode


def main(args: argparse.Namespace) -> ExitCode:
    loaded = load(args)
    recipe = loaded.recipe
    if args.json:
        print_json({"status": "pass", "exit_code": 0, "recipe": recipe.name, "digest": recipe.digest, "problems": []})
    else:
        kinds = ", ".join(step.step for step in recipe.steps)
        print(f"{args.recipe}: valid. {len(recipe.steps)} steps ({kinds}) for {', '.join(t.name for t in recipe.targets)}")
    return ExitCode.PASS
