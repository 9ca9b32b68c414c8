"""One training in several processes of this machine: the step's own is the first, and it starts the others."""

from __future__ import annotations

import os
import tempfile
import threading
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path

from ioptim import isolate
from ioptim.core.step import Context
from ioptim.errors import IoptimError

RANK, MEETING = "RANK", "IOPTIM_MEETING"
"""Which of the processes this is; the file through which they find each other (no port is opened for it)."""
LOOPBACK = {"GLOO_SOCKET_IFNAME": "lo", "NCCL_SOCKET_IFNAME": "lo"}
"""They talk over the loopback interface alone."""
ENDS_S = 10.0
"""How long another process may take to say why it ended."""


def is_first() -> bool:
    """Whether this process writes down what all of them did."""
    return os.environ.get(RANK, "0") == "0"


@contextmanager
def several(count: int, cpu: bool, ctx: Context) -> Iterator[None]:
    """Within it, `count` processes run this very step on this very request, and accelerate knows each of them.

    The others end when this one does, however it does. Where one of them fails all end, with its error.
    """
    if count == 1:
        yield
    elif not is_first():
        meet(count, cpu)
        yield
    else:
        with tempfile.TemporaryDirectory(dir=ctx.out.parent, ignore_cleanup_errors=True) as folder:
            yield from _together(count, cpu, ctx, Path(folder))


def _together(count: int, cpu: bool, ctx: Context, folder: Path) -> Iterator[None]:
    shared = environment(count, cpu, folder / "meeting", ctx.hardware.threads)
    failed: list[IoptimError] = []
    others = [threading.Thread(target=_other, args=(ctx, rank, shared, folder, failed), daemon=True) for rank in range(1, count)]
    os.environ.update(shared | place(0))
    for other in others:
        other.start()
    try:
        meet(count, cpu)
        yield
    except IoptimError:
        raise
    except Exception as error:  # the silence of another, most likely: what it said is the reason
        others[0].join(ENDS_S)
        if failed:
            raise failed[0] from error
        raise
    for other in others:
        other.join()


def environment(count: int, cpu: bool, meeting: Path, threads: int) -> dict[str, str]:
    """What every one of them is told, as accelerate reads it; `threads` of the machine are shared out on the CPU."""
    told = {**LOOPBACK, MEETING: str(meeting), "WORLD_SIZE": str(count), "LOCAL_WORLD_SIZE": str(count)}
    return told | ({"ACCELERATE_USE_CPU": "true", "OMP_NUM_THREADS": str(max(1, threads // count))} if cpu else {})


def place(rank: int) -> dict[str, str]:
    """What one of them is told."""
    return {RANK: str(rank), "LOCAL_RANK": str(rank)}


def meet(count: int, cpu: bool) -> None:
    """accelerate would open a port on every interface; it takes a group that is there already."""
    import torch

    meeting, rank = Path(os.environ[MEETING]), int(os.environ[RANK])
    if not cpu:
        torch.cuda.set_device(rank)
    torch.distributed.init_process_group("gloo" if cpu else "nccl", init_method=meeting.as_uri(), rank=rank, world_size=count)


def _other(ctx: Context, rank: int, shared: Mapping[str, str], folder: Path, failed: list[IoptimError]) -> None:
    (out := folder / str(rank)).mkdir()
    try:
        isolate.call(ctx.step_worker, {**ctx.request, "out": str(out)}, log=folder / f"{rank}.log", env={**shared, **place(rank)})
    except IoptimError as error:
        failed.append(error)
