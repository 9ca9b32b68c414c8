"""safetensors files read by their header."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest

from ioptim.sources._safetensors import NotSafetensorsError, merge, read_header

Write = Callable[..., bytes]


def problem(path: Path) -> str:
    with pytest.raises(NotSafetensorsError) as caught:
        read_header(path)
    return str(caught.value)


def test_header(tmp_path: Path, safetensors: Write) -> None:
    path = tmp_path / "model.safetensors"
    path.write_bytes(safetensors({"a": (2, 3), "b": (5,)}))
    header = read_header(path)
    assert header.shapes == {"a": (2, 3), "b": (5,)}
    assert header.float_dtypes == {"F32"}


def test_truncated(tmp_path: Path, safetensors: Write) -> None:
    path = tmp_path / "model.safetensors"
    whole = safetensors({"a": (20, 30)})
    path.write_bytes(whole[:-100])
    size = len(whole)
    assert problem(path) == (
        f"{path} is truncated: its header says {size:,} bytes, the file has {size - 100:,}. Copy or download it again"
    )
    path.write_bytes(whole[:40])
    assert problem(path).startswith(f"{path} is truncated: its header alone has ")
    path.write_bytes(whole + b"more")
    assert problem(path).startswith(f"{path} has bytes left over: its header says {size:,} bytes, the file has {size + 4:,}")


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"", "{path} is empty"),
        (b"version https://git-lfs.github.com/spec/v1\n", "{path} is a Git LFS pointer, not the weights; fetch them with: git lfs pull"),
        (b"PK\x03\x04" + b"\0" * 99, "{path} is a PyTorch pickle under another name, not a safetensors file"),
        (b"hello, this is no model at all", "{path} is not a safetensors file: it does not start with the length of a header"),
        (b"\x04" + b"\0" * 7 + b"oops", "{path} is not a safetensors file: its header is not the JSON it should be"),
        (b"\x08" + b"\0" * 7 + b'{"a": 1}', "{path} is not a safetensors file: its header is not the JSON it should be"),
    ],
)
def test_another_kind_of_file(tmp_path: Path, content: bytes, message: str) -> None:
    path = tmp_path / "model.safetensors"
    path.write_bytes(content)
    assert problem(path) == message.format(path=path)


def test_merging_keeps_every_tensor(tmp_path: Path, safetensors: Write) -> None:
    parts = [tmp_path / "1.safetensors", tmp_path / "2.safetensors"]
    parts[0].write_bytes(safetensors({"a": (2, 3), "b": (1,)}))
    parts[1].write_bytes(safetensors({"c": (4,)}).replace(b"\1", b"\2"))
    merge(parts, tmp_path / "model.safetensors")
    header = read_header(tmp_path / "model.safetensors")
    assert header.shapes == {"a": (2, 3), "b": (1,), "c": (4,)}
    assert header.start % 8 == 0
    start, end = header.tensors["c"]["data_offsets"]
    assert (tmp_path / "model.safetensors").read_bytes()[header.start + start : header.start + end] == b"\2" * 16
