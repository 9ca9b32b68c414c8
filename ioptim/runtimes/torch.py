"""PyTorch itself: what the model runs on before anything is done to it."""

from __future__ import annotations

import os
import shutil
import sysconfig
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from pydantic import Field

from ioptim.core.artifact import Format, ModelArtifact
from ioptim.core.runtime import Runtime, Session, Target
from ioptim.core.step import Note, Outcome, Written
from ioptim.core.target import Hardware
from ioptim.errors import StepError, UnavailableError
from ioptim.runtimes._device import gpu_index, gpu_objections, is_gpu, precision_objections, threads_of
from ioptim.torch_model import call, load_module

if TYPE_CHECKING:
    import numpy as np
    import torch


class Torch(Runtime):
    """The module as PyTorch runs it: eagerly, or through `torch.compile`. Attention is PyTorch's own (`sdpa`) where a model has it.

    `compile` copies the model: torch has nothing to write down. In mode `compile` inductor generates and builds C++ (Triton on a
    GPU) at the first inference, which therefore takes up to a minute, once more for batches above 1; sizes are dynamic, so later
    shapes need no further one.
    """

    runtime: Literal["torch"] = "torch"
    libraries = ("torch", "safetensors", "numpy")
    extra = "torch"
    accepts = frozenset({Format.TORCH})
    compiled = Format.TORCH

    mode: Literal["eager", "compile"] = Field("eager", description="operator by operator, or through torch.compile (inductor)")
    dtype: Literal["float32", "bfloat16"] = Field("float32", description="type of the parameters and of all floating computation")

    def check(self, target: Target, hardware: Hardware) -> list[str]:
        objections = gpu_objections(target, hardware)
        if self.dtype == "bfloat16":
            objections += precision_objections("bf16", target, hardware)
        if self.mode == "compile" and not is_gpu(target):
            objections += _compiler_objections()
        return objections

    def compile(self, model: ModelArtifact, target: Target, out: Path) -> Outcome:
        for name in model.files or (model.entry,):
            if name not in model.assets:
                (out / name).parent.mkdir(parents=True, exist_ok=True)
                shutil.copyfile(model.path / name, out / name)
        facts = {"runtime": self.runtime, "mode": self.mode, "dtype": self.dtype}
        written = Written(format=Format.TORCH, entry=model.entry, facts={"loader": model.facts.get("loader"), **facts})
        when = "when a session first runs" if self.mode == "compile" else "nothing is optimized"
        return Outcome(written=written, notes=(Note(text=f"torch {self.mode}: the weights are copied, {when}"),), facts=facts)

    def open(self, model: ModelArtifact, target: Target) -> Session:
        torch = _library()
        device = _device(target)
        module = load_module(model, attention=None).to(device=device, dtype=getattr(torch, self.dtype))
        facts = {
            "runtime": self.runtime,
            "version": torch.__version__,
            "device": str(device),
            "mode": self.mode,
            "dtype": str(next(module.parameters()).dtype).removeprefix("torch."),
            "threads": threads_of(target),
            "attention": getattr(getattr(module, "config", None), "_attn_implementation", None),
        }
        if self.mode == "compile":
            module = torch.compile(module, dynamic=True)
        return _TorchSession(module, model, facts)  # type: ignore[return-value]  # its facts are read-only

    def self_check(self, target: Target) -> list[float]:
        torch = _library()
        from ioptim.torch_model import named_outputs

        module = torch.nn.Linear(3, 3, bias=False)
        module.load_state_dict({"weight": 2 * torch.eye(3)})
        module = module.to(device=_device(target), dtype=getattr(torch, self.dtype))
        if self.mode == "compile":
            module = torch.compile(module)
        with torch.inference_mode():
            given = torch.tensor([[1.0, 2.0, 3.0]]).to(module.weight)
            values = named_outputs(module(given))["output"]
        return [float(value) for value in values[0].cpu()]


class _TorchSession:
    """A module called with arrays. Copies to and from a GPU are part of `run`, and so is waiting for it."""

    def __init__(self, module: torch.nn.Module, model: ModelArtifact, facts: Mapping[str, Any]) -> None:
        self._module: torch.nn.Module | None = module
        self._facts = facts
        self.inputs = model.inputs
        self.outputs = model.outputs

    @property
    def facts(self) -> Mapping[str, Any]:
        """Also how often torch.compile gave up and left a part to Python, and how many graphs it made, so far in this process."""
        if self._facts["mode"] == "eager":
            return self._facts
        from torch._dynamo.utils import counters

        graphs = int(counters["stats"]["unique_graphs"])
        return {**self._facts, "graphs": graphs, "graph_breaks": sum(counters["graph_break"].values())}

    def run(self, feeds: Mapping[str, np.ndarray]) -> dict[str, np.ndarray]:
        import torch

        if self._module is None:
            raise StepError("the session is closed")
        # One number for the whole process: another session may have set its own.
        if torch.get_num_threads() != self._facts["threads"]:
            torch.set_num_threads(self._facts["threads"])
        results = call(self._module, feeds, self.outputs)
        # NumPy has no bfloat16. Copying from a GPU waits until it has finished.
        return {name: (t.float() if t.dtype is torch.bfloat16 else t).cpu().numpy() for name, t in results.items()}

    def close(self) -> None:
        self._module = None


def _library() -> Any:
    try:
        import torch
    except ImportError as error:
        raise UnavailableError(f"torch cannot be imported ({error}); install it with: pip install 'ioptim[torch]'") from error
    return torch


def _device(target: Target) -> torch.device:
    import torch

    if not is_gpu(target):
        return torch.device("cpu")
    if not torch.cuda.is_available() or gpu_index(target) >= torch.cuda.device_count():
        raise UnavailableError(
            f"{target.device} was asked for; torch {torch.__version__} finds {torch.cuda.device_count()} CUDA devices. It needs an"
            " NVIDIA GPU, its driver and a CUDA build of torch (see https://pytorch.org/get-started/locally)"
        )
    return torch.device("cuda", gpu_index(target))


def _compiler_objections() -> list[str]:
    """Inductor builds C++ on the CPU: a compiler and Python's headers must be there."""
    compilers = [os.environ["CXX"]] if "CXX" in os.environ else ["g++", "clang++"]
    if not any(shutil.which(name) for name in compilers):
        return [f"torch mode compile needs a C++ compiler ({' or '.join(compilers)}): apt-get install g++, or use `mode: eager`"]
    header = Path(sysconfig.get_paths()["include"]) / "Python.h"
    if not header.is_file():
        return [f"torch mode compile needs Python's headers ({header}): apt-get install python3-dev, or use `mode: eager`"]
    return []
