"""`ioptim ui`: MLflow's page on the local store, for this machine only."""

from __future__ import annotations

import argparse
import os
import sys

from ioptim.commands._common import home_of
from ioptim.errors import ExitCode, UnavailableError
from ioptim.plan import installed


def main(args: argparse.Namespace) -> ExitCode:
    """Replaces this process by MLflow's server, so that Ctrl-C ends it."""
    database = home_of(args) / "mlflow.db"
    if not installed("mlflow"):
        raise UnavailableError("mlflow is not installed. Install it with: pip install 'ioptim[track]'")
    if not database.is_file():
        raise UnavailableError(f"there is no {database} yet; `ioptim run RECIPE` makes it, or name its folder with --home")
    # Without these MLflow starts nine processes; the page needs one.
    os.environ["MLFLOW_SERVER_ENABLE_JOB_EXECUTION"] = "false"
    where = ["--backend-store-uri", f"sqlite:///{database}", "--default-artifact-root", (home_of(args) / "mlflow-artifacts").as_uri()]
    # Without the view MLflow opens on its pages for language models' traces, where no run is to be seen.
    print(f"http://127.0.0.1:{args.port}/#/experiments?workflowType=machine_learning  (Ctrl-C ends it)", flush=True)
    command = [sys.executable, "-m", "mlflow", "server", *where, "--host", "127.0.0.1", "--port", str(args.port), "--workers", "1"]
    os.execv(sys.executable, command)
    return ExitCode.PASS
