"""What `ioptim verify` finds when a record, the store, the recipe or the machine is not what it was."""

from __future__ import annotations

import json
import shutil
import sys
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from types import MappingProxyType, SimpleNamespace
from typing import Any

import pytest

from ioptim import gates, hardware
from ioptim.cache import Result, Store
from ioptim.cli import main
from ioptim.core.artifact import Format, write_json
from ioptim.core.document import parse
from ioptim.core.gate import Gate
from ioptim.core.metrics import Kind, Metric, Samples, write_samples
from ioptim.core.record import ArtifactRef, NodeRecord, RunRecord, Status
from ioptim.core.step import Outcome, Written
from ioptim.errors import ExitCode
from ioptim.keys import code_digest
from ioptim.recipe import parse_recipe
from ioptim.steps import _fidelity as fidelity
from ioptim.steps.benchmark.scenarios import COST, THROUGHPUT
from ioptim.steps.validate import _keep_rows
from ioptim.tracking import local

TEXT = """\
model: {source: there, task: text-classification}
data: {validation: {source: rows.tsv}}
targets: [{name: cpu, runtime: onnxruntime}]
steps:
  - compile
  - step: validate
    gates:
      - {metric: accuracy, max_drop: 0.2, undecided: warn}
      - {metric: accuracy, max_drop: 0.01, slices: genre}
"""
ACCURACY = Metric(name="accuracy", higher_is_better=True, description="right")
LATENCY = Metric(name="latency_p50_ms", higher_is_better=False, description="time", unit="ms")
PROSE, VERSE = 300, 100
SAMPLES = Samples(
    metric=ACCURACY,
    kind=Kind.PAIRED_ROWS,
    values={"source": (1.0,) * 400, "compile": (1.0,) * PROSE + (0.0,) * 30 + (1.0,) * 70},
    slices={"genre": ("prose",) * PROSE + ("verse",) * VERSE},
)
TWO = SAMPLES.model_copy(update={"values": {**SAMPLES.values, "pruned": (1.0,) * 400}})
"""The one candidate fails, the other does not."""


class Recorded:
    """A run as it lies in the home folder, made without running anything; `raw` writes what a step keeps beside its samples."""

    def __init__(
        self,
        home: Path,
        *overrides: str,
        code: str = "",
        samples: tuple[Samples, ...] = (SAMPLES,),
        candidates: Sequence[str] = ("compile",),
        raw: Callable[[Path], object] = lambda folder: None,
        text: str = TEXT,
        figures: Mapping[str, Mapping[str, float]] = MappingProxyType({}),
    ) -> None:
        self.home = home
        self.store = Store(home / "store").create()
        recipe = parse_recipe(parse(text), Path("r.yaml"), overrides).recipe
        here = hardware.probe()
        subjects = {
            name: {each.metric.name: self.figure(each, name) for each in samples if name in each.values} | dict(figures.get(name, {}))
            for name in samples[0].values
        }
        compared = {"candidates": dict.fromkeys(candidates, ""), "baselines": dict.fromkeys(set(subjects) - set(candidates), "")}
        made = self.put("compile", {"ioptim": code or code_digest()})
        ingredients = {"ioptim": code or code_digest(), **compared}
        measured = self.put("validate", ingredients, here.fingerprint, samples, Outcome(subjects=subjects), raw)
        assert made.model is not None and measured.files is not None
        asked: tuple[Gate, ...] = recipe.steps[1].gates  # type: ignore[attr-defined]
        artifact = ArtifactRef(digest=made.model, path=str(self.store.root / "objects" / made.model), format=Format.ONNX, size_bytes=1)
        verdicts = tuple(result for gate in asked for result in gates.judge(gate, samples, candidates))
        blocked = any(result.blocks for result in verdicts)
        validate = NodeRecord(
            id="validate",
            step="validate",
            target="cpu",
            parents=("compile",),
            config=recipe.steps[1].model_dump(mode="json"),
            status=Status.GATE_FAILED if blocked else Status.PASSED,
            key="validate",
            computed=measured.computed,
            gates=verdicts,
            subjects=subjects,
            artifact=artifact,
            files=str(self.store.files(measured.files)),
        )
        compile = NodeRecord(
            id="compile", step="compile", target="cpu", parents=(), status=Status.PASSED, key="compile", artifact=artifact
        )
        self.record = RunRecord(
            run_id="20260101-r-1",
            recipe="r",
            recipe_path="r.yaml",
            recipe_text=text,
            recipe_config=recipe.model_dump(mode="json"),
            overrides=overrides,
            recipe_digest=recipe.digest,
            status=validate.status,
            exit_code=ExitCode.GATE if blocked else ExitCode.PASS,
            hardware=here,
            environment={"pydantic": hardware.versions(["pydantic"])["pydantic"] or ""},
            nodes=(compile, validate),
        )
        local.create_run(home, self.record)

    @staticmethod
    def figure(sample: Samples, name: str) -> float:
        value = sample.centre([value for value in sample.values[name] if value is not None])
        assert value is not None
        return value

    def put(
        self,
        key: str,
        ingredients: dict[str, Any],
        machine: str = "",
        samples: tuple[Samples, ...] = (),
        outcome: Outcome | None = None,
        raw: Callable[[Path], object] = lambda folder: None,
    ) -> Result:
        with self.store.work() as out:
            if outcome is not None:
                (out / "files").mkdir()
                write_samples(out / "files", samples, machine)
                raw(out / "files")
            else:
                (out / "model").mkdir()
                (out / "model" / "m").write_text(key)
                outcome = Outcome(written=Written(format=Format.ONNX, entry="m"))
            return self.store.put(key, key, ingredients, outcome, out, 1.0, None)

    @property
    def path(self) -> Path:
        return local.run_folder(self.home, self.record.run_id) / "run.json"

    def change(self, edit: Callable[[dict[str, Any]], None]) -> None:
        document = json.loads(self.path.read_text())
        edit(document)
        write_json(self.path, document)


def verified(home: Path, capsys: pytest.CaptureFixture[str], code: ExitCode = ExitCode.GATE) -> dict[str, str]:
    """Details of the checks that are not ok, by subject; the command must end with `code`."""
    assert main(["verify", "--home", str(home), "--json"]) == code
    document = json.loads(capsys.readouterr().out)
    assert document["holds"] is (code is ExitCode.PASS)
    return {check["subject"]: check["detail"] for check in document["checks"] if check["state"] != "ok"}


def test_a_run_that_holds(home: Path, capsys: pytest.CaptureFixture[str]) -> None:
    run = Recorded(home)
    model, files = run.record.nodes[1].artifact, Path(run.record.nodes[1].files or "").name
    assert model is not None
    assert main(["verify"]) == ExitCode.PASS
    lines = capsys.readouterr().out.splitlines()
    assert [line.split(maxsplit=1)[0] for line in lines[1:-1]] == ["ok"] * 9
    assert [" ".join(line.split()) for line in lines] == [
        "20260101-r-1 (gate_failed)",
        f"ok recipe digest {run.record.recipe_digest[:12]} is that of the recorded text",
        f"ok compile, validate object {model.digest[:12]} is as it was sealed",
        f"ok files of validate object {files[:12]} is as it was sealed",
        "ok results recorded as the steps returned them",
        "ok figures of validate follow from the recorded samples",
        "ok validate: accuracy max_drop 0.2 of compile pass follows from the recorded samples",
        "ok validate: accuracy max_drop 0.01 by genre of compile fail follows from the recorded samples",
        f"ok hardware this machine ({run.record.hardware.fingerprint})",
        "ok libraries the versions that it was measured with",
        "holds: 9 ok, 0 wrong, 0 to note",
    ]


def test_a_home_that_has_moved_holds(home: Path, capsys: pytest.CaptureFixture[str]) -> None:
    Recorded(home)
    shutil.move(home, home.parent / "elsewhere")
    assert verified(home.parent / "elsewhere", capsys, ExitCode.PASS) == {}


def test_a_run_of_another_home_is_held_against_that_home(
    home: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = Recorded(home).path.parent
    monkeypatch.chdir(folder)
    for named in (str(folder), str(folder / "run.json"), "."):
        assert main(["verify", named, "--home", str(home.parent / "other")]) == ExitCode.PASS
        assert "holds: 9 ok, 0 wrong, 0 to note" in capsys.readouterr().out


def test_a_changed_byte_in_the_store_is_found(home: Path, capsys: pytest.CaptureFixture[str]) -> None:
    run = Recorded(home)
    artifact = run.record.nodes[0].artifact
    assert artifact is not None
    (Path(artifact.path) / "m").write_text("compilf")
    wrong = verified(home, capsys)
    assert wrong == {"compile, validate": f"the object {artifact.digest[:12]} is damaged: m has other content than was sealed"}


def test_changed_samples_are_found_and_judge_nothing(home: Path, capsys: pytest.CaptureFixture[str]) -> None:
    run = Recorded(home)
    samples = Path(run.record.nodes[1].files or "") / "samples.json"
    samples.write_text(samples.read_text().replace("0.0", "1.0"))
    wrong = verified(home, capsys)
    assert wrong["gates of validate"] == "the samples that they were judged from are missing or damaged"
    assert wrong["files of validate"].endswith("is damaged: its files are not as they were sealed")


def test_what_was_pruned_cannot_be_verified(home: Path, capsys: pytest.CaptureFixture[str]) -> None:
    run = Recorded(home)
    shutil.rmtree(run.store.root / "objects")
    wrong = verified(home, capsys)
    assert wrong["compile, validate"].endswith(" is missing") and wrong["files of validate"].endswith(" is missing")


def test_a_verdict_that_does_not_follow_is_found(home: Path, capsys: pytest.CaptureFixture[str]) -> None:
    run = Recorded(home)
    run.change(lambda document: document["nodes"][1]["gates"][1].update(verdict="pass"))
    wrong = verified(home, capsys)
    assert wrong["validate: accuracy max_drop 0.01 by genre of compile"].startswith(
        "pass is recorded, and the samples say fail: worst of 2 slices by genre, verse: accuracy of compile fell by 0.3 against source"
    )
    assert wrong["validate"] == "the step ended as gate_failed, which does not follow from its verdicts"


def test_a_figure_that_does_not_follow_is_found(home: Path, capsys: pytest.CaptureFixture[str]) -> None:
    run = Recorded(home)
    run.change(lambda document: document["nodes"][1]["gates"][0].update(estimate=0.01, interval=[0.0, 0.02]))
    [(subject, detail)] = verified(home, capsys).items()
    assert subject == "validate: accuracy max_drop 0.2 of compile"
    assert detail.startswith("another estimate, interval is recorded than the samples give: accuracy of compile fell by 0.075")


@pytest.mark.parametrize("changed", [{"n": 101}, {"candidate_value": 0.9}, {"interval": [0.0, 0.1]}, {"verdict": "undecided"}])
def test_a_slice_that_does_not_follow_is_found(home: Path, capsys: pytest.CaptureFixture[str], changed: dict[str, Any]) -> None:
    run = Recorded(home)
    run.change(lambda document: document["nodes"][1]["gates"][1]["slices"][1].update(changed))
    [(subject, detail)] = verified(home, capsys).items()
    assert subject == "validate: accuracy max_drop 0.01 by genre of compile"
    assert detail.startswith("another slices is recorded than the samples give: worst of 2 slices by genre, verse")


def test_a_figure_of_a_model_that_does_not_follow_is_found(home: Path, capsys: pytest.CaptureFixture[str]) -> None:
    run = Recorded(home)
    run.change(lambda document: document["nodes"][1]["subjects"]["compile"].update(accuracy=0.99))
    assert verified(home, capsys) == {
        "figures of validate": "accuracy of compile is recorded as 0.99, and the samples say 0.925",
        "results": "recorded otherwise than returned: subjects.compile.accuracy of validate",
    }


def test_a_figure_that_no_sample_tells_is_held_against_what_the_step_returned(home: Path, capsys: pytest.CaptureFixture[str]) -> None:
    run = Recorded(home)
    run.change(lambda document: document["nodes"][1]["metrics"].update(load_s=0.1))
    assert verified(home, capsys) == {"results": "recorded otherwise than returned: metrics.load_s of validate"}
    run.change(lambda document: document["nodes"][1].update(computed="2026-01-01T00:00:00.000+00:00"))
    text = "computed again since, or no longer in the store, so not compared: validate"
    assert verified(home, capsys, ExitCode.PASS) == {"results": text}


def test_a_cost_follows_from_its_rate_and_not_from_the_costs_of_blocks(home: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """The cost at the median rate of two blocks is not the median of their costs."""
    rates = Samples(metric=THROUGHPUT.metric, kind=Kind.BLOCKS, values={"compile": (100.0, 200.0)})
    costs = Samples(metric=COST, kind=Kind.BLOCKS, values={"compile": (10.0, 5.0)})
    priced = TEXT.replace("runtime: onnxruntime", "runtime: onnxruntime, price_per_hour: 3.6")
    run = Recorded(home, samples=(SAMPLES, rates, costs), text=priced, figures={"compile": {COST.name: 1000 / 150}})
    assert verified(home, capsys, ExitCode.PASS) == {}
    run.change(lambda document: document["nodes"][1]["subjects"]["compile"].update({COST.name: 7.5}))
    text = "cost_per_million of compile is recorded as 7.5, and its rate and price say 6.66667"
    assert verified(home, capsys)["figures of validate"] == text


def keep(*samples: Samples) -> Callable[[Path], object]:
    """Writes the rows of these samples as `validate` does."""
    rows = SimpleNamespace(rows=tuple(f"rows.tsv:{i}" for i in range(400)))
    return lambda folder: _keep_rows(folder, samples, rows)  # type: ignore[arg-type]


def test_samples_that_follow_from_the_rows_beside_them(home: Path, capsys: pytest.CaptureFixture[str]) -> None:
    close = Samples(metric=fidelity.COSINE, kind=Kind.PAIRED_ROWS, values={"compile": (0.9,) * 399 + (None,)})
    worst = close.model_copy(update={"metric": fidelity.COSINE_P1})
    Recorded(home, samples=(SAMPLES, close, worst), raw=keep(SAMPLES, close, worst))
    assert main(["verify"]) == ExitCode.PASS
    assert "ok     samples of validate" in capsys.readouterr().out


def test_samples_that_do_not_follow_from_the_rows_beside_them_are_found(home: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """All the rest agrees: the verdicts and figures are those of the samples, and everything is sealed."""
    better = SAMPLES.model_copy(update={"values": dict.fromkeys(SAMPLES.values, (1.0,) * 400)})
    Recorded(home, samples=(better,), raw=keep(SAMPLES))
    assert verified(home, capsys) == {"samples of validate": "rows.jsonl gives another accuracy of compile"}
    other = home.parent / "other"
    Recorded(other, samples=(better,), raw=keep(SAMPLES), code="0" * 64)
    assert verified(other, capsys, ExitCode.PASS)["samples of validate"] == "rows.jsonl gives another accuracy of compile"


def test_a_raw_file_that_cannot_be_read_is_said(home: Path, capsys: pytest.CaptureFixture[str]) -> None:
    Recorded(home, raw=lambda folder: (folder / "rows.jsonl").write_text("{"))
    assert verified(home, capsys)["samples of validate"].startswith("rows.jsonl cannot be read: ")


def test_without_pyarrow_the_calls_are_not_looked_at(
    home: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    Recorded(home, raw=lambda folder: (folder / "latency.parquet").touch())
    monkeypatch.setitem(sys.modules, "pyarrow", None)
    text = "latency.parquet was not read: it needs pyarrow; install it with: pip install pyarrow"
    assert verified(home, capsys, ExitCode.PASS) == {"samples of validate": text}


def test_other_words_than_this_version_s_are_noted(home: Path, capsys: pytest.CaptureFixture[str]) -> None:
    run = Recorded(home)
    run.change(lambda document: document["nodes"][1]["gates"][0].update(reason="as good as new"))
    [(subject, detail)] = verified(home, capsys, ExitCode.PASS).items()
    assert subject == "words of validate: accuracy max_drop 0.2 of compile"
    assert detail.startswith("this version of ioptim says it otherwise: accuracy of compile fell by 0.075 against source")


def test_a_softened_bound_is_found(home: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """The verdict follows from the gate beside it, but that is not the gate of the step."""
    run = Recorded(home)
    softer = Gate(metric="accuracy", max_drop=0.5, slices="genre")
    [result] = gates.judge(softer, [SAMPLES], ["compile"])
    run.change(lambda document: document["nodes"][1]["gates"].__setitem__(1, result.model_dump(mode="json")))
    wrong = verified(home, capsys)
    assert wrong["validate: accuracy max_drop 0.01 by genre of compile"] == "the step has this gate, and the record no verdict on it"
    assert wrong["validate: accuracy max_drop 0.5 by genre of compile"] == "the record has this verdict, and the step no such gate"


def test_every_candidate_has_its_verdict(home: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """The verdicts of the one that fails are taken away, and all that follows from them is made to agree."""
    run = Recorded(home, samples=(TWO,), candidates=("compile", "pruned"))
    assert verified(home, capsys, ExitCode.PASS) == {}

    def forget(document: dict[str, Any]) -> None:
        node = document["nodes"][1]
        node.update(gates=[result for result in node["gates"] if result["candidate"] != "compile"], status="passed")
        document.update(status="passed", exit_code=0)

    run.change(forget)
    text = "the step has this gate, and the record no verdict on it"
    assert verified(home, capsys) == {
        "validate: accuracy max_drop 0.2 of compile": text,
        "validate: accuracy max_drop 0.01 by genre of compile": text,
    }


def test_a_gate_of_one_candidate_asks_for_no_verdict_on_another(home: Path, capsys: pytest.CaptureFixture[str]) -> None:
    named = TEXT.replace("max_drop: 0.01", "candidate: pruned, max_drop: 0.01").replace("max_drop: 0.2", "baseline: compile, max_drop: 0.2")
    run = Recorded(home, samples=(TWO,), candidates=("compile", "pruned"), text=named)
    assert [result.candidate for result in run.record.gates] == ["pruned", "pruned"]
    assert verified(home, capsys, ExitCode.PASS) == {}


def test_a_baseline_of_another_target_than_the_candidate_s_is_found(home: Path, capsys: pytest.CaptureFixture[str]) -> None:
    names = ("runtime-fp32@cpu", "runtime-fp32@gpu", "compile")
    samples = SAMPLES.model_copy(update={"values": dict.fromkeys(names, SAMPLES.values["compile"])})
    run = Recorded(home, samples=(samples,), text=TEXT.replace("max_drop", "baseline: runtime-fp32, max_drop"))

    def compare_with(target: str, document: dict[str, Any]) -> None:
        asked = (Gate.model_validate(gate) for gate in document["nodes"][1]["config"]["gates"])
        meant = [gate.model_copy(update={"baseline": f"runtime-fp32@{target}"}) for gate in asked]
        verdicts = [result for gate in meant for result in gates.judge(gate, [samples], ["compile"])]
        document["nodes"][1].update(gates=[result.model_dump(mode="json") for result in verdicts], status="passed")
        document.update(status="passed", exit_code=0)

    run.change(lambda document: compare_with("cpu", document))
    assert verified(home, capsys, ExitCode.PASS) == {}
    run.change(lambda document: document["nodes"][0].update(target=None))  # a model made for no target is that of the step
    assert verified(home, capsys, ExitCode.PASS) == {}
    run.change(lambda document: compare_with("gpu", document))
    assert "the step has this gate, and the record no verdict on it" in verified(home, capsys).values()


def test_a_gate_with_nobody_to_judge_has_the_verdict_that_says_so(home: Path, capsys: pytest.CaptureFixture[str]) -> None:
    run = Recorded(home, text=TEXT.replace("max_drop: 0.01,", "max_drop: 0.01, baseline: compile,"))
    assert run.record.gates[1].reason.startswith("accuracy of compile cannot be judged: the only candidate is its own baseline")
    assert verified(home, capsys, ExitCode.PASS) == {}


def test_which_models_were_judged_cannot_be_told_without_the_result(home: Path, capsys: pytest.CaptureFixture[str]) -> None:
    run = Recorded(home)
    (run.store.root / "results" / "validate.json").unlink()
    wrong = verified(home, capsys)
    assert wrong["gates of validate"] == "the store no longer has the step's result, which names the models that were judged"


@pytest.mark.parametrize(
    ("changed", "detail"),
    [
        ({"exit_code": 0}, "gate_failed with exit code 0 is recorded, and a gate blocks"),
        ({"status": "passed"}, "passed with exit code 1 is recorded, and a gate blocks"),
        ({"status": "passed", "exit_code": 0}, "passed with exit code 0 is recorded, and a gate blocks"),
        ({"exit_code": None}, "gate_failed with no exit code is recorded, and a gate blocks"),
    ],
)
def test_an_end_that_hides_a_failed_gate_is_found(
    home: Path, capsys: pytest.CaptureFixture[str], changed: dict[str, Any], detail: str
) -> None:
    Recorded(home).change(lambda document: document.update(changed))
    assert verified(home, capsys) == {"exit code": detail}


@pytest.mark.parametrize(
    ("changed", "detail"),
    [
        ({"exit_code": 1}, "passed with exit code 1 is recorded, and no gate blocks"),
        ({"status": "gate_failed"}, "gate_failed with exit code 0 is recorded, and no gate blocks"),
        ({"status": "gate_failed", "exit_code": 1}, "gate_failed with exit code 1 is recorded, and no gate blocks"),
    ],
)
def test_an_end_that_claims_a_failed_gate_is_found(
    home: Path, capsys: pytest.CaptureFixture[str], changed: dict[str, Any], detail: str
) -> None:
    Recorded(home, text=TEXT.replace("0.01", "0.5")).change(lambda document: document.update(changed))
    assert verified(home, capsys) == {"exit code": detail}


def test_a_step_that_claims_a_failed_gate_is_found_with_no_gate_at_all(home: Path, capsys: pytest.CaptureFixture[str]) -> None:
    run = Recorded(home, text=TEXT.replace("0.01", "0.5"))
    run.change(lambda document: document["nodes"][0].update(status="gate_failed"))
    assert verified(home, capsys) == {"compile": "the step ended as gate_failed, which does not follow from its verdicts"}


def test_a_run_that_was_stopped_says_itself_how_it_ended(home: Path, capsys: pytest.CaptureFixture[str]) -> None:
    run = Recorded(home, text=TEXT.replace("0.01", "0.5"))
    run.change(lambda document: document.update(status="interrupted", exit_code=130))
    assert verified(home, capsys, ExitCode.PASS) == {}
    run.change(lambda document: document["nodes"][0].update(status="interrupted"))
    run.change(lambda document: document.update(status="passed", exit_code=0))
    assert verified(home, capsys) == {"exit code": "passed with exit code 0 is recorded, and compile ended as interrupted"}


def test_a_configuration_that_is_not_the_text_s_is_found(home: Path, capsys: pytest.CaptureFixture[str]) -> None:
    run = Recorded(home)

    def change_and_digest_again(document: dict[str, Any]) -> None:
        from ioptim.core.base import digest_of

        document["recipe_config"]["steps"][1]["gates"][0]["max_drop"] = 0.3
        document["recipe_digest"] = digest_of(document["recipe_config"])

    run.change(lambda document: document.update(recipe_digest="0" * 64))
    assert verified(home, capsys) == {"recipe digest": "the recorded configuration has another digest than the recorded one"}
    run.change(change_and_digest_again)
    assert verified(home, capsys) == {"recipe": "the recorded configuration is not what the text says: steps[1].gates[0].max_drop"}


def test_a_value_that_nobody_wrote_is_found_and_in_another_version_only_noted(home: Path, capsys: pytest.CaptureFixture[str]) -> None:
    def change(document: dict[str, Any]) -> None:
        from ioptim.core.base import digest_of

        document["recipe_config"]["steps"][1]["batch_size"] = 7
        document["recipe_digest"] = digest_of(document["recipe_config"])

    Recorded(home).change(change)
    assert verified(home, capsys) == {"recipe": "the recorded configuration has values that nobody wrote: steps[1].batch_size"}
    other = home.parent / "other"
    Recorded(other, code="0" * 64).change(change)
    assert verified(other, capsys, ExitCode.PASS) == {
        "recipe": "what the text leaves out has other defaults in this version: steps[1].batch_size",
        "ioptim": "the code of the steps has changed since: measured again, the numbers may differ",
    }


def test_a_changed_recipe_file_of_the_run_is_found(home: Path, capsys: pytest.CaptureFixture[str]) -> None:
    run = Recorded(home)
    kept = run.path.with_name("recipe.yaml")
    kept.write_text(TEXT.replace("0.2", "0.3"))
    assert verified(home, capsys) == {"recipe text": f"{kept} is not the text that the run recorded"}


def test_a_path_from_the_command_line_means_the_same_in_another_folder(
    home: Path, capsys: pytest.CaptureFixture[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "model").mkdir()
    monkeypatch.chdir(tmp_path)
    loaded = parse_recipe(parse(TEXT), Path("r.yaml"), ["model.source=model"])
    assert loaded.overrides == (f"model.source={tmp_path / 'model'}",)
    assert loaded.recipe.model.source == str(tmp_path / "model")
    Recorded(home, *loaded.overrides)
    monkeypatch.chdir("/")
    assert verified(home, capsys, ExitCode.PASS) == {}


def test_other_hardware_and_versions_are_noted(home: Path, capsys: pytest.CaptureFixture[str]) -> None:
    run = Recorded(home)
    run.change(lambda document: document["hardware"].update(cpu_model="Old", cores=64))
    run.change(lambda document: document.update(environment={"pydantic": "1.0", "not-there": "2"}))
    noted = verified(home, capsys, ExitCode.PASS)
    assert noted["hardware"].startswith("measured on Old, 64 cores (")
    assert noted["libraries"].startswith("measured with ") and "pydantic 1.0 (here " in noted["libraries"]
    assert "not-there 2 (here none)" in noted["libraries"]


def test_times_of_another_machine_are_wrong(home: Path, capsys: pytest.CaptureFixture[str]) -> None:
    times = Samples(metric=LATENCY, kind=Kind.BLOCKS, values={"compile": (1.0,) * 6, "source": (2.0,) * 6})
    run = Recorded(home, samples=(SAMPLES, times))
    here = run.record.hardware.fingerprint
    run.change(lambda document: document["hardware"].update(cpu_model="Old"))
    assert verified(home, capsys)["times of validate"].startswith(f"taken on other hardware ({here}) than the run's (")


def test_a_step_that_ended_early_was_not_judged(home: Path, capsys: pytest.CaptureFixture[str]) -> None:
    run = Recorded(home)
    run.change(lambda document: document["nodes"][1].update(status="error", gates=[], files=None, computed=None))
    run.change(lambda document: document.update(status="error", exit_code=4))
    assert verified(home, capsys, ExitCode.PASS) == {"gates of validate": "not judged: the step ended as error"}


def test_a_run_that_is_not_there_is_said(home: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["verify", "no-such"]) == ExitCode.UNAVAILABLE
    assert "there is no run 'no-such'" in capsys.readouterr().err
