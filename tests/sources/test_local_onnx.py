"""ONNX files."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from ioptim.core.artifact import Format, ModelArtifact, seal
from ioptim.core.source import ModelSource, ModelSpec
from ioptim.errors import PlanError, StepError
from ioptim.sources import model_source
from ioptim.tasks.image_classification import ImageClassification

TASK = ImageClassification()


def source(path: Path | str, base: Path = Path(), root: Path | None = None) -> ModelSource:
    return model_source(ModelSpec(source=str(path)), base, root)


HEAD = b"\x08\x0a\x12\x06ioptim"
"""ir_version 10, producer_name "ioptim"."""


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"", "{path} is empty"),
        (b"<net/>", "{path} is not an ONNX file: it is text (XML or JSON)"),
        (b"PK\x03\x04rest", "{path} is not an ONNX file: it is a zip archive or a pickle (a torch checkpoint?)"),
        (b"\xff\xff\xff\xff", "{path} is not an ONNX file: its content does not begin like one"),
        (b"version https://git-lfs.github.com", "{path} is not an ONNX file: it is a Git LFS pointer; fetch the file with: git lfs pull"),
        (HEAD, "{path} is not an ONNX file: it holds no graph"),
        (
            HEAD + b"\x3a\x40graph",
            "{path} is truncated: the model goes on after the 17 bytes that the file has. Copy or download it again",
        ),
    ],
)
def test_a_file_that_is_not_one(tmp_path: Path, content: bytes, message: str) -> None:
    path = tmp_path / "model.onnx"
    path.write_bytes(content)
    assert source(path).check() == [message.format(path=path)]
    with pytest.raises(PlanError):
        source(path).identity()


def test_not_there_or_outside_the_root(tmp_path: Path) -> None:
    root = tmp_path / "root"
    root.mkdir()
    assert source("a.onnx", base=root).check() == [f"there is no file {root}/a.onnx; {root} has no files"]
    assert source("../a.onnx", base=root, root=root).check() == [
        f"{tmp_path}/a.onnx is outside the allowed root {root}; move it there, or allow a wider root"
    ]


WHOLE = HEAD + b"\x3a\x05graph"


def test_a_file_beside_it_that_leads_outside_the_root(tmp_path: Path) -> None:
    root = tmp_path / "root"
    root.mkdir()
    (root / "a.onnx").write_bytes(WHOLE)
    (root / "tokenizer.json").symlink_to(tmp_path / "secret.json")
    (tmp_path / "secret.json").write_text("{}")
    assert source("a.onnx", base=root, root=root).check() == [
        f"{root}/tokenizer.json (it leads to {tmp_path}/secret.json) is outside the allowed root {root};"
        " move it there, or allow a wider root"
    ]


def test_links_in_a_circle(tmp_path: Path) -> None:
    (tmp_path / "a.onnx").symlink_to(tmp_path / "a.onnx")
    [objection] = source("a.onnx", base=tmp_path, root=tmp_path).check()
    assert objection.startswith(f"{tmp_path}/a.onnx leads nowhere: ")


@pytest.mark.parametrize("name", ["a.onnx", "tokenizer.json"])
def test_a_file_that_may_not_be_read(tmp_path: Path, forbidden: Callable[[Path], str], name: str) -> None:
    (tmp_path / "a.onnx").write_bytes(WHOLE)
    (tmp_path / "tokenizer.json").write_text("{}")
    objection = forbidden(tmp_path / name)
    assert source("a.onnx", base=tmp_path).check() == [objection]


@pytest.fixture
def linear(tmp_path: Path) -> Path:
    """`logits = image[:, 0, 0, :] @ weight`, with the weight inside the file."""
    onnx = pytest.importorskip("onnx")
    import numpy as np

    h = onnx.helper
    graph = h.make_graph(
        [h.make_node("Flatten", ["image"], ["flat"]), h.make_node("MatMul", ["flat", "weight"], ["logits"])],
        "linear",
        [h.make_tensor_value_info("image", onnx.TensorProto.FLOAT, ["n", 1, 1, 40])],
        [h.make_tensor_value_info("logits", onnx.TensorProto.FLOAT, [None, 3])],
        [onnx.numpy_helper.from_array(np.ones((40, 3), np.float32), "weight")],
    )
    path = tmp_path / "linear.onnx"
    onnx.save(h.make_model(graph, opset_imports=[h.make_opsetid("", 17)], ir_version=10), path)
    return path


@pytest.mark.integration
def test_specs_are_read_from_the_file(linear: Path, tmp_path: Path) -> None:
    (linear.parent / "config.json").write_text('{"id2label": {"0": "a", "1": "b", "2": "c"}}')
    assert source(linear).check() == []
    assert set(source(linear).identity()) == {"model.onnx", "config.json"}
    outcome = source(linear).fetch(tmp_path / "out", TASK)
    assert outcome.written is not None
    model = seal(ModelArtifact(path=tmp_path / "out" / "model", **outcome.written.model_dump()))
    assert (model.format, model.entry, model.assets) == (Format.ONNX, "model.onnx", ("config.json",))
    assert [(s.name, s.dtype, s.shape) for s in model.inputs] == [("image", "float32", ("n", 1, 1, 40))]
    assert [(s.name, s.dtype, s.shape) for s in model.outputs] == [("logits", "float32", ("logits_0", 3))]
    assert model.facts == {"parameters": 120, "opset": 17}


@pytest.mark.integration
def test_truncated(linear: Path) -> None:
    whole = linear.read_bytes()
    linear.write_bytes(whole[: len(whole) // 2])
    (objection,) = source(linear).check()
    assert objection.startswith(f"{linear} is truncated: ")


@pytest.mark.integration
def test_weights_in_a_file_beside_it(linear: Path, tmp_path: Path, forbidden: Callable[[Path], str]) -> None:
    import onnx

    folder = tmp_path / "external"
    folder.mkdir()
    options: dict[str, Any] = {"save_as_external_data": True, "location": "linear.bin", "size_threshold": 0}
    onnx.save(onnx.load(linear), folder / "linear.onnx", **options)
    external = source(folder / "linear.onnx")
    before = external.identity()
    assert set(before) == {"model.onnx", "linear.bin"}
    external.fetch(tmp_path / "out", TASK)
    assert sorted(path.name for path in (tmp_path / "out" / "model").iterdir()) == ["linear.bin", "model.onnx"]
    data = bytearray((folder / "linear.bin").read_bytes())
    data[0] ^= 1
    (folder / "linear.bin").write_bytes(bytes(data))
    assert source(folder / "linear.onnx").identity() != before
    objection = forbidden(folder / "linear.bin")
    with pytest.raises(PlanError) as refused:
        source(folder / "linear.onnx").identity()
    assert str(refused.value) == objection
    (folder / "linear.bin").unlink()
    with pytest.raises(StepError) as caught:
        source(folder / "linear.onnx").fetch(tmp_path / "again", TASK)
    assert str(caught.value) == f"{folder}/linear.onnx keeps weights in 'linear.bin', which is not beside it. Copy both files"


@pytest.mark.integration
def test_weights_outside_the_model_s_folder_are_not_read(linear: Path, tmp_path: Path) -> None:
    import onnx

    model = onnx.load(linear)
    (tmp_path / "secret").write_bytes(b"x" * 480)
    tensor = model.graph.initializer[0]
    tensor.ClearField("raw_data")
    tensor.data_location = onnx.TensorProto.EXTERNAL
    tensor.external_data.add(key="location", value="../secret")
    (tmp_path / "evil").mkdir()
    path = tmp_path / "evil" / "model.onnx"
    path.write_bytes(model.SerializeToString())
    with pytest.raises(PlanError) as caught:
        source(path).identity()
    assert str(caught.value) == f"{path} keeps weights in '../secret', outside its own folder; that is not read"


@pytest.mark.integration
def test_an_operator_that_does_not_exist(linear: Path, tmp_path: Path) -> None:
    import onnx

    model = onnx.load(linear)
    model.graph.node[0].op_type = "Flattn"
    onnx.save(model, linear)
    assert source(linear).check() == []
    with pytest.raises(StepError, match="linear.onnx is not a valid ONNX model: .*Flattn"):
        source(linear).fetch(tmp_path / "out", TASK)
