"""torch: eager and compiled give the module's own outputs."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest
from pydantic import ValidationError

from ioptim.core.artifact import Format, ModelArtifact, TensorSpec, seal, verify
from ioptim.core.runtime import Target
from ioptim.core.target import Hardware
from ioptim.errors import StepError, UnavailableError
from ioptim.runtimes.torch import Torch

CODE = """
import torch

def build():
    return torch.nn.Linear(4, 3)
"""


@pytest.fixture
def linear_torch(tmp_path: Path) -> ModelArtifact:
    """A user's own module: y = x W' + 1, W[i, j] = i + j, with its code in the artifact."""
    import torch
    from safetensors.torch import save_file

    folder = tmp_path / "linear"
    (folder / "code").mkdir(parents=True)
    (folder / "code" / "mine.py").write_text(CODE)
    weight = torch.arange(3.0)[:, None] + torch.arange(4.0)
    save_file({"weight": weight, "bias": torch.ones(3)}, folder / "model.safetensors")
    return seal(
        ModelArtifact(
            path=folder,
            format=Format.TORCH,
            entry="model.safetensors",
            inputs=(TensorSpec(name="input", dtype="float32", shape=("batch", 4)),),
            outputs=(TensorSpec(name="logits", dtype="float32", shape=("batch", 3)),),
            facts={"loader": {"kind": "factory", "factory": "mine:build", "code": "code"}},
        )
    )


def test_unknown_options_are_refused() -> None:
    with pytest.raises(ValidationError):
        Torch(mode="fast")  # type: ignore[arg-type]


def test_compile_without_a_compiler(
    target_of: Callable[..., Target], no_gpu: Hardware, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setenv("PATH", str(tmp_path))
    monkeypatch.delenv("CXX", raising=False)
    says = "torch mode compile needs a C++ compiler (g++ or clang++): apt-get install g++, or use `mode: eager`"
    assert Torch(mode="compile").check(target_of(Torch()), no_gpu) == [says]
    assert Torch().check(target_of(Torch()), no_gpu) == []


def test_bfloat16_without_instructions(target_of: Callable[..., Target], no_gpu: Hardware) -> None:
    assert Torch(dtype="bfloat16").check(target_of(Torch()), no_gpu)[0].startswith("bf16 needs a CPU with one of")


@pytest.mark.integration
@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_outputs_dynamic_batch_and_facts(linear_torch: ModelArtifact, compiled: Callable, dtype: str) -> None:  # type: ignore[type-arg]
    import numpy as np

    outcome, artifact, session = compiled(Torch(dtype=dtype), linear_torch)  # type: ignore[arg-type]
    weight = np.add.outer(np.arange(4), np.arange(3)).astype(np.float32)
    for batch in (1, 5):
        x = np.random.default_rng(batch).standard_normal((batch, 4)).astype(np.float32)
        outputs = session.run({"input": x})
        assert list(outputs) == ["logits"] and outputs["logits"].dtype == np.float32
        np.testing.assert_allclose(outputs["logits"], x @ weight + 1, atol=1e-5 if dtype == "float32" else 0.2)
    assert session.facts["dtype"] == dtype
    assert session.facts["device"] == "cpu" and session.facts["threads"] == 1
    assert artifact.facts["loader"] == linear_torch.facts["loader"]
    assert [note.text for note in outcome.notes] == ["torch eager: the weights are copied, nothing is optimized"]
    assert verify(artifact) == [] and verify(linear_torch) == []


@pytest.mark.integration
def test_two_sessions_each_with_its_threads(linear_torch: ModelArtifact, target_of: Callable[..., Target]) -> None:
    import numpy as np
    import torch

    one, two = (Torch().open(linear_torch, target_of(Torch(), threads=n)) for n in (1, 2))
    for session, threads in ((one, 1), (two, 2), (one, 1)):
        session.run({"input": np.ones((1, 4), np.float32)})
        assert torch.get_num_threads() == threads


@pytest.mark.integration
def test_gpu_that_torch_does_not_find(linear_torch: ModelArtifact, target_of: Callable[..., Target]) -> None:
    import torch

    if torch.cuda.is_available():
        pytest.skip("torch finds a GPU here")
    with pytest.raises(UnavailableError, match=r"gpu was asked for; torch \S+ finds 0 CUDA devices\. It needs an NVIDIA GPU"):
        Torch().open(linear_torch, target_of(Torch(), "gpu"))


@pytest.mark.integration
def test_closed_and_wrongly_fed(linear_torch: ModelArtifact, target_of: Callable[..., Target]) -> None:
    import numpy as np

    session = Torch().open(linear_torch, target_of(Torch()))
    with pytest.raises(StepError, match=r"Linear failed on input \[2, 5\] float32"):
        session.run({"input": np.ones((2, 5), np.float32)})
    session.close()
    with pytest.raises(StepError, match="the session is closed"):
        session.run({"input": np.ones((2, 4), np.float32)})


@pytest.mark.integration
def test_self_check(target_of: Callable[..., Target]) -> None:
    assert Torch().self_check(target_of(Torch())) == [2.0, 4.0, 6.0]


@pytest.mark.integration
@pytest.mark.slow
def test_torch_compile(linear_torch: ModelArtifact, compiled: Callable, no_gpu: Hardware, target_of: Callable[..., Target]) -> None:  # type: ignore[type-arg]
    import numpy as np

    runtime = Torch(mode="compile")
    if objections := runtime.check(target_of(runtime), no_gpu):
        pytest.skip(objections[0])
    _, _, session = compiled(runtime, linear_torch)
    outputs = session.run({"input": np.ones((2, 4), np.float32)})
    assert outputs["logits"].tolist() == [[7.0, 11.0, 15.0]] * 2
    assert session.facts["graphs"] >= 1 and session.facts["graph_breaks"] == 0
