"""What several commands ask of the command line and the environment."""

from __future__ import annotations

import argparse
import contextlib
import json
import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from ioptim.core.target import Hardware
from ioptim.environment import home_folder
from ioptim.errors import UnavailableError
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
    return make_plan(loaded, hardware, root_of(args), home_of(args))


@contextlib.contextmanager
def writing(path: Path) -> Iterator[None]:
    """Around what writes a file that a command was asked for.

    Raises:
        UnavailableError: it cannot be written.
    """
    try:
        yield
    except OSError as error:
        raise UnavailableError(f"cannot write {path}: {error.strerror or error}. Its folder must exist and be writable") from error


def print_json(document: Any) -> None:
    """The one JSON document of a command, on standard output."""
    print(json.dumps(document, indent=1, default=str))
