from __future__ import annotations

import subprocess
import sys

QUIET = "from ioptim.environment import quiet_environment; quiet_environment(); import os, sys, logging; "


def _printed(code: str, **env: str) -> str:
    env = {"PYTHONPATH": ":".join(sys.path), **env}
    result = subprocess.run([sys.executable, "-c", QUIET + code], env=env, capture_output=True, text=True)
    assert result.returncode == 0, result.stderr
    return result.stdout.strip()


def test_telemetry_is_off_whatever_the_caller_has_set() -> None:
    names = ("DO_NOT_TRACK", "MLFLOW_DISABLE_TELEMETRY", "PREFECT_SERVER_ANALYTICS_ENABLED", "HF_HUB_DISABLE_TELEMETRY")
    got = _printed(f"print(*(os.environ[n] for n in {names!r}))", DO_NOT_TRACK="0", MLFLOW_DISABLE_TELEMETRY="false")
    assert got == "true true false 1"


def test_other_settings_of_the_caller_are_kept() -> None:
    code = "print(os.environ['MLFLOW_HTTP_REQUEST_TIMEOUT'], os.environ['TOKENIZERS_PARALLELISM'])"
    assert _printed(code, MLFLOW_HTTP_REQUEST_TIMEOUT="300") == "300 false"


def test_openvino_s_telemetry_package_cannot_be_imported() -> None:
    code = """
try:
    import openvino_telemetry
except ImportError:
    print("gone")
"""
    result = subprocess.run([sys.executable, "-c", QUIET + "\n" + code], capture_output=True, text=True)
    assert result.stdout.strip() == "gone"


def test_nothing_heavy_is_imported() -> None:
    assert _printed("print([n for n in ('pydantic', 'prefect', 'mlflow', 'numpy') if n in sys.modules])") == "[]"
