"""What every test stands on: no network, no telemetry, no server of the developer's, a store of its own."""

from __future__ import annotations

import os
import signal
from collections.abc import Callable
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

# A shell starts what it puts in the background deaf to Ctrl-C, and every child with it: those that tests interrupt must hear it.
if signal.getsignal(signal.SIGINT) is signal.SIG_IGN:
    signal.signal(signal.SIGINT, signal.default_int_handler)


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


@pytest.fixture
def attention_at(tmp_path: Path) -> Callable[..., Path]:
    """An ONNX file with one layer of self-attention on embeddings, as the TorchScript exporter writes it at an opset.

    Inputs `input_ids` and `attention_mask` (batch, sequence) int64, output `y` (batch, sequence, 8). With `flat` it multiplies
    (batch · sequence, 8).
    """
    torch = pytest.importorskip("torch")

    class Layer(torch.nn.Module):  # type: ignore[name-defined,misc]
        def __init__(self, flat: bool) -> None:
            super().__init__()
            self.flat = flat
            self.words, self.places = torch.nn.Embedding(128, 8), torch.nn.Embedding(64, 8)
            self.register_buffer("positions", torch.arange(64)[None])
            self.weights = torch.nn.ParameterList([torch.randn(8, 8) for _ in "qkv"])
            self.biases = torch.nn.ParameterList([torch.randn(8) for _ in "qkv"])
            self.out, self.before, self.after = torch.nn.Linear(8, 8), torch.nn.LayerNorm(8), torch.nn.LayerNorm(8)

        def forward(self, ids, mask):  # type: ignore[no-untyped-def]
            batch, sequence = ids.shape
            x = self.before(self.words(ids) + self.places(self.positions[:, :sequence]))
            read = x.view(-1, 8) if self.flat else x
            parts = [read @ w + b for w, b in zip(self.weights, self.biases, strict=True)]
            q, k, v = (part.view(batch, sequence, 2, 4).transpose(1, 2) for part in parts)
            scores = q @ k.transpose(2, 3) / 2 + torch.where(mask[:, None, None, :] == 1, 0.0, -1e9)
            return self.after(x + self.out((scores.softmax(-1) @ v).transpose(1, 2).reshape(batch, sequence, 8)))

    def make(opset: int, *, flat: bool = False) -> Path:
        torch.manual_seed(0)
        folder = tmp_path / f"opset{opset}"
        folder.mkdir()
        torch.onnx.export(
            Layer(flat).eval(),
            (torch.ones(2, 6, dtype=torch.int64),) * 2,
            str(folder / "model.onnx"),
            input_names=["input_ids", "attention_mask"],
            output_names=["y"],
            dynamic_axes={name: {0: "batch", 1: "sequence"} for name in ("input_ids", "attention_mask", "y")},
            opset_version=opset,
            dynamo=False,
        )
        return folder / "model.onnx"

    return make
