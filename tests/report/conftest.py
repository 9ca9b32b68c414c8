from __future__ import annotations

import importlib.util
from pathlib import Path
from types import ModuleType

import pytest


@pytest.fixture(scope="session")
def records() -> ModuleType:
    """The module beside this file: pytest's importlib mode puts no test folder on the path."""
    pytest.importorskip("numpy")
    spec = importlib.util.spec_from_file_location("report_records", Path(__file__).with_name("records.py"))
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module
