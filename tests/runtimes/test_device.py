"""Objections to hardware that is not there; threads when a target names none."""

from __future__ import annotations

import os
from collections.abc import Callable

import pytest

from ioptim.core.runtime import Runtime, Target
from ioptim.core.target import Hardware
from ioptim.runtimes._device import gpu_index, precision_objections, threads_of
from ioptim.runtimes.null import Null
from ioptim.runtimes.onnxruntime import OnnxRuntime
from ioptim.runtimes.tensorrt import TensorRt
from ioptim.runtimes.torch import Torch


@pytest.mark.parametrize("runtime", [Torch(), OnnxRuntime(), TensorRt()])
def test_gpu_that_is_not_there(runtime: Runtime, target_of: Callable[..., Target], no_gpu: Hardware, one_gpu: Hardware) -> None:
    instead = "choose another runtime" if isinstance(runtime, TensorRt) else "write `device: cpu`"
    assert runtime.check(target_of(runtime, "gpu"), no_gpu) == [
        f"the target here asks for gpu; no NVIDIA GPU is found here (nvidia-smi lists none): {instead}, or run on a machine"
        " that has one"
    ]
    assert runtime.check(target_of(runtime, "gpu:1"), one_gpu) == [
        "the target here asks for gpu:1; this machine has gpu:0 NVIDIA L4: write `device: gpu:0`, or run on a machine that"
        " has one"
    ]


def test_gpu_that_is_there(target_of: Callable[..., Target], one_gpu: Hardware) -> None:
    assert Torch().check(target_of(Torch(), "gpu:0"), one_gpu) == []
    assert gpu_index(target_of(Null(), "gpu")) == 0
    assert gpu_index(target_of(Null(), "gpu:3")) == 3


def test_half_precision_without_instructions(target_of: Callable[..., Target], no_gpu: Hardware) -> None:
    says = "bf16 needs a CPU with one of amx_bf16, avx512_bf16, avx_ne_convert, bf16; A CPU has avx2. Use f32"
    assert precision_objections("bf16", target_of(Null()), no_gpu) == [says]
    with_bf16 = no_gpu.model_copy(update={"cpu_flags": ("avx2", "avx512_bf16")})
    assert precision_objections("bf16", target_of(Null()), with_bf16) == []
    assert precision_objections("f32", target_of(Null()), no_gpu) == []


def test_threads(target_of: Callable[..., Target]) -> None:
    assert threads_of(target_of(Null(), threads=3)) == 3
    assert 1 <= threads_of(target_of(Null(), threads=None)) <= (os.cpu_count() or 1)
