"""What is taken out is gone from the file, and what only lost words answers as before."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from pydantic import ValidationError

from ioptim.core.artifact import Format, ModelArtifact, TensorSpec, seal
from ioptim.core.step import Where
from ioptim.core.task import Table
from ioptim.errors import StepError
from ioptim.steps.prune import Prune
from ioptim.steps.prune.vocabulary import kept_ids
from ioptim.tasks.image_classification import ImageClassification
from ioptim.tasks.text_classification import TextClassification
from tests.steps.conftest import HARDWARE, FakeContext, sealed

SPECIAL = ["[PAD]", "[unused0]", "[UNK]", "[CLS]", "[SEP]"]
PIECES = [*SPECIAL, *"abcdegot", *(f"##{c}" for c in "abcdegot"), "cat", "dog", "bad", "good", "##good"]
TEXTS = ["a good cat", "a bad cat", "good good"]


class Texts(FakeContext):
    def table(self, role: str) -> Table:
        assert role == "training"
        return Table(columns={"sentence": TEXTS, "label": [1, 0, 1]}, rows=("1", "2", "3"), origin="train.tsv")


@pytest.fixture(scope="module")
def words(tmp_path_factory: pytest.TempPathFactory) -> ModelArtifact:
    """A BERT classifier of three layers, with a WordPiece tokenizer of a few words."""
    transformers = pytest.importorskip("transformers")
    import torch
    from tokenizers import Tokenizer, models, normalizers, pre_tokenizers, processors

    torch.manual_seed(0)
    path = tmp_path_factory.mktemp("words")
    config = transformers.BertConfig(
        vocab_size=len(PIECES), hidden_size=32, num_hidden_layers=3, num_attention_heads=4, intermediate_size=64,
        max_position_embeddings=32, initializer_range=0.2,
    )  # fmt: skip
    transformers.BertForSequenceClassification(config).save_pretrained(path)
    places = {piece: i for i, piece in enumerate(PIECES)}
    tokenizer = Tokenizer(models.WordPiece(places, unk_token="[UNK]"))
    tokenizer.normalizer, tokenizer.pre_tokenizer = normalizers.BertNormalizer(), pre_tokenizers.BertPreTokenizer()
    tokenizer.add_special_tokens([piece for piece in SPECIAL if "unused" not in piece])
    tokenizer.post_processor = processors.TemplateProcessing(
        single="[CLS] $A [SEP]", special_tokens=[(name, places[name]) for name in ("[CLS]", "[SEP]")]
    )
    tokenizer.save(str(path / "tokenizer.json"))
    (path / "vocab.txt").write_text("\n".join(PIECES) + "\n")
    names = ("input_ids", "attention_mask", "token_type_ids")
    return seal(
        ModelArtifact(
            path=path,
            format=Format.TORCH,
            entry="model.safetensors",
            inputs=tuple(TensorSpec(name=name, dtype="int64", shape=("batch", "sequence")) for name in names),
            outputs=(TensorSpec(name="logits", dtype="float32", shape=("batch", 2)),),
            assets=("config.json", "tokenizer.json", "vocab.txt"),
            facts={"loader": {"kind": "transformers", "auto_class": "AutoModelForSequenceClassification"}},
        )
    )


@pytest.fixture
def prune(words: ModelArtifact, tmp_path: Path) -> Callable[..., tuple[Any, ModelArtifact]]:
    def run(**fields: Any) -> tuple[Any, ModelArtifact]:
        (out := tmp_path / f"out{len(list(tmp_path.glob('out*')))}").mkdir()
        outcome = Prune.model_validate(fields).run(words, Texts(out, task=TextClassification()))  # type: ignore[arg-type]
        for name in words.assets:  # as the store does
            if not (out / "model" / name).exists():
                shutil.copyfile(words.path / name, out / "model" / name)
        return outcome, sealed(outcome, out, words)

    return run


def answers(model: ModelArtifact, texts: list[str]) -> list[Any]:
    """Logits by transformers and tokenizers alone."""
    import torch
    import transformers
    from tokenizers import Tokenizer

    module = transformers.AutoModelForSequenceClassification.from_pretrained(model.path).eval()
    tokenizer = Tokenizer.from_file(str(model.path / "tokenizer.json"))
    with torch.inference_mode():
        return [module(input_ids=torch.tensor([tokenizer.encode(text).ids])).logits for text in texts]


# The vocabulary


@pytest.mark.integration
def test_words_that_never_occur_go_and_answers_stay(words: ModelArtifact, prune: Callable[..., Any]) -> None:
    import torch

    outcome, model = prune(vocabulary=True)
    tokenizer = json.loads((model.path / "tokenizer.json").read_text())
    assert set(PIECES) - set(tokenizer["model"]["vocab"]) == {"[unused0]", "dog", "##good"}
    assert sorted(tokenizer["model"]["vocab"].values()) == list(range(len(PIECES) - 3))
    assert (model.path / "vocab.txt").read_text().split() == [piece for piece in PIECES if piece in tokenizer["model"]["vocab"]]
    for before, after in zip(answers(words, TEXTS), answers(model, TEXTS), strict=True):
        assert torch.allclose(before, after, atol=1e-6)
    assert outcome.metrics["vocabulary"] == len(PIECES) - 3
    assert outcome.notes[0].text == "vocabulary: 23 of 26 word pieces stay; outputs on 3 training rows are the same"


@pytest.mark.integration
def test_a_word_that_went_falls_into_pieces(words: ModelArtifact, prune: Callable[..., Any]) -> None:
    from tokenizers import Tokenizer

    _, model = prune(vocabulary=True)
    encode = Tokenizer.from_file(str(model.path / "tokenizer.json")).encode
    assert encode("a dog").tokens == ["[CLS]", "a", "d", "##o", "##g", "[SEP]"]


@pytest.mark.integration
def test_min_count(prune: Callable[..., Any]) -> None:
    outcome, model = prune(vocabulary=True, min_count=2)
    kept = json.loads((model.path / "tokenizer.json").read_text())["model"]["vocab"]
    assert "bad" not in kept and {"cat", "good", "a", "##t", "[UNK]"} <= set(kept)
    assert "outputs on 2 training rows are the same" in outcome.notes[0].text


def test_a_count_without_a_vocabulary() -> None:
    with pytest.raises(ValidationError, match="`min_count` is of the vocabulary, which is not trimmed"):
        Prune(layers=1, min_count=2)


@pytest.mark.integration
def test_nothing_left_to_compare(prune: Callable[..., Any]) -> None:
    with pytest.raises(StepError) as caught:
        prune(vocabulary=True, min_count=100)
    assert str(caught.value) == "no training row is made of pieces that stay, so nothing can be compared; lower min_count (100)"


def test_only_word_pieces() -> None:
    with pytest.raises(StepError) as caught:
        kept_ids({"model": {"type": "BPE", "vocab": {}}}, {}, 1)
    assert str(caught.value) == "vocabulary can be trimmed of WordPiece tokenizers; this one is BPE"


# Layers and neurons


@pytest.mark.integration
def test_layers_and_neurons_go(prune: Callable[..., Any]) -> None:
    import transformers

    outcome, model = prune(layers=2, feed_forward=24)
    config = transformers.AutoConfig.from_pretrained(model.path)
    assert (config.num_hidden_layers, config.intermediate_size) == (2, 24)
    assert [logits.shape for logits in answers(model, TEXTS)] == [(1, 2)] * 3
    assert {row[0]: row[1:] for row in outcome.tables[0].rows}["layers"] == (3, 2)
    assert outcome.notes[0].text.startswith("layers removed, with their influence (1 - cosine of output and input): ")
    assert outcome.notes[-1].text == (
        "feed_forward, layers: the answers changed and nothing was trained yet; `distill` with `teacher: source` does it"
    )


@pytest.mark.integration
@pytest.mark.parametrize("importance", ["activation", "magnitude"])
def test_neurons_that_go_are_reported_by_layer(prune: Callable[..., Any], importance: str) -> None:
    outcome, _ = prune(feed_forward=24, importance=importance)
    removed = next(found for found in outcome.tables if found.title == "What was removed")
    assert [row[:2] for row in removed.rows] == [(f"feed-forward of layer {i}", "neurons") for i in range(3)]
    assert all(before > after == 24 and (importance == "magnitude") == (share is None) for _, _, before, after, share in removed.rows)


@pytest.mark.integration
def test_a_layer_that_does_nothing_is_the_one_that_goes(words: ModelArtifact, tmp_path: Path) -> None:
    import torch

    from ioptim.shrink import cut, layer_influence
    from ioptim.torch_model import load_module

    module: Any = load_module(words, attention=None)
    with torch.no_grad():
        layer = module.bert.encoder.layer[1]
        for part in (layer.attention.output.dense, layer.output.dense):
            part.weight.zero_()
            part.bias.zero_()
    feeds = {"input_ids": torch.tensor([[3, 8, 9, 4]])}
    influence = layer_influence(module, [feeds])
    assert min(range(3), key=influence.__getitem__) == 1 and influence[1] < 1e-5
    with torch.inference_mode():
        assert torch.allclose(cut(module, [0, 2], None)(**feeds).logits, module(**feeds).logits, atol=1e-4)


@pytest.mark.integration
def test_neurons_that_say_nothing_are_those_that_go(words: ModelArtifact) -> None:
    import torch

    from ioptim.shrink import activation_importance, cut
    from ioptim.torch_model import load_module

    module: Any = load_module(words, attention=None)
    with torch.no_grad():
        for layer in module.bert.encoder.layer:
            layer.output.dense.weight[:, 5:40] = 0
    feeds = {"input_ids": torch.tensor([[3, 8, 9, 4]])}
    importance = activation_importance(module, [feeds])
    assert sorted(importance) == [0, 1, 2] and all(float(v[5:40].sum()) == 0 for v in importance.values())
    with torch.inference_mode():
        assert torch.allclose(cut(module, range(3), 29, importance)(**feeds).logits, module(**feeds).logits, atol=1e-5)


# What it refuses


def test_nothing_to_prune() -> None:
    parts = "`vocabulary`, `feed_forward`, `layers`, `heads`, `channels`, `sparsity`"
    with pytest.raises(ValidationError, match=f"nothing is pruned: give one of {parts}"):
        Prune()


@pytest.mark.integration
def test_more_layers_than_there_are(prune: Callable[..., Any]) -> None:
    with pytest.raises(StepError) as caught:
        prune(layers=3)
    assert str(caught.value) == "layers is 3; the model has 3, so none would go"


def test_the_vocabulary_of_a_model_of_images() -> None:
    where = Where(format=Format.TORCH, targets=(), task=ImageClassification(), hardware=HARDWARE, has_calibration=False)
    assert Prune(vocabulary=True).check(where) == ["vocabulary is of models that read text; the task is image-classification"]
