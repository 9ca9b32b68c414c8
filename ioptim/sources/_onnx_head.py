"""Whether a file is a whole ONNX model, by the outline of its protobuf: no library, no weights read.

ModelProto's fields: https://github.com/onnx/onnx/blob/main/onnx/onnx.proto3
Encoding: https://protobuf.dev/programming-guides/encoding/
"""

from __future__ import annotations

from collections.abc import Collection
from pathlib import Path
from typing import BinaryIO

_VARINT, _BYTES = 0, 2
_KINDS = {1: _VARINT, 5: _VARINT} | dict.fromkeys((2, 3, 4, 6, 7, 8, 14, 20, 25, 26), _BYTES)
_VERSION, _GRAPH = 1, 7


class NotOnnxError(ValueError):
    """What is wrong with a file that should be ONNX, in words for the user."""


def check_onnx(path: Path) -> None:
    """Walk the top level of the file, skipping over what it holds.

    Raises:
        NotOnnxError: empty, another kind of file, cut off, or without a graph.
    """
    size = path.stat().st_size
    if size == 0:
        raise NotOnnxError(f"{path} is empty")
    seen: set[int] = set()
    with path.open("rb") as file:
        while file.tell() < size:
            try:
                key = _varint(file)
                field, kind = key >> 3, key & 7
                if _KINDS.get(field) != kind:
                    raise NotOnnxError(f"{path} is not an ONNX file: {_looks_like(path)}")
                length = _varint(file)
            except EOFError as error:
                raise NotOnnxError(_ended(path, size, seen)) from error
            seen.add(field)
            if kind == _BYTES:
                if file.tell() + length > size:
                    raise NotOnnxError(_ended(path, size, seen))
                file.seek(length, 1)
    if _GRAPH not in seen:
        raise NotOnnxError(f"{path} is not an ONNX file: it holds no graph")


def _varint(file: BinaryIO) -> int:
    value = 0
    for shift in range(0, 70, 7):
        byte = file.read(1)
        if not byte:
            raise EOFError
        value |= (byte[0] & 0x7F) << shift
        if byte[0] < 0x80:
            break
    return value


def _ended(path: Path, size: int, seen: Collection[int]) -> str:
    """A model says its version first; what has not done so only began like one by chance."""
    if _VERSION not in seen:
        return f"{path} is not an ONNX file: {_looks_like(path)}"
    return f"{path} is truncated: the model goes on after the {size:,} bytes that the file has. Copy or download it again"


def _looks_like(path: Path) -> str:
    with path.open("rb") as file:
        start = file.read(64)
    if start.startswith(b"version https://git-lfs"):
        return "it is a Git LFS pointer; fetch the file with: git lfs pull"
    if start.startswith(b"PK") or start[:1] == b"\x80":
        return "it is a zip archive or a pickle (a torch checkpoint?)"
    if start.lstrip()[:1] in (b"<", b"{"):
        return "it is text (XML or JSON)"
    return "its content does not begin like one"
