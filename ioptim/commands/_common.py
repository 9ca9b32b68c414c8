"""What several commands ask of the command line and the environment."""

from __future__ import annotations

import argparse
import json
import os
from pathlib import Path
from typing import Any

from ioptim.core.target import Hardware
from ioptim.environment import home_folder
from ioptim.plan import Plan, make_plan
from ioptim.recipe import Loaded, read_recipe


def home_of(args: argparse.Namespace) -> Path:
    """The folder of the store and the runs: --home, else IOPTIM_HOME, else ./.ioptim."""
    return home_folder(args.home)


def root_of(args: argparse.Namespace) -> Path | None:
    """The folder that recipe paths may not leave: --root, else IOPTIM_ROOT; None when any path is allowed."""
    root = args.root or os.environ.get("IOPTIM_ROOT")
    return Path(root).absolute() if root else None


def load(args: argparse.Namespace) -> Loaded:
    return read_recipe(args.recipe, args.set)


def plan_of(args: argparse.Namespace, loaded: Loaded, hardware: Hardware) -> Plan:
    return make_plan(loaded, hardware, root_of(args))


def print_json(document: Any) -> None:
    """The one JSON document of a command, on standard output."""
    print(json.dumps(document, indent=1, default=str))
