"""What `ioptim verify` finds when a record, the store, the recipe or the machine is not what it was."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path
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


class Recorded:
    """A run as it lies in the home folder, made without running anything."""

    def __init__(self, home: Path, *overrides: str, code: str = "", samples: tuple[Samples, ...] = (SAMPLES,)) -> None:
        self.home = home
        self.store = Store(home / "store").create()
        recipe = parse_recipe(parse(TEXT), Path("r.yaml"), overrides).recipe
        here = hardware.probe()
        made = self.put("compile", code or code_digest(), here.fingerprint)
        measured = self.put("validate", code or code_digest(), here.fingerprint, samples)
        assert made.model is not None and measured.files is not None
        asked: tuple[Gate, ...] = recipe.steps[1].gates  # type: ignore[attr-defined]
        artifact = ArtifactRef(digest=made.model, path=str(self.store.root / "objects" / made.model), format=Format.ONNX, size_bytes=1)
        validate = NodeRecord(
            id="validate",
            step="validate",
            target="cpu",
            parents=("compile",),
            config=recipe.steps[1].model_dump(mode="json"),
            status=Status.GATE_FAILED,
            key="validate",
            gates=tuple(result for gate in asked for result in gates.judge(gate, samples, ["compile"])),
            subjects={name: {"accuracy": sum(map(float, values)) / len(values)} for name, values in SAMPLES.values.items()},  # type: ignore[arg-type]
            artifact=artifact,
            files=str(self.store.files(measured.files)),
        )
        self.record = RunRecord(
            run_id="20260101-r-1",
            recipe="r",
            recipe_path="r.yaml",
            recipe_text=TEXT,
            recipe_config=recipe.model_dump(mode="json"),
            overrides=overrides,
            recipe_digest=recipe.digest,
            status=Status.GATE_FAILED,
            exit_code=ExitCode.GATE,
            hardware=here,
            environment={"pydantic": hardware.versions(["pydantic"])["pydantic"] or ""},
            nodes=(NodeRecord(id="compile", step="compile", target="cpu", parents=(), key="compile", artifact=artifact), validate),
        )
        local.create_run(home, self.record)

    def put(self, key: str, code: str, machine: str, samples: tuple[Samples, ...] = ()) -> Result:
        with self.store.work() as out:
            written = None
            if samples:
                (out / "files").mkdir()
                write_samples(out / "files", samples, machine)
            else:
                (out / "model").mkdir()
                (out / "model" / "m").write_text(key)
                written = Written(format=Format.ONNX, entry="m")
            return self.store.put(key, key, {"ioptim": code}, Outcome(written=written), out, 1.0, None)

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
    assert [line.split(maxsplit=1)[0] for line in lines[1:-1]] == ["ok"] * 8
    assert [" ".join(line.split()) for line in lines] == [
        "20260101-r-1 (gate_failed)",
        f"ok recipe digest {run.record.recipe_digest[:12]} is that of the recorded text",
        f"ok compile, validate object {model.digest[:12]} is as it was sealed",
        f"ok files of validate object {files[:12]} is as it was sealed",
        "ok figures of validate follow from the recorded samples",
        "ok validate: accuracy max_drop 0.2 of compile pass follows from the recorded samples",
        "ok validate: accuracy max_drop 0.01 by genre of compile fail follows from the recorded samples",
        f"ok hardware this machine ({run.record.hardware.fingerprint})",
        "ok libraries the versions that it was measured with",
        "holds: 8 ok, 0 wrong, 0 to note",
    ]


def test_a_home_that_has_moved_holds(home: Path, capsys: pytest.CaptureFixture[str]) -> None:
    Recorded(home)
    shutil.move(home, home.parent / "elsewhere")
    assert verified(home.parent / "elsewhere", capsys, ExitCode.PASS) == {}


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


def test_a_figure_of_a_model_that_does_not_follow_is_found(home: Path, capsys: pytest.CaptureFixture[str]) -> None:
    run = Recorded(home)
    run.change(lambda document: document["nodes"][1]["subjects"]["compile"].update(accuracy=0.99))
    text = "accuracy of compile is recorded as 0.99, and the samples say 0.925"
    assert verified(home, capsys) == {"figures of validate": text}


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
    assert wrong["validate: accuracy max_drop 0.01 by genre"] == "the recipe has this gate, and the record no verdict on it"


def test_an_exit_code_that_hides_a_failed_gate_is_found(home: Path, capsys: pytest.CaptureFixture[str]) -> None:
    run = Recorded(home)
    run.change(lambda document: document.update(exit_code=0))
    assert verified(home, capsys) == {"exit code": "0 is recorded, and a gate blocks"}


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
    run.change(lambda document: document["nodes"][1].update(status="error", gates=[], files=None))
    assert verified(home, capsys, ExitCode.PASS) == {"gates of validate": "not judged: the step ended as error"}


def test_a_run_that_is_not_there_is_said(home: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["verify", "no-such"]) == ExitCode.UNAVAILABLE
    assert "there is no run 'no-such'" in capsys.readouterr().err
