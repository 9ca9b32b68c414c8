"""`ioptim`: parse, call, print, exit code. Each command is a file in `ioptim/commands/`, imported when it is called."""

from __future__ import annotations

import argparse
import atexit
import contextlib
import gc
import importlib
import json
import os
import signal
import sys
import traceback
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NoReturn

from ioptim import __version__
from ioptim.environment import home_folder, quiet_environment
from ioptim.errors import ExitCode, IoptimError, PlanError, RecipeError, UnavailableError


def main(argv: Sequence[str] | None = None) -> int:
    """Run one command and return its exit code. Nothing a user did wrong shows a traceback unless `--debug` is given."""
    args = _parser().parse_args(argv)
    quiet_environment()
    signal.signal(signal.SIGTERM, _terminated)
    atexit.register(gc.freeze)  # Prefect and MLflow leave a million objects: looking through them before they go takes half a second
    gc.disable()  # what an import makes stays: to look for garbage among it is a tenth of the time
    _server_ahead(args)
    command = importlib.import_module(f"ioptim.commands.{args.module}")
    gc.enable()
    try:
        return int(command.main(args))
    except KeyboardInterrupt:
        return _failed(args, "interrupted: what had finished is kept, and the same command goes on from there", ExitCode.INTERRUPTED)
    except IoptimError as error:
        if args.debug:
            traceback.print_exc()
        return _failed(args, error, error.exit_code)
    except BrokenPipeError:
        sys.stderr.close()  # the reader has gone (`ioptim steps | head`): no complaint about that either
        return ExitCode.PASS


def _server_ahead(args: argparse.Namespace) -> None:
    """Prefect's server comes up while our own modules are imported: 0.3 s of a run.

    Only where one has been before: a command that is refused makes no folder.
    """
    if args.command == "run" and args.engine == "prefect" and not os.environ.get("PREFECT_API_URL"):
        from ioptim import prefect_server

        home = home_folder(args.home) / prefect_server.FOLDER
        if (home / prefect_server.DATABASE).is_file():
            with contextlib.suppress(UnavailableError, ImportError):  # not writable, no Prefect: it is said when the run asks for it
                prefect_server.start(home)


def _failed(args: argparse.Namespace, error: IoptimError | str, code: ExitCode) -> int:
    print(f"ioptim: {error}", file=sys.stderr)
    if getattr(args, "json", False):
        problems = [vars(p) for p in error.problems] if isinstance(error, RecipeError | PlanError) else []
        document = {"status": code.name.lower(), "exit_code": int(code), "error": str(error), "problems": problems}
        print(json.dumps(document, indent=1))
    return code


def _terminated(*_: Any) -> NoReturn:
    """A polite kill ends a run as Ctrl-C does: children first."""
    raise KeyboardInterrupt


def _days(text: str) -> float:
    try:
        days = float(text)
    except ValueError:
        days = -1.0
    if not 0 <= days <= 36_500:  # not nan, and no date before the year 1
        raise argparse.ArgumentTypeError(f"{text!r} is not a number of days from 0 to 36500")
    return days


class _Parser(argparse.ArgumentParser):
    """Suggests the word that was meant, and exits with the code for bad usage."""

    def error(self, message: str) -> NoReturn:
        print(f"ioptim: {message}. See: {self.prog} --help", file=sys.stderr)
        raise SystemExit(int(ExitCode.BAD_RECIPE))


def _parser() -> argparse.ArgumentParser:
    parser = _Parser(prog="ioptim", description="Make a trained model faster, smaller and cheaper, with verdicts that can be believed.")
    parser.add_argument("--version", action="version", version=f"ioptim {__version__}")
    commands = parser.add_subparsers(dest="command", required=True, metavar="COMMAND")

    common = _Parser(add_help=False)
    common.add_argument("--debug", action="store_true", help="show tracebacks")
    home = _Parser(add_help=False)
    home.add_argument("--home", type=Path, metavar="DIR", help="folder of the store and the runs (IOPTIM_HOME; default ./.ioptim)")
    as_json = _Parser(add_help=False)
    as_json.add_argument("--json", action="store_true", help="print one JSON document on standard output and nothing else there")
    recipe = _Parser(add_help=False)
    recipe.add_argument("recipe", type=Path, help="recipe file (YAML)")
    recipe.add_argument(
        "--set", action="append", default=[], metavar="PATH=VALUE", help="override a value, e.g. steps.quantize.scheme=int8-dynamic"
    )
    root = _Parser(add_help=False)
    root.add_argument("--root", type=Path, metavar="DIR", help="refuse recipe paths that leave this folder (IOPTIM_ROOT)")

    def add(name: str, help: str, *parents: _Parser, module: str = "") -> _Parser:
        command = commands.add_parser(name, help=help, description=help, parents=[*parents, common])
        command.set_defaults(module=module or name)
        return command

    run = add("run", "run a recipe", recipe, root, home, as_json)
    run.add_argument("--engine", choices=["prefect", "local"], default="prefect", help="what walks the graph (default: prefect)")
    run.add_argument("--tracking", choices=["mlflow", "none"], default="mlflow", help="where the run is remembered (default: mlflow)")
    run.add_argument("--force", action="append", default=[], metavar="STEP", help="compute this step again (id or kind)")
    run.add_argument("--no-cache", action="store_true", help="compute everything again")

    add("plan", "show what a run would do; runs nothing", recipe, root, home, as_json)
    add("validate", "check a recipe; runs nothing", recipe, as_json)
    schema = add("schema", "print the JSON schema of a recipe")
    schema.add_argument("--output", type=Path, metavar="FILE", help="write it to a file")
    for name, what in (("steps", "steps"), ("runtimes", "runtimes"), ("tasks", "tasks")):
        kinds = add(name, f"list the {what} there are, with their fields", as_json, module="kinds")
        kinds.add_argument("name", nargs="?", help="show one in full")
    add("doctor", "show the hardware and make every runtime compute three numbers", as_json)
    report = add("report", "show a run again, or write its report", home, as_json)
    report.add_argument("run", nargs="?", default="latest", help="run id, its beginning, or latest (default)")
    report.add_argument("--list", action="store_true", help="list the runs there are")
    verify = add("verify", "check that what a run recorded still holds", home, as_json)
    verify.add_argument("run", nargs="?", default="latest", metavar="RUN", help="run id, its beginning, or latest (default)")
    promote = add("promote", "make what a run compiled the champions that later runs of its recipe are measured against", home, as_json)
    promote.add_argument("run", nargs="?", default="latest", metavar="RUN", help="run id, its beginning, or latest (default)")
    promote.add_argument("--step", metavar="ID", help="promote what this compile step made; needed where several were for one target")
    promote.add_argument("--force", action="store_true", help="promote a run that is no pass; its champions say so")
    compare = add("compare", "show several runs side by side", home, as_json)
    compare.add_argument("runs", nargs="+", metavar="RUN", help="run id, its beginning, or latest")
    compare.add_argument("--html", type=Path, metavar="FILE", help="also write an HTML page")
    cache = add("cache", "look after the store", home, as_json)
    cache.add_argument("action", choices=["ls", "verify", "prune"])
    cache.add_argument("--older-than", type=_days, default=30.0, metavar="DAYS", help="prune: results older than this (default: 30)")
    cache.add_argument("--dry-run", action="store_true", help="prune: only say what would go")
    add("sync", "upload runs that could not reach their MLflow server", home)
    ui = add("ui", "start MLflow's page on the local store (loopback only)", home)
    ui.add_argument("--port", type=int, default=5000)
    return parser


if __name__ == "__main__":
    raise SystemExit(main())
