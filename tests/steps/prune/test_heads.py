"""Heads that go are gone from every projection, and what is left answers as if they had said nothing."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
from pydantic import ValidationError

from ioptim.core.artifact import ModelArtifact, verify
from ioptim.errors import StepError
from ioptim.steps.prune import Heads, Prune
from ioptim.steps.prune.heads import attentions, chosen

pytestmark = pytest.mark.integration

Run = Callable[..., tuple[Any, ModelArtifact]]


def module_of(model: ModelArtifact) -> Any:
    from ioptim.torch_model import load_module

    return load_module(model)


def test_heads_go_and_it_exports_and_fuses(tiny_bert: ModelArtifact, prune: Run, context: Callable[..., Any], tmp_path: Any) -> None:
    from ioptim.core.runtime import Target
    from ioptim.runtimes.onnxruntime import OnnxRuntime
    from ioptim.steps.export import Export
    from tests.steps.conftest import sealed

    outcome, model = prune(tiny_bert, heads={"keep": 2, "scope": "global"}, importance="taylor")
    left = [one.count for one in attentions(module_of(model))]
    assert sum(left) == 4 and min(left) >= 1
    assert verify(model.model_copy(update={"assets": ()})) == []
    rows = {row[0]: row[1:4] for row in outcome.tables[1].rows}
    assert rows == {f"bert.encoder.layer.{i}.attention.self": ("heads", 4, count) for i, count in enumerate(left)}
    assert outcome.metrics["multiply_adds_ratio"] < 1 and outcome.metrics["parameters_ratio"] < 1
    ctx = context()
    exported = Export().run(model, ctx)  # compares the outputs itself
    assert exported.facts["engine"] == "dynamo"
    onnx = sealed(exported, ctx.out, model)
    runtime = OnnxRuntime()
    (out := tmp_path / "compiled").mkdir()
    compiled = runtime.compile(onnx, Target(name="cpu", runtime=runtime), out)
    assert compiled.metrics["fused_nodes.Attention"] == compiled.metrics["fused_nodes.MultiHeadAttention"] == 1
    assert compiled.metrics["fusion_max_difference"] < 1e-4


@pytest.mark.parametrize("importance", ["activation", "taylor", "magnitude"])
def test_heads_that_say_nothing_are_those_that_go(tiny_bert: ModelArtifact, importance: str) -> None:
    import copy

    import torch

    from ioptim.steps.prune.heads import cut, scores
    from ioptim.steps.prune.importance import Importance, Rows

    module = module_of(tiny_bert)
    with torch.no_grad():
        for layer in module.bert.encoder.layer:
            layer.attention.output.dense.weight[:, 8:16] = 0  # the second of four heads
    feeds = {"input_ids": torch.tensor([[3, 8, 9, 4]])}
    rows = Rows([feeds], lambda result, _: result.logits.sum())
    found = attentions(module)
    kept = chosen(found, scores(found, Importance(importance), module, rows), 3, everywhere=False, comparable=False)
    assert kept == [[0, 2, 3], [0, 2, 3]]
    whole = copy.deepcopy(module)
    cut(module, found, kept, feeds)
    assert torch.allclose(module(**feeds).logits, whole(**feeds).logits, atol=1e-5)


def test_distilbert(prune: Run) -> None:
    import torch
    import transformers

    from ioptim.steps.prune.heads import cut

    config = transformers.DistilBertConfig(vocab_size=50, dim=32, n_layers=2, n_heads=4, hidden_dim=64)
    module = transformers.DistilBertModel(config).eval()
    feeds = {"input_ids": torch.tensor([[3, 8, 9, 4]]), "attention_mask": torch.ones(1, 4, dtype=torch.long)}
    cut(module, attentions(module), [[0, 3], [1]], feeds)
    assert [(one.count, one.size) for one in attentions(module)] == [(2, 8), (1, 8)]


def test_neurons_and_heads_together_and_again(tiny_bert: ModelArtifact, prune: Run) -> None:
    _, once = prune(tiny_bert, heads=3, feed_forward=32, importance="taylor")
    _, twice = prune(once, heads=1)
    assert [one.count for one in attentions(module_of(twice))] == [1, 1]
    with pytest.raises(StepError) as caught:
        prune(once, feed_forward=16)
    assert str(caught.value) == (
        "heads or channels were removed from this model, so its configuration no longer tells how it is built; remove layers and"
        " feed_forward before them, or in the same step"
    )


@pytest.mark.parametrize("keep", [4, 9])
def test_more_heads_than_there_are(tiny_bert: ModelArtifact, prune: Run, keep: int) -> None:
    with pytest.raises(StepError) as caught:
        prune(tiny_bert, heads=keep)
    assert str(caught.value) == f"heads is {keep}; the model has 4 in each layer, so none would go"


def test_no_head() -> None:
    with pytest.raises(ValidationError, match="`heads` is how many stay in each layer; one at least must"):
        Prune(heads=0)
    with pytest.raises(ValidationError, match="greater than or equal to 1"):
        Heads(keep=0)


def test_a_module_without_attention(own: Callable[..., ModelArtifact], prune: Run) -> None:
    with pytest.raises(StepError) as caught:
        prune(own(), heads=2)
    assert str(caught.value) == (
        "heads: prune needs a transformers encoder; Net has no config with num_hidden_layers;"
        " for convolutions and plain modules use channels"
    )
