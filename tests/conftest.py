"""What every test stands on: no network, no telemetry, no server of the developer's, a store of its own."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

# Set before any library is imported: several read these once, at import.
os.environ.update(
    HF_HUB_OFFLINE="1",
    TRANSFORMERS_OFFLINE="1",
    DO_NOT_TRACK="true",
    MLFLOW_DISABLE_TELEMETRY="true",
    PREFECT_SERVER_ANALYTICS_ENABLED="false",
    TOKENIZERS_PARALLELISM="false",
)
for name in ("IOPTIM_HOME", "MLFLOW_RUN_ID", "MLFLOW_TRACKING_URI", "PREFECT_API_KEY", "PREFECT_API_URL", "PREFECT_PROFILE"):
    os.environ.pop(name, None)


@pytest.fixture
def home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """An empty store that `ioptim` uses in this test, in this process and its children."""
    path = tmp_path / "home"
    monkeypatch.setenv("IOPTIM_HOME", str(path))
    return path


@pytest.fixture(scope="session")
def shared() -> Path:
    """The folder of real models and data sets beside the checkout."""
    path = Path(__file__).parents[2] / "shared"
    if not path.is_dir():
        pytest.skip("there is no folder `shared` (real models and data) beside the checkout")
    return path
