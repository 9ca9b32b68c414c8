"""`ioptim report`: show a run again, write its report anew, or list the runs."""

from __future__ import annotations

import argparse
import sys

from ioptim.commands._common import home_of, print_json
from ioptim.commands.run import document
from ioptim.errors import ExitCode
from ioptim.report import summary_text, write_report
from ioptim.tracking import local


def main(args: argparse.Namespace) -> ExitCode:
    home = home_of(args)
    if args.list:
        return _list(args)
    record = local.read_run(home, args.run)
    path = write_report(record, local.run_folder(home, record.run_id))
    record = record.model_copy(update={"report": str(path)})
    if args.json:
        print_json(document(record))
    else:
        print(summary_text(record, colour=sys.stdout.isatty()))
    return ExitCode.PASS


def _list(args: argparse.Namespace) -> ExitCode:
    runs = local.list_runs(home_of(args))
    if args.json:
        print_json([{"run_id": r.run_id, "recipe": r.recipe, "status": r.status.value, "started": r.started} for r in runs])
        return ExitCode.PASS
    for run in runs:
        print(f"{run.run_id}  {run.status.value:<12} {run.seconds:8.1f} s  {run.recipe}")
    print(f"{len(runs)} runs in {local.runs_folder(home_of(args))}")
    return ExitCode.PASS
