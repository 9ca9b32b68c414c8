"""A model is trained while it computes as if quantized, and comes out as an ordinary float checkpoint that rounds better."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from ioptim.core.artifact import ModelArtifact, verify
from ioptim.core.step import Level, Where
from ioptim.errors import StepError
from ioptim.steps._simulate import simulate
from ioptim.steps.qat import QAT
from ioptim.tasks.image_classification import ImageClassification
from tests.steps.conftest import HARDWARE, FakeContext, RandomTask


class Classes(RandomTask):
    """Random tokens without labels."""

    output = "logits"
    max_length: int | None = None


def where(task: Any = None, **hardware: Any) -> Where:
    machine = HARDWARE.model_copy(update=hardware)
    return Where(format="torch", targets=(), task=task or Classes(), hardware=machine, has_calibration=False)


@pytest.fixture
def rows(tmp_path: Path) -> Callable[[], Any]:
    def make() -> Any:
        (out := tmp_path / f"out{len(list(tmp_path.glob('out*')))}").mkdir()
        made = FakeContext(out, task=Classes())
        made.scratch = tmp_path / f"{out.name}-scratch"  # type: ignore[attr-defined]
        return made

    return make


def test_precision_follows_the_cpu_and_data_the_rows_held_out() -> None:
    assert QAT().resolve(where()).precision == "fp32"
    assert QAT().resolve(where(cpu_flags=("avx512_bf16",))).precision == "bf16"
    assert QAT().data_roles() == ("training", "dev")
    assert QAT(held_out=10).data_roles() == ("training",)


def test_what_it_cannot_do_is_refused() -> None:
    assert QAT().check(where(ImageClassification())) == ["qat trains encoders of text; the task is image-classification"]
    assert QAT(block_size=64).check(where()) == ["block_size works with `simulate: int4-weights`, not with int8; remove it"]
    assert QAT(simulate="int4-weights", block_size=64).check(where()) == []


@pytest.mark.integration
def test_all_rows_held_out(tiny_bert: ModelArtifact, rows: Callable[[], Any]) -> None:
    with pytest.raises(StepError, match=r"^held_out is 24, and data.training has 24 rows$"):
        QAT(held_out=24).resolve(where()).run(tiny_bert, rows())


@pytest.mark.integration
def test_blocks_that_divide_no_layer(tiny_bert: ModelArtifact, rows: Callable[[], Any]) -> None:
    message = r"^qat: no layer of BertForSequenceClassification can be simulated in int4-weights \(block_size 128\)$"
    with pytest.raises(StepError, match=message):
        QAT(simulate="int4-weights", block_size=128).resolve(where()).run(tiny_bert, rows())


@pytest.mark.integration
@pytest.mark.parametrize("what", ["int8", "int4-weights"])
def test_simulated_layers_round_and_become_float_again(tiny_bert: ModelArtifact, what: Any) -> None:
    import torch

    from ioptim.torch_model import load_module

    module = load_module(tiny_bert, attention=None)
    feeds = {"input_ids": torch.arange(12).reshape(2, 6)}
    names = set(module.state_dict())
    with torch.no_grad():
        exact = module(**feeds).logits
        simulated = simulate(module, what, 32)
        module.train()
        module(**feeds)
        module.eval()
        rounded = module(**feeds).logits
        simulated.end()
        assert 1e-4 < (exact - rounded).abs().max() < 1
        assert torch.equal(module(**feeds).logits, exact)
    assert set(module.state_dict()) == names
    assert {type(part).__name__ for part in simulated.layers} <= {"Linear", "Embedding"}


@pytest.mark.integration
def test_four_bits_are_those_that_are_stored() -> None:
    """The simulated weight is the one that ONNX Runtime's quantizer writes."""
    torch = pytest.importorskip("torch")
    import numpy as np
    from onnxruntime.quantization.matmul_nbits_quantizer import DefaultWeightOnlyQuantConfig, DefaultWeightOnlyQuantizer

    from ioptim.steps._simulate import _per_block

    weight = torch.randn(8, 64, generator=torch.Generator().manual_seed(0))
    config = DefaultWeightOnlyQuantConfig(block_size=32, is_symmetric=True, bits=4)
    packed, scales, _ = DefaultWeightOnlyQuantizer(config).qbits_block_quant(np.ascontiguousarray(weight.T.numpy()))
    stored = np.stack([packed & 15, packed >> 4], axis=-1).reshape(8, 2, 32).astype(np.float32) - 8
    wanted = (stored * scales.reshape(8, 2, 1)).reshape(8, 64)
    assert np.allclose(_per_block(weight, 32).numpy(), wanted, atol=1e-6)


@pytest.mark.integration
def test_training_brings_the_rounded_model_nearer(tiny_bert: ModelArtifact, rows: Callable[[], Any]) -> None:
    from safetensors import safe_open

    ctx = rows()
    step = QAT(simulate="int4-weights", epochs=8, learning_rate=5e-4, batch_size=4, patience=100).resolve(where())
    outcome = step.run(tiny_bert, ctx)
    assert verify(tiny_bert) == [], "the input was changed"
    metrics = outcome.metrics
    assert 0 < metrics["dev_kl_divergence"] < 0.8 * metrics["dev_kl_divergence_before"]
    assert metrics["layers_simulated"] == 14
    assert outcome.notes[0].text.startswith("14 layers simulated in int4-weights, trained on 24 rows after 8 epochs (")
    with safe_open(ctx.out / "model" / tiny_bert.entry, "pt") as file, safe_open(tiny_bert.model_path, "pt") as old:
        assert set(file.keys()) == set(old.keys()), "an ordinary checkpoint"
    assert [chart.y_label for chart in outcome.charts] == ["loss", "kl_divergence"]
    told = {curve.metric: curve.values for curve in outcome.curves}
    assert set(told) == {"train/loss", "train/learning_rate", "train/dev_kl_divergence"}
    assert min(told["train/dev_kl_divergence"]) == metrics["dev_kl_divergence"], "divergences are told as they are, not as negatives"


@pytest.mark.integration
def test_a_training_that_brings_nothing_says_so(tiny_bert: ModelArtifact, rows: Callable[[], Any]) -> None:
    outcome = QAT(simulate="int4-weights", epochs=1, learning_rate=1e-12, batch_size=4).resolve(where()).run(tiny_bert, rows())
    warnings = [note.text for note in outcome.notes if note.level is Level.WARNING]
    assert warnings == ["the training brought nothing on the dev rows; leave this step out"]
