"""The runtime that computes nothing."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

from ioptim.core.artifact import Format, ModelArtifact, TensorSpec, verify
from ioptim.core.runtime import Target
from ioptim.runtimes.null import Null


def test_zeros_in_the_shapes_of_the_outputs(tmp_path: Path, target_of: Callable[..., Target]) -> None:
    import numpy as np

    model = ModelArtifact(
        path=tmp_path,
        format=Format.NULL,
        entry="null.json",
        inputs=(TensorSpec(name="input_ids", dtype="int64", shape=("batch", "sequence")),),
        outputs=(
            TensorSpec(name="last_hidden_state", dtype="float32", shape=("batch", "sequence", 8)),
            TensorSpec(name="boxes", dtype="float16", shape=("batch", "found", 4)),
        ),
    )
    session = Null().open(model, target_of(Null()))
    for batch, length in ((1, 5), (3, 7)):
        outputs = session.run({"input_ids": np.ones((batch, length), np.int64)})
        assert outputs["last_hidden_state"].shape == (batch, length, 8)
        assert outputs["boxes"].shape == (batch, 1, 4)
        assert outputs["boxes"].dtype == np.float16
        assert not any(array.any() for array in outputs.values())
    session.close()


def test_compile_seal_open(compiled: Callable, tmp_path: Path) -> None:  # type: ignore[type-arg]
    model = ModelArtifact(path=tmp_path, format=Format.ONNX, entry="model.onnx", digest="abc")
    outcome, artifact, session = compiled(Null(), model)
    assert artifact.facts == {"runtime": "null"}
    assert verify(artifact) == []
    assert session.run({}) == {}
    assert [note.text for note in outcome.notes] == ["the null runtime computes nothing: every output is zero"]


def test_takes_every_format_and_checks_itself(target_of: Callable[..., Target]) -> None:
    assert Null.accepts == set(Format)
    assert Null().self_check(target_of(Null())) == [2.0, 4.0, 6.0]
