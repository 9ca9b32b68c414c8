"""What runs in a model's process, here in the test's own, on the null runtime."""

from __future__ import annotations

import json
import time
from pathlib import Path
from typing import Any

import pytest

from ioptim import hardware
from ioptim.core.artifact import Format, ModelArtifact, TensorSpec, seal
from ioptim.errors import StepError
from ioptim.loadgen import Scenario
from ioptim.steps.benchmark import Benchmark
from ioptim.steps.benchmark.search import ServerLoad
from ioptim.subject import Subject
from ioptim.worker import WorkerContext

pytest.importorskip("mlperf_loadgen", reason="mlcommons-loadgen is not installed")
pytest.importorskip("tokenizers", reason="tokenizers is not installed")
WORDS = ["one", "one two", "one two three four", "one two three four one two three four"]


@pytest.fixture
def model(tmp_path: Path) -> ModelArtifact:
    """Takes tokens, answers zeros; a token is a word."""
    from tokenizers import Tokenizer, models, pre_tokenizers

    folder = tmp_path / "model"
    folder.mkdir()
    tokenizer = Tokenizer(models.WordLevel({"[PAD]": 0, "one": 1, "two": 2, "three": 3, "four": 4}, "[PAD]"))
    tokenizer.pre_tokenizer = pre_tokenizers.Whitespace()  # type: ignore[assignment]
    tokenizer.save(str(folder / "tokenizer.json"))
    (folder / "null.json").write_text("{}")
    return seal(
        ModelArtifact(
            path=folder,
            format=Format.NULL,
            entry="null.json",
            inputs=(TensorSpec(name="input_ids", dtype="int64", shape=("batch", "sequence")),),
            outputs=(TensorSpec(name="logits", dtype="float32", shape=("batch", 2)),),
            facts={"runtime": "null"},
        )
    )


@pytest.fixture
def subject_request(tmp_path: Path) -> dict[str, Any]:
    table = tmp_path / "rows.jsonl"
    table.write_text("".join(json.dumps({"sentence": text, "label": 0}) + "\n" for text in WORDS))
    return {
        "out": str(tmp_path),
        "scratch": str(tmp_path),
        "task": {"task": "text-classification"},
        "hardware": hardware.probe().model_dump(mode="json"),
        "targets": [{"name": "cpu", "threads": 1, "price_per_hour": 0.72, "runtime": {"runtime": "null"}}],
        "target": "cpu",
        "seed": 0,
        "candidates": {},
        "baselines": {},
        "base": str(tmp_path),
        "root": None,
        "data": {"validation": {"source": str(table)}},
    }


@pytest.fixture
def subject(subject_request: dict[str, Any], model: ModelArtifact, tmp_path: Path) -> Subject:
    return Subject({"request": subject_request, "model": str(model.path), "logs": str(tmp_path / "loadgen")})


def prepare(subject: Subject, padding: str = "natural", batch_size: int = 1, limit: int = 4) -> None:
    assert subject.prepare({"batch_size": batch_size, "padding": padding, "limit": limit})["rows"] == limit - limit % batch_size


def block(subject: Subject, scenario: str, queries: int, batch_size: int = 1) -> dict[str, Any]:
    rows = batch_size if scenario == "multi-stream" else 1
    load = {"scenario": scenario, "queries": queries, "rows_per_query": rows}
    assert subject.begin({"load": load, "batch_size": batch_size, "lead_in": 2}) is None
    found = subject.finish()
    assert found is not None
    return found


def seen(subject: Subject, monkeypatch: pytest.MonkeyPatch) -> list[tuple[int, ...]]:
    """Shapes of the feeds that the session gets from now on."""
    shapes: list[tuple[int, ...]] = []
    run = subject.session.run
    monkeypatch.setattr(subject.session, "run", lambda feeds: shapes.append(feeds["input_ids"].shape) or run(feeds))  # type: ignore[func-returns-value]
    return shapes


def test_single_stream_at_natural_length(subject: Subject, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    prepare(subject)
    shapes = seen(subject, monkeypatch)
    found = block(subject, "single-stream", 8)
    assert len(found["seconds"]) == 8
    assert found["padded_share"] == 0
    assert len(shapes) == 2 + 8  # the lead-in is not recorded
    assert sorted(shapes[2:6]) == [(1, 1), (1, 2), (1, 4), (1, 8)]
    assert sorted(path.name for path in (tmp_path / "loadgen" / "single-stream").iterdir()) == [
        "mlperf_log_detail.txt",
        "mlperf_log_summary.txt",
    ]


def test_the_answers_of_a_test_come_with_the_next(subject: Subject) -> None:
    prepare(subject)
    test = {"load": {"scenario": "single-stream", "queries": 4, "rows_per_query": 1}, "batch_size": 1, "lead_in": 0}
    assert subject.begin(test) is None
    before = subject.begin({**test, "load": {**test["load"], "queries": 8}})  # type: ignore[dict-item]
    assert before is not None
    assert len(before["seconds"]) == 4
    after = subject.finish()
    assert after is not None
    assert len(after["seconds"]) == 8
    assert subject.finish() is None


@pytest.mark.parametrize(
    ("padding", "shapes", "share"),
    [
        ("bucketed", [(2, 2), (2, 8)], 1 - 15 / 20),
        ("longest", [(2, 8), (2, 8)], 1 - 15 / 32),
    ],
)
def test_offline_batches(
    subject: Subject, monkeypatch: pytest.MonkeyPatch, padding: str, shapes: list[tuple[int, int]], share: float
) -> None:
    prepare(subject, padding, batch_size=2)
    ran = seen(subject, monkeypatch)
    found = block(subject, "offline", 8, batch_size=2)
    assert ran[-4:] == shapes * 2
    assert len(found["seconds"]) == 4  # one for each batch
    assert found["seconds"] == sorted(found["seconds"])
    assert found["padded_share"] == pytest.approx(share)


def test_bucketed_multi_stream(subject: Subject, monkeypatch: pytest.MonkeyPatch) -> None:
    prepare(subject, "bucketed", batch_size=2)
    block(subject, "multi-stream", 6, batch_size=2)  # and with it the look at the batches
    ran = seen(subject, monkeypatch)
    found = block(subject, "multi-stream", 6, batch_size=2)
    assert len(found["seconds"]) == 6
    assert set(ran) <= {(2, 2), (2, 4), (2, 8)}


def test_a_server_batches_what_waits(subject: Subject, monkeypatch: pytest.MonkeyPatch) -> None:
    prepare(subject)
    load = {"queries": 200, "rate_per_s": 20_000.0, "bound_s": 0.02, "percentile": 0.99}
    asked = {"load": load, "max_batch": 4, "max_delay_s": 0.001, "lead_in": 3}
    subject.serve(asked)  # and with it the look at a full batch
    ran = seen(subject, monkeypatch)
    found = subject.serve(asked)
    assert len(found["seconds"]) == 200
    assert [shape[0] for shape in ran[:3]] == [4, 4, 4]  # the lead-in
    ran = ran[3:]
    assert sum(shape[0] for shape in ran) == 200
    assert max(shape[0] for shape in ran) <= 4
    assert found["mean_batch"] == pytest.approx(200 / len(ran))
    assert 0 <= found["padded_share"] < 1


def test_an_error_of_the_session_is_raised_after_the_test(subject: Subject, monkeypatch: pytest.MonkeyPatch) -> None:
    prepare(subject)

    def refuse(feeds: Any) -> Any:
        raise StepError("refused")

    monkeypatch.setattr(subject.session, "run", refuse)
    load = {"scenario": "single-stream", "queries": 4, "rows_per_query": 1}
    subject.begin({"load": load, "batch_size": 1, "lead_in": 0})
    with pytest.raises(StepError, match="^refused$"):
        subject.finish()
    with pytest.raises(StepError, match="^refused$"):
        subject.serve({"load": {"queries": 20, "rate_per_s": 20_000.0}, "max_batch": 4, "max_delay_s": 0.0, "lead_in": 0})


def test_a_model_that_answers_nan_is_not_timed(subject: Subject, monkeypatch: pytest.MonkeyPatch) -> None:
    run = subject.session.run

    def broken(feeds: Any) -> Any:
        return {name: array * (float("nan") if feeds["input_ids"].shape == (1, 4) else 1) for name, array in run(feeds).items()}

    monkeypatch.setattr(subject.session, "run", broken)
    prepare(subject, limit=2)
    with pytest.raises(StepError) as raised:
        prepare(subject)
    assert str(raised.value) == "the output 'logits' is not a number (NaN) in 2 of its 2 values for rows.jsonl:3"


def scripted(subject: Subject, monkeypatch: pytest.MonkeyPatch, answer: Any) -> None:
    """The session answers from the token ids."""
    monkeypatch.setattr(subject.session, "run", lambda feeds: {"logits": answer(feeds["input_ids"]).astype("float32")})


def test_a_batch_that_answers_nan_is_not_timed(subject: Subject, monkeypatch: pytest.MonkeyPatch) -> None:
    """Each row alone is answered well."""
    scripted(subject, monkeypatch, lambda ids: ids[:, :1] * (float("nan") if ids.shape == (2, 8) else 1.0))
    prepare(subject, "bucketed", batch_size=2)
    subject.begin({"load": {"scenario": "offline", "queries": 4}, "batch_size": 2, "lead_in": 0})
    said = r"^the output 'logits' is not a number \(NaN\) in 2 of its 2 values for a batch of 2 rows, the first of them rows.jsonl:\d$"
    with pytest.raises(StepError, match=said):
        subject.finish()
    scripted(subject, monkeypatch, lambda ids: ids[:, :1] * (float("nan") if len(ids) == 4 else 1.0))
    with pytest.raises(StepError, match="for a batch of 4 rows, the first of them rows.jsonl:1$"):
        subject.serve({"load": {"queries": 4}, "max_batch": 4, "max_delay_s": 0.0, "lead_in": 0})


@pytest.mark.parametrize("padding", ["natural", "bucketed", "longest"])
@pytest.mark.parametrize("pooled", [True, False])
def test_a_batch_that_answers_as_its_rows_is_timed(subject: Subject, monkeypatch: pytest.MonkeyPatch, padding: str, pooled: bool) -> None:
    """Padding adds nothing to a sum; of an output of every token it is cut off, whatever it holds."""
    scripted(subject, monkeypatch, lambda ids: ids.sum(1, keepdims=True) if pooled else ids + 100 * (ids == 0))
    prepare(subject, padding, batch_size=2)
    for scenario, queries in (("offline", 8), ("multi-stream", 4)):
        assert block(subject, scenario, queries, batch_size=2)["seconds"]
    assert subject.serve({"load": {"queries": 20, "rate_per_s": 5e3}, "max_batch": 3, "max_delay_s": 0.0, "lead_in": 0})["seconds"]


def test_an_output_that_is_one_number_is_passed_over(subject: Subject, monkeypatch: pytest.MonkeyPatch) -> None:
    import numpy as np

    def answer(feeds: Any) -> Any:
        return {"logits": feeds["input_ids"].sum(1, keepdims=True).astype("float32"), "loss": np.array(0.5, "float32")}

    monkeypatch.setattr(subject.session, "run", answer)
    prepare(subject, batch_size=2)
    assert block(subject, "offline", 4, batch_size=2)["seconds"]


def test_a_batch_that_answers_otherwise_than_its_rows_is_not_timed(subject: Subject, monkeypatch: pytest.MonkeyPatch) -> None:
    """A sign for each row, by whether its last place holds a word: padding turns it round."""
    scripted(subject, monkeypatch, lambda ids: (ids[:, -1:] != 0) * 2 - 1)
    prepare(subject, batch_size=4)
    subject.begin({"load": {"scenario": "offline", "queries": 8}, "batch_size": 4, "lead_in": 0})
    with pytest.raises(StepError) as raised:
        subject.finish()
    assert str(raised.value) == (
        "in a batch, 4 rows get another output 'logits' than alone: cosine -0.50, at least 0.9 is accepted (padding: natural)."
        " Does the model take an attention_mask, and heed it? To time rows alone, set batch_size and server.max_batch to 1"
    )
    subject.serve({"load": {"queries": 8, "rate_per_s": 5e3}, "max_batch": 1, "max_delay_s": 0.0, "lead_in": 0})


def test_the_look_at_batches_is_in_no_time(subject: Subject, monkeypatch: pytest.MonkeyPatch) -> None:
    """The first test looks, and its `overhead_s` decides how many rows fit."""
    run = subject.session.run
    prepare(subject, batch_size=2)
    monkeypatch.setattr(subject.session, "run", lambda feeds: time.sleep(0.05) or run(feeds))  # type: ignore[func-returns-value]
    assert block(subject, "offline", 2, batch_size=2)["overhead_s"] < 0.05


def test_the_floor(subject: Subject) -> None:
    """Best of five: other processes make it longer, nothing makes it shorter."""
    prepare(subject)
    floors = [subject.floor() for _ in range(5)]
    assert 0 < min(floor["query_s"] for floor in floors) <= 20e-6
    assert max(floor["per_s"] for floor in floors) > 100


def test_the_whole_step_on_this_worker(
    subject_request: dict[str, Any], model: ModelArtifact, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Every scenario, with LoadGen in a process of its own."""
    import pyarrow.parquet as pq

    monkeypatch.setattr("ioptim.steps.benchmark.search.TRIAL_S", 0.1)
    load = ServerLoad(latency_bound_ms=1000, percentile=0.9, rate_per_s=200, max_batch=(4,))
    step = Benchmark(scenarios=tuple(Scenario), rows=4, batch_size=2, streams=2, blocks=6, duration_s=0.2, padding="bucketed", server=load)
    models = {"candidates": {"compile": str(model.path)}, "opened_on": {"compile": "cpu"}}
    outcome = step.run(model, WorkerContext({**subject_request, **models}))
    assert {"latency_p50_ms", "multi_stream_p50_ms", "throughput_per_s", "server_p90_ms", "cost_per_million"} <= set(outcome.metrics)
    assert outcome.metrics["server_rate_per_s"] == 200
    assert outcome.metrics["cost_per_million"] == pytest.approx(0.72 / 3600 / 200 * 1e6)
    assert outcome.facts["scenarios"]["offline"]["padded_share"] == pytest.approx(0.25)
    kept = pq.read_table(tmp_path / "files" / "latency.parquet").to_pydict()
    assert set(kept["scenario"]) == {scenario.value for scenario in Scenario}
    assert set(kept["subject"]) == {"compile"}
    assert min(kept["seconds"]) > 0
    folder = tmp_path / "files" / "loadgen" / "compile"
    assert sorted(path.parent.name for path in folder.rglob("mlperf_log_summary.txt")) == sorted(scenario.value for scenario in Scenario)
