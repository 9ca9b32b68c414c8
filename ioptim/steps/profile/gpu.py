"""What a CUDA target adds to the profile of a torch model: its device, and a recording by Nsight Systems where that is installed."""

from __future__ import annotations

import shutil
import subprocess
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ioptim import torch_model
from ioptim.core.artifact import ModelArtifact, open_artifact

if TYPE_CHECKING:
    import numpy as np

NSYS_ROWS = 8
NSYS_SECONDS = 300


def device_for(asked: str) -> str:
    """torch's name of the target's device; `cpu` where there is no CUDA, which the caller notes."""
    if asked == "cpu":
        return "cpu"
    import torch

    index = asked.partition(":")[2] or "0"
    return f"cuda:{index}" if torch.cuda.is_available() and int(index) < torch.cuda.device_count() else "cpu"


def record_with_nsys(model: ModelArtifact, feeds: Sequence[Mapping[str, np.ndarray]], device: str, files: Path) -> str:
    """Run a few rows again under `nsys profile` in a process of their own; the recording is kept as `nsys.nsys-rep`.

    Returns the note for the reader: where the recording is, or why there is none.
    """
    nsys = shutil.which("nsys")
    if nsys is None:
        return "Nsight Systems (nsys) is not installed; the trace has the kernels by CUPTI"
    import numpy as np

    rows = files / "nsys_rows.npz"
    arrays: dict[str, Any] = {f"{i}/{name}": array for i, feed in enumerate(feeds[:NSYS_ROWS]) for name, array in feed.items()}
    np.savez(rows, **arrays)
    command = [nsys, "profile", "--trace=cuda,nvtx,cudnn,cublas", "--sample=none", "--cpuctxsw=none", "--force-overwrite=true"]
    command += [f"--output={files / 'nsys'}", sys.executable, "-m", __name__, str(model.path), str(rows), device]
    try:
        done = subprocess.run(command, capture_output=True, text=True, timeout=NSYS_SECONDS, check=False)
    except subprocess.TimeoutExpired:
        return f"nsys did not end within {NSYS_SECONDS} seconds; there is no recording by it"
    finally:
        rows.unlink(missing_ok=True)
    if done.returncode or not (files / "nsys.nsys-rep").is_file():
        last = (done.stderr.strip() or done.stdout.strip() or f"exit code {done.returncode}").splitlines()[-1]
        return f"nsys failed, there is no recording by it: {last}"
    return "Nsight Systems recorded kernels and NVTX ranges: nsys.nsys-rep, which `nsys-ui` opens"


def run_rows(path: Path, rows: Path, device: str) -> None:
    """In the recorded process: the rows with an NVTX range around every module, after one row to warm up."""
    import numpy as np
    import torch

    from ioptim.steps.profile.torch_module import nvtx_ranges

    module = torch_model.load_module(open_artifact(path), attention=None).to(device)
    feeds: dict[str, dict[str, np.ndarray]] = {}
    with np.load(rows, allow_pickle=False) as arrays:
        for key in arrays.files:
            number, _, name = key.partition("/")
            feeds.setdefault(number, {})[name] = arrays[key]
    torch_model.call(module, next(iter(feeds.values())))
    with nvtx_ranges(module):
        for feed in feeds.values():
            torch_model.call(module, feed)
    torch.cuda.synchronize(device)


if __name__ == "__main__":
    run_rows(Path(sys.argv[1]), Path(sys.argv[2]), sys.argv[3])
