"""Tiny models, made in code, for the steps that change a model; and what such a step may reach while it runs."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

import pytest

from ioptim.core.artifact import Format, ModelArtifact, TensorSpec, seal
from ioptim.core.target import Hardware
from ioptim.core.task import Table, Task

HARDWARE = Hardware(cpu_model="test", cpu_flags=("avx2", "avx512_vnni"), cores=1, threads=1, memory_bytes=1 << 30)
TOKENS = 100
ROWS = 24


class RandomTask(Task):
    """Feeds drawn at random: tokens with a padding mask, or images. A row is the seed of its feed."""

    task: Literal["random"] = "random"
    metrics = ()
    columns = {"seed": "number"}
    calibration_columns = {"seed": "number"}

    def examples(self, table: Table, model: ModelArtifact) -> Iterator[dict[str, Any]]:
        for seed in table.columns["seed"]:
            yield self._draw(model, 1, 4 + seed % 5, seed)

    def collate(self, examples: Sequence[dict[str, Any]], model: ModelArtifact) -> dict[str, Any]:
        import numpy as np

        longest = max(max(array.shape[1:]) for example in examples for array in example.values())
        padded = [{name: _pad(array, longest) for name, array in example.items()} for example in examples]
        return {name: np.concatenate([example[name] for example in padded]) for name in padded[0]}

    def score(self, outputs: Any, table: Table, model: ModelArtifact) -> dict[str, list[float]]:
        return {}

    def dummy_feeds(self, model: ModelArtifact, batch: int, length: int) -> dict[str, Any]:
        return self._draw(model, batch, length, batch * length)

    def _draw(self, model: ModelArtifact, batch: int, length: int, seed: int) -> dict[str, Any]:
        import numpy as np

        draw = np.random.default_rng(seed)
        feeds: dict[str, Any] = {}
        for spec in model.inputs:
            shape = [{"batch": batch, "sequence": length}.get(str(axis), axis) for axis in spec.shape]
            if spec.name == "attention_mask":
                feeds[spec.name] = np.ones(shape, np.int64)
                feeds[spec.name][1::2, length - length // 4 :] = 0
            elif spec.dtype == "int64":
                feeds[spec.name] = draw.integers(0, 2 if spec.name == "token_type_ids" else TOKENS, shape)
            else:
                feeds[spec.name] = draw.normal(size=shape).astype(spec.dtype)
        return feeds


def _pad(array: Any, length: int) -> Any:
    import numpy as np

    return np.pad(array, ((0, 0), (0, length - array.shape[1]))) if array.ndim == 2 else array


@dataclass
class FakeContext:
    """As much of `Context` as a step that changes a model may use."""

    out: Path
    task: Task = field(default_factory=RandomTask)
    hardware: Hardware = HARDWARE
    seed: int = 0
    rows: int = ROWS
    said: list[str] = field(default_factory=list)

    def table(self, role: str) -> Table:
        seeds = range(self.rows)
        return Table(columns={"seed": list(seeds)}, rows=tuple(f"data.tsv:{i}" for i in seeds), origin="data.tsv")

    def progress(self, done: float, message: str) -> None:
        assert 0 <= done <= 1
        self.said.append(message)


@pytest.fixture
def context(tmp_path: Path) -> Callable[..., FakeContext]:
    """A new context with an empty folder of its own at each call."""

    def make(**changes: Any) -> FakeContext:
        out = tmp_path / f"out{len(list(tmp_path.glob('out*')))}"
        out.mkdir()
        return FakeContext(out, **changes)

    return make


@pytest.fixture(scope="session")
def tiny_bert(tmp_path_factory: pytest.TempPathFactory) -> ModelArtifact:
    """A torch BERT classifier of two layers, four heads, width 32, with random weights."""
    transformers = pytest.importorskip("transformers")
    import torch

    torch.manual_seed(0)
    config = transformers.BertConfig(
        vocab_size=TOKENS,
        hidden_size=32,
        num_hidden_layers=2,
        num_attention_heads=4,
        intermediate_size=64,
        max_position_embeddings=64,
        initializer_range=0.2,
    )
    path = tmp_path_factory.mktemp("tiny_bert")
    transformers.BertForSequenceClassification(config).save_pretrained(path)
    inputs = ("input_ids", "attention_mask", "token_type_ids")
    return seal(
        ModelArtifact(
            path=path,
            format=Format.TORCH,
            entry="model.safetensors",
            inputs=tuple(TensorSpec(name=name, dtype="int64", shape=("batch", "sequence")) for name in inputs),
            outputs=(TensorSpec(name="logits", dtype="float32", shape=("batch", 2)),),
            assets=("config.json",),
            facts={"loader": {"kind": "transformers", "auto_class": "AutoModelForSequenceClassification"}},
        )
    )


@pytest.fixture(scope="session")
def tiny_bert_onnx(tiny_bert: ModelArtifact, tmp_path_factory: pytest.TempPathFactory) -> ModelArtifact:
    """The same in ONNX, by the `export` step."""
    from ioptim.steps.export import Export

    out = tmp_path_factory.mktemp("onnx")
    outcome = Export().run(tiny_bert, FakeContext(out))  # type: ignore[arg-type]
    return sealed(outcome, out, tiny_bert)


@pytest.fixture(scope="session")
def tiny_cnn_onnx(tmp_path_factory: pytest.TempPathFactory) -> ModelArtifact:
    """Two convolutions with a batch normalization, a relu and a pooling between, and a linear layer; 8x8 images of one channel."""
    onnx = pytest.importorskip("onnx")
    import numpy as np
    from onnx import helper, numpy_helper

    draw = np.random.default_rng(0)

    def weight(name: str, *shape: int) -> Any:
        return numpy_helper.from_array((draw.normal(size=shape) / np.sqrt(np.prod(shape[1:]))).astype(np.float32), name)

    ones = [
        numpy_helper.from_array(np.full(8, value, np.float32), name) for name, value in {"s": 1.5, "b": 0.1, "m": 0.2, "v": 0.9}.items()
    ]
    nodes = [
        helper.make_node("Conv", ["image", "w1"], ["c1"], "conv1", pads=[1, 1, 1, 1]),
        helper.make_node("BatchNormalization", ["c1", "s", "b", "m", "v"], ["n1"], "norm"),
        helper.make_node("Relu", ["n1"], ["r1"], "relu1"),
        helper.make_node("MaxPool", ["r1"], ["p1"], "pool", kernel_shape=[2, 2], strides=[2, 2]),
        helper.make_node("Conv", ["p1", "w2"], ["c2"], "conv2", pads=[1, 1, 1, 1]),
        helper.make_node("Relu", ["c2"], ["r2"], "relu2"),
        helper.make_node("Flatten", ["r2"], ["f"], "flatten"),
        helper.make_node("Gemm", ["f", "w3", "b3"], ["logits"], "classifier", transB=1),
    ]
    weights = [weight("w1", 8, 1, 3, 3), weight("w2", 16, 8, 3, 3), weight("w3", 10, 256), weight("b3", 10), *ones]
    inputs = (TensorSpec(name="image", dtype="float32", shape=("batch", 1, 8, 8)),)
    outputs = (TensorSpec(name="logits", dtype="float32", shape=("batch", 10)),)
    return graph(tmp_path_factory.mktemp("cnn"), nodes, weights, inputs, outputs, onnx)


@pytest.fixture
def make_onnx(tmp_path: Path) -> Callable[..., ModelArtifact]:
    """An artifact from nodes and named weights; inputs and outputs are float32 of (batch, width)."""
    onnx = pytest.importorskip("onnx")

    def make(nodes: Sequence[Any], weights: Mapping[str, Any], inputs: Mapping[str, int], outputs: Mapping[str, int]) -> ModelArtifact:
        specs = [tuple(TensorSpec(name=n, dtype="float32", shape=("batch", w)) for n, w in each.items()) for each in (inputs, outputs)]
        tensors = [onnx.numpy_helper.from_array(value, name) for name, value in weights.items()]
        folder = tmp_path / f"onnx{len(list(tmp_path.glob('onnx*')))}"
        folder.mkdir()
        return graph(folder, nodes, tensors, *specs, onnx)

    return make


def graph(folder: Path, nodes: Any, weights: Any, inputs: Any, outputs: Any, onnx: Any) -> ModelArtifact:
    from onnx import helper

    def values(specs: tuple[TensorSpec, ...]) -> list[Any]:
        return [helper.make_tensor_value_info(s.name, helper.np_dtype_to_tensor_dtype(_dtype(s.dtype)), list(s.shape)) for s in specs]

    made = helper.make_graph(nodes, "tiny", values(inputs), values(outputs), weights)
    onnx.save(helper.make_model(made, opset_imports=[helper.make_opsetid("", 18)], ir_version=10), folder / "model.onnx")
    return seal(ModelArtifact(path=folder, format=Format.ONNX, entry="model.onnx", inputs=inputs, outputs=outputs))


def _dtype(name: str) -> Any:
    import numpy as np

    return np.dtype(name)


def sealed(outcome: Any, out: Path, parent: ModelArtifact) -> ModelArtifact:
    """What the caller of a step does with the model it wrote."""
    made = outcome.written
    return seal(
        ModelArtifact(
            path=out / "model",
            format=made.format,
            entry=made.entry,
            inputs=made.inputs or parent.inputs,
            outputs=made.outputs or parent.outputs,
            facts=dict(made.facts),
        )
    )


@pytest.fixture(name="sealed")
def sealed_fixture() -> Callable[..., ModelArtifact]:
    """`sealed` for test modules, which do not import each other."""
    return sealed
