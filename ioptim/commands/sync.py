"""`ioptim sync`: upload the runs that could not reach their MLflow server."""

from __future__ import annotations

import argparse

from ioptim.commands._common import home_of
from ioptim.errors import ExitCode
from ioptim.tracking import local


def main(args: argparse.Namespace) -> ExitCode:
    home = home_of(args)
    waiting = local.pending(home)
    if not waiting:
        print(f"nothing waits to be uploaded in {local.runs_folder(home)}")
        return ExitCode.PASS
    from ioptim.tracking.mlflow import sync

    for run in sync(home):
        print(f"{run.run_id}: {run.tracking.state} {run.tracking.url or run.tracking.uri or ''}".rstrip())
    return ExitCode.PASS
