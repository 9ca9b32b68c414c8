"""One training in several processes of this machine: the step's own is the first, and it starts the others."""

from __future__ import annotations

import os
import socket
import tempfile
import threading
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path

from ioptim import isolate
from ioptim.core.step import Context
from ioptim.errors import IoptimError

RANK = "RANK"
FIRST = {"MASTER_ADDR": "127.0.0.1", "GLOO_SOCKET_IFNAME": "lo", "NCCL_SOCKET_IFNAME": "lo"}
"""They talk to each other over the loopback interface alone."""


def is_first() -> bool:
    """Whether this process writes down what all of them did."""
    return os.environ.get(RANK, "0") == "0"


@contextmanager
def several(count: int, cpu: bool, ctx: Context) -> Iterator[None]:
    """Within it, `count` processes run this very step on this very request; accelerate finds them by their environment.

    The others end when this one does, however it does. Where one of them fails all end, with its error.
    """
    if count == 1 or RANK in os.environ:
        yield
        return
    shared = {**FIRST, "MASTER_PORT": str(_free_port()), "WORLD_SIZE": str(count), "LOCAL_WORLD_SIZE": str(count)}
    shared |= {"ACCELERATE_USE_CPU": "true"} if cpu else {}
    failed: list[IoptimError] = []
    with tempfile.TemporaryDirectory(dir=ctx.out.parent) as folder:
        threads = [threading.Thread(target=_other, args=(ctx, rank, shared, Path(folder), failed), daemon=True) for rank in range(1, count)]
        os.environ.update(_place(0) | shared)
        for thread in threads:
            thread.start()
        try:
            yield
        except Exception as error:
            if failed:  # its silence is what this process stumbled over
                raise failed[0] from error
            raise
        for thread in threads:
            thread.join()


def _other(ctx: Context, rank: int, shared: Mapping[str, str], folder: Path, failed: list[IoptimError]) -> None:
    (out := folder / str(rank)).mkdir()
    try:
        isolate.call(ctx.step_worker, {**ctx.request, "out": str(out)}, log=folder / f"{rank}.log", env={**shared, **_place(rank)})
    except IoptimError as error:
        failed.append(error)


def _place(rank: int) -> dict[str, str]:
    return {RANK: str(rank), "LOCAL_RANK": str(rank)}


def _free_port() -> int:
    with socket.socket() as found:
        found.bind(("127.0.0.1", 0))
        return int(found.getsockname()[1])
