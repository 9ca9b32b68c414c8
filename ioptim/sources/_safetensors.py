"""safetensors files, read by their header: no library, no weights in memory.

Format: 8 bytes (little endian) with the header's length, the header as JSON, then the tensors' bytes.
https://github.com/huggingface/safetensors#format
"""

from __future__ import annotations

import json
import shutil
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from math import prod
from pathlib import Path
from typing import Any

MAX_HEADER = 100_000_000
"""The reference reader's own limit."""


class NotSafetensorsError(ValueError):
    """What is wrong with a file that should be safetensors, in words for the user."""


@dataclass(frozen=True)
class Header:
    """Name, dtype, shape and place of every tensor; `start` is where the tensors' bytes begin."""

    tensors: Mapping[str, Mapping[str, Any]]
    metadata: Mapping[str, str]
    start: int
    end: int

    @property
    def shapes(self) -> dict[str, tuple[int, ...]]:
        return {name: tuple(tensor["shape"]) for name, tensor in self.tensors.items()}

    @property
    def float_shapes(self) -> dict[str, tuple[int, ...]]:
        """Shapes of the floating tensors: older files also keep tables of numbers that modules compute themselves."""
        return {name: tuple(tensor["shape"]) for name, tensor in self.tensors.items() if tensor["dtype"].startswith(("F", "BF"))}

    @property
    def float_dtypes(self) -> frozenset[str]:
        """How the floating tensors are stored: F32, F16, BF16, F8_E4M3."""
        return frozenset(tensor["dtype"] for tensor in self.tensors.values() if tensor["dtype"].startswith(("F", "BF")))


def read_header(path: Path) -> Header:
    """The header of a safetensors file whose length is what the header says.

    Raises:
        NotSafetensorsError: another kind of file, a broken header, or bytes missing or left over.
    """
    size = path.stat().st_size
    with path.open("rb") as file:
        head = file.read(8)
        length = int.from_bytes(head, "little")
        if len(head) < 8 or not 2 <= length <= min(size - 8, MAX_HEADER):
            raise NotSafetensorsError(_other_kind(path, size, length))
        text = file.read(length)
    try:
        header = json.loads(text)
        metadata = header.pop("__metadata__", {})
        end = 8 + length + max((tensor["data_offsets"][1] for tensor in header.values()), default=0)
        for tensor in header.values():
            prod(tensor["shape"])
            str.upper(tensor["dtype"])
    except (ValueError, KeyError, TypeError, AttributeError, IndexError) as error:
        raise NotSafetensorsError(f"{path} is not a safetensors file: its header is not the JSON it should be") from error
    if size != end:
        state = "is truncated" if size < end else "has bytes left over"
        raise NotSafetensorsError(f"{path} {state}: its header says {end:,} bytes, the file has {size:,}. Copy or download it again")
    return Header(header, metadata, 8 + length, end)


def merge(shards: Sequence[Path], out: Path) -> None:
    """Write all tensors of several files into one, copying bytes; memory stays small whatever the model's size."""
    merged: dict[str, Any] = {"__metadata__": {"format": "pt"}}
    headers = [read_header(shard) for shard in shards]
    offset = 0
    for header in headers:
        for name, tensor in header.tensors.items():
            start, end = tensor["data_offsets"]
            merged[name] = {**tensor, "data_offsets": [start + offset, end + offset]}
        offset += header.end - header.start
    text = json.dumps(merged, separators=(",", ":")).encode()
    text += b" " * (-len(text) % 8)  # tensors start on 8 bytes, as the format asks
    with out.open("wb") as file:
        file.write(len(text).to_bytes(8, "little") + text)
        for shard, header in zip(shards, headers, strict=True):
            with shard.open("rb") as part:
                part.seek(header.start)
                shutil.copyfileobj(part, file, 1 << 20)


def _other_kind(path: Path, size: int, length: int) -> str:
    with path.open("rb") as file:
        start = file.read(64)
    if size == 0:
        return f"{path} is empty"
    if start.startswith(b"version https://git-lfs"):
        return f"{path} is a Git LFS pointer, not the weights; fetch them with: git lfs pull"
    if start.startswith(b"PK\x03\x04") or start[:1] == b"\x80":
        return f"{path} is a PyTorch pickle under another name, not a safetensors file"
    if b'{"' in start[8:] and length <= MAX_HEADER:
        return f"{path} is truncated: its header alone has {length:,} bytes, the file has {size:,}. Copy or download it again"
    return f"{path} is not a safetensors file: it does not start with the length of a header"
