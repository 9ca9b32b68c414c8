"""What can be checked of the profile of a GPU where there is none: what it asks for, and what it says when that is not there."""

from __future__ import annotations

import stat
from pathlib import Path
from typing import Any

import pytest

from ioptim.core.artifact import Format, ModelArtifact
from ioptim.steps.profile import gpu

np = pytest.importorskip("numpy")

NSYS = """#!/bin/sh
echo "$@" > {told}
for argument in "$@"; do
  case "$argument" in --output=*) touch "${{argument#--output=}}.nsys-rep" ;; esac
done
exit {code}
"""


def model(folder: Path) -> ModelArtifact:
    return ModelArtifact(path=folder, format=Format.TORCH, entry="model.safetensors")


def feeds() -> list[dict[str, Any]]:
    return [{"ids": np.arange(3)[None]} for _ in range(20)]


def installed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, code: int) -> Path:
    told = tmp_path / "told"
    script = tmp_path / "bin" / "nsys"
    script.parent.mkdir()
    script.write_text(NSYS.format(told=told, code=code))
    script.chmod(script.stat().st_mode | stat.S_IXUSR)
    monkeypatch.setenv("PATH", f"{script.parent}:/usr/bin:/bin")
    return told


def test_the_device_is_the_cpu_where_torch_sees_no_gpu(monkeypatch: pytest.MonkeyPatch) -> None:
    torch = pytest.importorskip("torch")
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    assert gpu.device_for("gpu") == "cpu"
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 2)
    assert [gpu.device_for(asked) for asked in ("cpu", "gpu", "gpu:1", "gpu:2")] == ["cpu", "cuda:0", "cuda:1", "cpu"]


def test_without_nsys_the_note_says_so(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PATH", str(tmp_path))
    said = gpu.record_with_nsys(model(tmp_path), feeds(), "cuda:0", tmp_path)
    assert said == "Nsight Systems (nsys) is not installed; the trace has the kernels by CUPTI"


def test_nsys_records_a_process_of_its_own(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    told = installed(tmp_path, monkeypatch, 0)
    said = gpu.record_with_nsys(model(tmp_path), feeds(), "cuda:0", tmp_path)
    assert said == "Nsight Systems recorded kernels and NVTX ranges: nsys.nsys-rep, which `nsys-ui` opens"
    words = told.read_text().split()
    assert words[:2] == ["profile", "--trace=cuda,nvtx,cudnn,cublas"]
    assert words[-5:] == ["-m", "ioptim.steps.profile.gpu", str(tmp_path), str(tmp_path / "nsys_rows.npz"), "cuda:0"]
    assert not (tmp_path / "nsys_rows.npz").exists()


def test_a_recording_that_fails_is_said(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    installed(tmp_path, monkeypatch, 3)
    assert gpu.record_with_nsys(model(tmp_path), feeds(), "cuda:0", tmp_path) == "nsys failed, there is no recording by it: exit code 3"


@pytest.mark.integration
def test_every_module_has_its_nvtx_range(monkeypatch: pytest.MonkeyPatch) -> None:
    torch = pytest.importorskip("torch")
    from ioptim.steps.profile.torch_module import nvtx_ranges

    events: list[str] = []
    monkeypatch.setattr(torch.cuda.nvtx, "range_push", events.append)
    monkeypatch.setattr(torch.cuda.nvtx, "range_pop", lambda: events.append("."))
    module = torch.nn.Sequential(torch.nn.Linear(2, 2), torch.nn.ReLU())
    with nvtx_ranges(module):
        module(torch.ones(1, 2))
    module(torch.ones(1, 2))
    assert events == ["Sequential", "0", ".", "1", ".", "."], "and none after the block"


@pytest.mark.device
def test_the_profile_of_a_gpu(tmp_path: Path) -> None:
    torch = pytest.importorskip("torch")
    if not torch.cuda.is_available():
        pytest.skip("torch sees no CUDA device")
    from ioptim.roofline import cuda_roofs

    roofs = cuda_roofs("cuda:0")
    assert roofs.peaks["float16"] > roofs.peaks["float32"]
    assert roofs.memory_bandwidth > 100e9
