from __future__ import annotations

import importlib.util
import sys
from pathlib import Path

# pytest runs with --import-mode=importlib, which puts no test folder on the path.
_spec = importlib.util.spec_from_file_location("tracking_records", Path(__file__).with_name("records.py"))
assert _spec is not None and _spec.loader is not None
sys.modules.setdefault("tracking_records", importlib.util.module_from_spec(_spec))
_spec.loader.exec_module(sys.modules["tracking_records"])
