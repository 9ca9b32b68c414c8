"""What every process of ioptim sets before it imports a library: no telemetry, no chatter. Standard library only."""

from __future__ import annotations

import gc
import importlib
import logging
import os
import sys
import threading
from collections.abc import Mapping
from pathlib import Path

FORCED: Mapping[str, str] = {
    # MLflow honours the word `true` only; huggingface_hub and Prefect take it too.
    "DO_NOT_TRACK": "true",
    "MLFLOW_DISABLE_TELEMETRY": "true",
    "PREFECT_SERVER_ANALYTICS_ENABLED": "false",
    "HF_HUB_DISABLE_TELEMETRY": "1",
}
"""Telemetry off, whatever the caller's environment says."""

PREFERRED: Mapping[str, str] = {
    # The console stays ours; the same records still reach Prefect's API, so its UI shows them.
    "PREFECT_LOGGING_HANDLERS_CONSOLE_LEVEL": "CRITICAL",
    "PREFECT_LOGGING_INTERNAL_LEVEL": "CRITICAL",
    # A connection lost at exit is retried for a minute otherwise.
    "PREFECT_CLIENT_MAX_RETRIES": "2",
    "MLFLOW_LOGGING_LEVEL": "ERROR",
    "MLFLOW_SUPPRESS_PRINTING_URL_TO_STDOUT": "true",
    "MLFLOW_ENABLE_ARTIFACTS_PROGRESS_BAR": "false",
    # A tracking server that is away must not hold the run: the defaults are 7 tries of 120 s.
    "MLFLOW_HTTP_REQUEST_MAX_RETRIES": "1",
    "MLFLOW_HTTP_REQUEST_TIMEOUT": "20",
    "HF_HUB_DISABLE_PROGRESS_BARS": "1",
    # The tokenizer's threads would compete with the model being measured, and warn after a fork.
    "TOKENIZERS_PARALLELISM": "false",
    # Threads of an OpenMP region that wait for each other spin for milliseconds. Where another program wants the same cores, they
    # wait for its time slice: a MiniLM in torch took 170 ms a row on two shared cores, and 17 ms so. Benchmarks undo it.
    "OMP_WAIT_POLICY": "PASSIVE",
    # Looking for plug-ins reads the metadata of every installed distribution: 15 ms in each process.
    "PYDANTIC_DISABLE_PLUGINS": "__all__",
}
"""Defaults that the caller's environment may change."""

_early: threading.Thread | None = None

NOISY_LOGGERS = ("mlflow", "alembic")


def home_folder(given: Path | None) -> Path:
    """The folder of the store and the runs: the one given, else IOPTIM_HOME, else ./.ioptim."""
    return Path(given or os.environ.get("IOPTIM_HOME") or ".ioptim").absolute()


def quiet_environment() -> None:
    """Switch off telemetry and chatter of every library that may be imported later, here and in child processes.

    Call it before any heavy import: Prefect and MLflow read their settings once.
    """
    os.environ.update(FORCED)
    for name, value in PREFERRED.items():
        os.environ.setdefault(name, value)
    # OpenVINO and NNCF send events through this package unless a file in the user's home forbids it, and have no variable
    # for it. Both do without when it cannot be imported.
    sys.modules.setdefault("openvino_telemetry", None)  # type: ignore[arg-type]
    for name in NOISY_LOGGERS:
        logging.getLogger(name).setLevel(logging.ERROR)


def import_early(*names: str) -> None:
    """Begin to import these in the background, one after the other, in the order given.

    Two threads that import libraries with common parts can meet a half-imported module, so whoever needs one of them calls
    `finish_imports` first, and only this thread imports until then.
    """
    global _early
    finish_imports()
    _early = threading.Thread(target=_import, args=names, name="import-early", daemon=True)
    _early.start()


def finish_imports() -> None:
    """Wait for what `import_early` began; one that failed fails again, with its message, where it is needed."""
    global _early
    if _early is not None:
        _early.join()
        _early = None


def _import(*names: str) -> None:
    gc.disable()  # a library's classes stay: looking for garbage meanwhile costs a fifth of the time
    try:
        for name in names:
            importlib.import_module(name)
    except ImportError:
        return
    finally:
        gc.freeze()
        gc.enable()
