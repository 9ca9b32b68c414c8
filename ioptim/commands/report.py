"""`ioptim report`: show a run again, write its report anew, or list the runs."""

from __future__ import annotations

import argparse
import sys

from ioptim.commands._common import home_of, print_json, writing
from ioptim.commands.run import document
from ioptim.errors import ExitCode
from ioptim.report import summary_text, write_report
from ioptim.tracking import local


def main(args: argparse.Namespace) -> ExitCode:
    if args.list:
        return _list(args)
    home = home_of(args)
    folder = local.find_run(home, args.run)
    record = local.read_run(home, folder)
    with writing(folder / local.REPORT):
        path = write_report(record, folder)
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
