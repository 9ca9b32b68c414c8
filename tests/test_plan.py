"""The graph: what is inserted, what fans out, and what is objected to. Sources are stand-ins: nothing is read or run."""

from __future__ import annotations

import shutil
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest

from ioptim import champions
from ioptim import plan as planning
from ioptim.champions import Champion, crown
from ioptim.core.artifact import Format, ModelArtifact, seal
from ioptim.core.source import ModelSpec
from ioptim.core.target import Hardware
from ioptim.core.task import Table
from ioptim.errors import PlanError, RecipeError, UnavailableError
from ioptim.keys import ingredients
from ioptim.plan import Plan, make_plan
from ioptim.recipe import read_recipe

ROOT = Path(__file__).parents[1]
HARDWARE = Hardware(cpu_model="test", cpu_flags=("avx512_vnni",), cores=2, threads=2, memory_bytes=8 << 30)


class Anything:
    """A source without objections."""

    cheap = False

    def __init__(self, spec: Any = None) -> None:
        self.spec = spec

    def check(self) -> list[str]:
        return []

    def identity(self) -> Mapping[str, str]:
        return {"digest": repr(self.spec and (self.spec.source, self.spec.split))}

    def outline(self) -> None:
        return None


@pytest.fixture(autouse=True)
def sources(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(planning, "model_source", lambda *args: Anything())
    monkeypatch.setattr(planning, "data_source", lambda spec, *args: Anything(spec))


HEAD = """\
model: {{source: {source}, task: feature-extraction}}
data: {{validation: {{source: "builtin:retrieval"}}, calibration: {{source: "builtin:retrieval"}}}}
targets:
  - {{name: ort, runtime: onnxruntime}}
{targets}steps:
"""


def plan(tmp_path: Path, steps: str, *, targets: str = "", source: str = "folder") -> Plan:
    path = tmp_path / "r.yaml"
    path.write_text(HEAD.format(source=source, targets=targets) + "".join(f"  - {line}\n" for line in steps.strip().splitlines()))
    return make_plan(read_recipe(path), HARDWARE)


def edges(made: Plan) -> dict[str, tuple[str, ...]]:
    return {node.id: node.parents for node in made.nodes}


def objections(made: Plan) -> list[str]:
    return [problem.message for problem in made.objections]


def test_a_chain_gets_its_export_and_baseline(tmp_path: Path) -> None:
    made = plan(tmp_path, "{step: quantize, scheme: int8-dynamic}\ncompile\nvalidate\nbenchmark")
    assert edges(made) == {
        "source": (),
        "export": ("source",),
        "quantize": ("source", "export"),
        "compile": ("quantize",),
        "runtime-fp32": ("export",),
        "validate": ("compile", "source", "runtime-fp32"),
        "benchmark": ("validate", "compile", "source", "runtime-fp32"),
    }
    assert made.node("export").inserted == "source is torch, what follows takes onnx"
    assert made.node("benchmark").candidates == ("compile",)
    assert made.node("benchmark").baselines == {"source": "source", "runtime-fp32": "runtime-fp32"}
    assert objections(made) == []


def test_an_onnx_source_needs_no_export(tmp_path: Path) -> None:
    made = plan(tmp_path, "{step: quantize, scheme: int8-dynamic}\ncompile", source="model.onnx")
    assert edges(made) == {"source": (), "quantize": ("source",), "compile": ("quantize",)}


def test_a_measuring_step_passes_its_model_on(tmp_path: Path) -> None:
    made = plan(tmp_path, "profile\n{step: quantize, scheme: int8-dynamic}\ncompile\nbenchmark\n{step: validate}")
    assert made.node("quantize").model == "export"
    assert made.node("quantize").parents == ("profile", "export")
    assert made.node("validate").candidates == ("compile",)


def test_several_targets_share_what_comes_before_them(tmp_path: Path) -> None:
    targets = "  - {name: ov, runtime: openvino}\n"
    made = plan(tmp_path, "{step: quantize, scheme: int8-static}\ncompile\nbenchmark", targets=targets)
    found = edges(made)
    assert found["compile@ort"] == found["compile@ov"] == ("quantize",)
    assert found["benchmark@ov"] == ("compile@ov", "source", "runtime-fp32@ov")
    assert [node.id for node in made.nodes].count("quantize") == 1


def test_a_comparison_takes_several_models(tmp_path: Path) -> None:
    made = plan(
        tmp_path,
        """
        {step: quantize, scheme: int8-static}
        {step: compile, id: a, target: ort, after: [quantize]}
        {step: compile, id: b, target: ov, after: [quantize]}
        {step: compile, id: c, target: pt, after: [source]}
        {step: benchmark, after: [a, b, c]}
        """,
        targets="  - {name: ov, runtime: openvino}\n  - {name: pt, runtime: torch}\n",
    )
    assert made.node("benchmark").candidates == ("a", "b", "c")
    assert set(made.node("benchmark").baselines) == {"source", "runtime-fp32@ort", "runtime-fp32@ov", "runtime-fp32@pt"}
    assert made.node("c").parents == ("source",)
    assert objections(made) == []


def test_a_step_id_can_be_a_baseline(tmp_path: Path) -> None:
    made = plan(
        tmp_path,
        """
        {step: compile, id: float}
        {step: quantize, scheme: int8-dynamic, after: [source]}
        {step: compile, id: int8}
        {step: benchmark, gates: [{metric: latency_p50_ms, min_speedup: 1.1, baseline: float}]}
        """,
    )
    assert made.node("benchmark").baselines["float"] == "float"
    assert objections(made) == []


OV = "  - {name: ov, runtime: openvino}\n"
PLAIN_AND_SMALL = "{step: compile, id: plain}\n{step: quantize, scheme: int8-static, after: [source]}\n{step: compile, id: small}\n"
FASTER_THAN_PLAIN = "gates: [{metric: latency_p50_ms, min_speedup: 1.1, baseline: plain}]"


def step_baselines(made: Plan, node_id: str) -> dict[str, str]:
    """The baselines that gates ask for, beside those that are always there."""
    return {name: node for name, node in made.node(node_id).baselines.items() if name.partition("@")[0] not in ("source", "runtime-fp32")}


def test_a_step_as_a_baseline_is_that_of_the_candidate_s_target(tmp_path: Path) -> None:
    made = plan(tmp_path, f"{PLAIN_AND_SMALL}{{step: benchmark, {FASTER_THAN_PLAIN}}}", targets=OV)
    assert step_baselines(made, "benchmark@ort") == {"plain": "plain@ort"}
    assert step_baselines(made, "benchmark@ov") == {"plain": "plain@ov"}
    assert objections(made) == []


@pytest.mark.parametrize("after", ["other, small", "plain, small"])
def test_where_targets_meet_a_step_is_a_baseline_on_each(tmp_path: Path, after: str) -> None:
    other = "{step: compile, id: other, after: [source]}\n"
    steps = f"{PLAIN_AND_SMALL}{other}{{step: benchmark, after: [{after}], {FASTER_THAN_PLAIN}}}"
    made = plan(tmp_path, steps, targets=OV)
    assert step_baselines(made, "benchmark") == {"plain@ort": "plain@ort", "plain@ov": "plain@ov"}
    assert objections(made) == []


def test_a_baseline_of_one_target_is_everyone_s(tmp_path: Path) -> None:
    only = PLAIN_AND_SMALL.replace("id: plain", "id: plain, target: ort")
    made = plan(tmp_path, f"{only}{{step: benchmark, {FASTER_THAN_PLAIN}}}", targets=OV)
    assert step_baselines(made, "benchmark@ort") == step_baselines(made, "benchmark@ov") == {"plain": "plain"}
    assert objections(made) == []


def test_a_baseline_that_is_not_made_for_a_candidate_s_target(tmp_path: Path) -> None:
    steps = """
        {step: compile, id: a, target: ort, after: [source]}
        {step: compile, id: b, target: ov, after: [source]}
        {step: compile, id: plain, after: [a, b]}
        {step: compile, id: c, target: pt, after: [source]}
        """
    made = plan(tmp_path, f"{steps.strip()}\n{{step: benchmark, {FASTER_THAN_PLAIN}}}", targets=f"{OV}  - {{name: pt, runtime: torch}}\n")
    assert objections(made) == ["plain makes 2 models, one for each target, and none for pt; name another baseline"]


def test_candidates_that_would_be_their_own_baselines(tmp_path: Path) -> None:
    gates = "gates: [{metric: latency_p50_ms, min_speedup: 1.1, baseline: compile}]"
    made = plan(tmp_path, f"compile\n{{step: benchmark, {gates}}}", targets=OV)
    assert objections(made) == [f"compile@{name} would be compared with itself; name another baseline" for name in ("ort", "ov")]


def crowned(home: Path, target: str, runtime: str, format: Format) -> Champion:
    """A champion of the recipe `r`, promoted."""
    folder = home / f"made-for-{target}"
    folder.mkdir(parents=True)
    (folder / "m").write_text(target)
    made = seal(ModelArtifact(path=folder, format=format, entry="m"))
    place = champions.place(home, "r", target) / made.digest
    of = {"folder": place, "recipe": "r", "target": target, "digest": made.digest, "format": format, "runtime": runtime}
    origin = {"run_id": f"run-{target}", "made_by": "compile", "hardware": "there", "promoted": "then", "overridden": ("a gate failed",)}
    champion = Champion.model_validate({**of, **origin})
    crown(champion, made)
    return champion


NO_SLOWER = "gates: [{metric: latency_p50_ms, max_ratio: 1.03, baseline: champion%s}]"


def with_champions(tmp_path: Path, steps: str, *, targets: str = "") -> Plan:
    plan(tmp_path, steps, targets=targets)
    return make_plan(read_recipe(tmp_path / "r.yaml"), HARDWARE, home=tmp_path)


def test_a_champion_is_brought_in_where_a_gate_names_it(tmp_path: Path) -> None:
    champion = crowned(tmp_path, "ort", "onnxruntime", Format.ONNX)
    gates = f"{{step: validate, {NO_SLOWER % ''}}}".replace("latency_p50_ms, max_ratio: 1.03", "ndcg_at_10, max_drop: 0.01")
    made = with_champions(tmp_path, f"compile\n{gates}\n{{step: benchmark, {NO_SLOWER % ''}}}\n{{step: benchmark}}")
    assert objections(made) == []
    assert [node.id for node in made.nodes].count("champion") == 1
    node = made.node("champion")
    assert (node.parents, node.model, node.format) == ((), None, Format.ONNX)
    assert node.inserted == "baseline: the champion, compile of run run-ort"
    assert node.target is not None and node.target.name == "ort", "it is opened there"
    given = node.step.model_dump(include={"run_id", "made_by", "hardware", "promoted", "digest", "folder", "overridden"})
    assert given == {
        "run_id": "run-ort",
        "made_by": "compile",
        "hardware": "there",
        "promoted": "then",
        "digest": champion.digest,
        "folder": str(champion.folder),
        "overridden": ("a gate failed",),
    }
    assert [step_baselines(made, name) for name in ("validate", "benchmark", "benchmark-2")] == [{"champion": "champion"}] * 2 + [{}]


def test_the_keys_of_a_champion_hold_no_path_and_those_of_a_measurement_its_digest_alone(tmp_path: Path) -> None:
    champion = crowned(tmp_path, "ort", "onnxruntime", Format.ONNX)
    made = with_champions(tmp_path, f"compile\n{{step: benchmark, {NO_SLOWER % ''}}}")
    own = ingredients(made, made.node("champion"), {})
    assert own["step"]["digest"] == champion.digest and str(tmp_path) not in repr(own)
    digests = {node.id: node.id for node in made.nodes} | {"champion": champion.digest}
    measured = ingredients(made, made.node("benchmark"), digests)
    assert measured["baselines"]["champion"] == champion.digest
    assert "run-ort" not in repr(measured)


def test_of_several_targets_each_candidate_meets_the_champion_of_its_own(tmp_path: Path) -> None:
    crowned(tmp_path, "ort", "onnxruntime", Format.ONNX)
    crowned(tmp_path, "ov", "openvino", Format.OPENVINO)
    each = with_champions(tmp_path, f"compile\n{{step: benchmark, {NO_SLOWER % ''}}}", targets=OV)
    assert objections(each) == []
    assert step_baselines(each, "benchmark@ort") == {"champion": "champion@ort"}
    assert step_baselines(each, "benchmark@ov") == {"champion": "champion@ov"}
    both = "{step: compile, id: a, target: ort, after: [source]}\n{step: compile, id: b, target: ov, after: [source]}\n"
    met = with_champions(tmp_path, f"{both}{{step: benchmark, after: [a, b], {NO_SLOWER % ''}}}", targets=OV)
    assert step_baselines(met, "benchmark") == {"champion@ort": "champion@ort", "champion@ov": "champion@ov"}
    one = with_champions(tmp_path, f"{both}{{step: benchmark, after: [a, b], {NO_SLOWER % '@ov'}}}", targets=OV)
    assert (objections(one), step_baselines(one, "benchmark")) == ([], {"champion@ov": "champion@ov"})
    alone = with_champions(tmp_path, f"compile\n{{step: benchmark, {NO_SLOWER % '@ort'}}}")
    assert (objections(alone), step_baselines(alone, "benchmark")) == ([], {"champion@ort": "champion"})
    shutil.rmtree(champions.place(tmp_path, "r", "ov"))
    gone = with_champions(tmp_path, f"{both}{{step: benchmark, after: [a, b], {NO_SLOWER % '@ov'}}}", targets=OV)
    [objection] = objections(gone)
    assert objection.startswith("r has no champion for the target ov yet.")
    elsewhere = with_champions(tmp_path, f"compile\n{{step: benchmark, target: ort, {NO_SLOWER % '@ov'}}}", targets=OV)
    [objection] = objections(elsewhere)
    assert objection.startswith("no model is called 'champion@ov'; did you mean 'champion'? There are: ")


def test_only_a_candidate_that_is_judged_needs_a_champion(tmp_path: Path) -> None:
    crowned(tmp_path, "ort", "onnxruntime", Format.ONNX)
    both = "{step: compile, id: a, target: ort, after: [source]}\n{step: compile, id: b, target: ov, after: [source]}\n"
    gate = (NO_SLOWER % "").replace("champion", "champion, candidate: a")
    made = with_champions(tmp_path, f"{both}{{step: benchmark, after: [a, b], {gate}}}", targets=OV)
    assert (objections(made), step_baselines(made, "benchmark")) == ([], {"champion@ort": "champion@ort"})


def test_without_a_champion_the_plan_says_how_to_come_by_one(tmp_path: Path) -> None:
    made = with_champions(tmp_path, f"compile\n{{step: benchmark, {NO_SLOWER % ''}}}")
    assert [str(problem) for problem in made.objections] == [
        "line 7: steps.benchmark.gates.latency_p50_ms.baseline: r has no champion for the target ort yet. Run it once with another baseline"
        f" in this gate (ioptim run {tmp_path}/r.yaml --set steps.1.gates.0.baseline=source), then make what that run compiled the"
        " champion: ioptim promote RUN"
    ]
    once = make_plan(read_recipe(tmp_path / "r.yaml", ["steps.1.gates.0.baseline=source"]), HARDWARE, home=tmp_path)
    assert objections(once) == []


def test_a_champion_of_another_runtime(tmp_path: Path) -> None:
    crowned(tmp_path, "ort", "openvino", Format.OPENVINO)
    made = with_champions(tmp_path, f"compile\n{{step: benchmark, {NO_SLOWER % ''}}}")
    assert objections(made) == [
        "the champion for the target ort, compile of run run-ort, was compiled for openvino; ort now runs onnxruntime, which cannot open"
        " it. Give this target another name, or the old runtime"
    ]


def test_a_champion_that_cannot_be_read(tmp_path: Path) -> None:
    (crowned(tmp_path, "ort", "onnxruntime", Format.ONNX).folder.parent / champions.RECORD).write_text("{")
    [objection] = objections(with_champions(tmp_path, f"compile\n{{step: benchmark, {NO_SLOWER % ''}}}"))
    assert "champion.json cannot be read (JSONDecodeError). Promote a run again: ioptim promote RUN" in objection
    assert objections(with_champions(tmp_path, "compile\nbenchmark")) == [], "nobody asks for it"


def test_champion_is_no_name_for_a_step(tmp_path: Path) -> None:
    with pytest.raises(PlanError, match="the id 'champion' is taken by the plan; choose another"):
        plan(tmp_path, "{step: compile, id: champion}")


def test_a_step_that_measures_another_target_s_model(tmp_path: Path) -> None:
    made = plan(tmp_path, "{step: compile, target: ov}\n{step: profile, target: ort}", targets=OV)
    assert objections(made) == ["profile is for the target ort, but compile made its model for ov"]


def test_the_key_of_a_comparison_holds_the_settings_of_every_model_s_target(tmp_path: Path) -> None:
    steps = "{step: compile, id: a, target: ort}\n{step: compile, id: b, target: ov, after: [source]}\n"
    steps += "{step: validate, after: [a, b]}\n{step: benchmark, after: [a, b]}"

    def key(node: str, ov: str, pt: str = "") -> dict[str, Any]:
        targets = f"  - {{name: ov, runtime: openvino{ov}}}\n  - {{name: pt, runtime: torch{pt}}}\n"
        made = plan(tmp_path, steps, targets=targets)
        return ingredients(made, made.node(node), {each.id: "the same" for each in made.nodes})

    for node in ("validate", "benchmark"):
        assert key(node, "") != key(node, ", threads: 1")
        assert key(node, "") == key(node, "", ", threads: 1"), "nothing runs there"
    price = ", price_per_hour: 2"
    assert key("benchmark", price) != key("benchmark", "") == key("benchmark", "", price)
    assert key("validate", price) == key("validate", "")


def test_an_export_that_is_put_in_is_not_mistaken_for_the_recipe_s_own(tmp_path: Path) -> None:
    """The first validate needs the source in ONNX before the recipe's export has been reached, which is of the student."""
    steps = """
{step: validate, id: before}
{step: distill, student: {layers: 3}, held_out: 5, after: [source]}
{step: export}
{step: quantize, scheme: int8-dynamic}
{step: compile}
"""
    made = trained(tmp_path, steps)
    assert len({node.id for node in made.nodes}) == len(made.nodes)
    assert made.node("export").model == "distill" and made.node("quantize").model == "export"
    assert made.node("runtime-fp32").model == "export-source-onnx"
    assert made.node("export-source-onnx").inserted


def test_a_step_for_one_target_takes_what_was_made_for_it(tmp_path: Path) -> None:
    steps = """
{step: compile}
{step: profile, target: ov}
{step: benchmark, target: ort, after: [compile]}
"""
    made = plan(tmp_path, steps.strip(), targets=OV)
    assert objections(made) == []
    assert made.node("profile").model == "compile@ov"
    assert made.node("benchmark").candidates == ("compile@ort",)


def test_a_comparison_keeps_every_model_that_the_recipe_names(tmp_path: Path) -> None:
    """The compiled model was made from the quantized one: before and after are compared, not the last alone."""
    steps = """
{step: quantize, scheme: int8-dynamic}
{step: compile}
{step: validate, after: [quantize, compile]}
{step: benchmark, after: [validate, compile]}
"""
    made = plan(tmp_path, steps)
    assert made.node("validate").candidates == ("quantize", "compile")
    assert made.node("benchmark").candidates == ("compile",), "validate names no model: it hands one on"


def test_a_circle_is_drawn(tmp_path: Path) -> None:
    with pytest.raises(PlanError) as caught:
        plan(tmp_path, "{step: compile, id: a, after: [b]}\n{step: compile, id: b, after: [a]}")
    [problem] = caught.value.problems
    assert str(problem) == "line 6: steps.a.after: these steps wait for each other in a circle: a after b after a. Remove one `after`"


def test_an_after_that_names_nothing(tmp_path: Path) -> None:
    with pytest.raises(PlanError) as caught:
        plan(tmp_path, "{step: compile, id: fast}\n{step: benchmark, after: [fats]}")
    assert str(caught.value.problems[0]) == (
        "line 7: steps.benchmark.after: there is no step with the id 'fats'; did you mean 'fast'? There are: source, fast, benchmark"
    )


@pytest.mark.parametrize(
    ("steps", "message"),
    [
        ("{step: compile, target: orr}", "there is no target 'orr'; did you mean 'ort'? There are: ort"),
        (
            "{step: compile, id: a, after: [source]}\n{step: compile, id: b, after: [source]}\n{step: compile, after: [a, b]}",
            "compile takes one model, and 2 arrive: a, b",
        ),
        (
            "compile\n{step: benchmark, gates: [{metric: latency_p50, min_speedup: 1.1}]}",
            "benchmark has no metric 'latency_p50'; did you mean 'latency_p50_ms'? It has: ",
        ),
        (
            "compile\n{step: benchmark, gates: [{metric: latency_p50_ms, min_speedup: 1.1, baseline: sorce}]}",
            "no model is called 'sorce'; did you mean 'source'? There are: source, compile, runtime-fp32, champion",
        ),
        (
            "compile\n{step: benchmark, gates: [{metric: latency_p50_ms, min_speedup: 1.1, baseline: benchmark}]}",
            "no model is called 'benchmark'. There are: source, compile, runtime-fp32",
        ),
        (
            "compile\nvalidate\n{step: benchmark, gates: [{metric: latency_p50_ms, min_speedup: 1.1, baseline: validate}]}",
            "no model is called 'validate'. There are: source, compile, runtime-fp32",
        ),
        (
            "compile\n{step: benchmark, gates: [{metric: latency_p50_ms, min_speedup: 1.1, baseline: compile}]}",
            "compile would be compared with itself; name another baseline",
        ),
        (
            "compile\n{step: benchmark, gates: [{metric: latency_p50_ms, min_speedup: 1.1, baseline: champion}]}",
            "r has no champion for the target ort yet. Run it once with another baseline in this gate (ioptim run ",
        ),
        (
            "compile\n{step: benchmark, gates: [{metric: latency_p50_ms, min_speedup: 1.1, candidate: quantize}]}",
            "'quantize' is not measured here; candidates are compile",
        ),
        (
            "compile\n{step: validate, gates: [{metric: accuracy, max_drop: 0.1}]}",
            "validate has no metric 'accuracy'. It has: ndcg_at_10, recall_at_1, output_cosine_mean, output_cosine_p1",
        ),
    ],
)
def test_objections_are_in_the_plan(tmp_path: Path, steps: str, message: str) -> None:
    found = objections(plan(tmp_path, steps))
    assert any(text.startswith(message) for text in found), found


def test_slices_that_the_rows_do_not_have_are_objected_to_where_the_rows_can_be_read(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    class Rows(Anything):
        cheap = True

        def read(self) -> Table:
            columns = {"query": ["a", "b"], "passage": ["c", "d"], "topic": ["x", "y"]}
            return Table(columns=columns, rows=("1", "2"), origin="rows.tsv")

    monkeypatch.setattr(planning, "data_source", lambda *args: Rows())
    made = plan(tmp_path, "compile\n{step: validate, gates: [{metric: ndcg_at_10, max_drop: 0.1, slices: topc, undecided: warn}]}")
    assert [str(problem) for problem in made.objections] == [
        "line 7: steps.validate.gates: gate on ndcg_at_10: rows.tsv has no column 'topc' to slice by;"
        " did you mean 'topic'? There are: query, passage, topic, input_length"
    ]


def test_rows_that_are_all_the_same_judge_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    class Rows(Anything):
        cheap = True

        def read(self) -> Table:
            return Table(columns={"query": ["a"] * 9, "passage": ["c"] * 9}, rows=tuple("123456789"), origin="rows.tsv")

    monkeypatch.setattr(planning, "data_source", lambda *args: Rows())
    made = plan(tmp_path, "compile\n{step: validate, gates: [{metric: ndcg_at_10, max_drop: 0.1}]}")
    assert str(made.objections[-1]) == (
        "line 7: steps.validate.gates: all 9 rows of rows.tsv are the same: one row repeated is the evidence of one row, and no gate"
        " can be judged"
    )


def test_a_format_that_nothing_makes(tmp_path: Path) -> None:
    made = plan(
        tmp_path,
        "{step: quantize, scheme: int8-dynamic}\n{step: compile, target: pt}",
        targets="  - {name: pt, runtime: torch}\n",
    )
    assert "the runtime torch takes torch; quantize provides onnx, and nothing turns onnx into that" in objections(made)


def test_a_work_pool_is_not_passed_over_in_silence(tmp_path: Path) -> None:
    made = plan(tmp_path, "compile", targets="  - {name: far, runtime: onnxruntime, pool: gpus}\n")
    assert "steps cannot be sent to a work pool yet ('gpus'); leave `pool` out and run on the machine that has the hardware" in objections(
        made
    )


def test_calibration_data_that_is_not_there(tmp_path: Path) -> None:
    path = tmp_path / "r.yaml"
    text = HEAD.format(source="folder", targets="").replace(', calibration: {source: "builtin:retrieval"}', "")
    path.write_text(text + "  - {step: quantize, scheme: int8-static}\n")
    assert "quantize needs data.calibration, and the recipe has none" in objections(make_plan(read_recipe(path), HARDWARE))


def test_data_that_no_step_reads_is_not_looked_at(tmp_path: Path) -> None:
    assert set(plan(tmp_path, "{step: quantize, scheme: int8-dynamic}\ncompile").data_sources) == set()
    assert set(plan(tmp_path, "{step: quantize, scheme: int8-static}\nbenchmark").data_sources) == {"calibration", "validation"}


@pytest.mark.parametrize("role", ["training", "dev"])
def test_rows_that_are_judged_by_are_not_tuned_on(tmp_path: Path, role: str) -> None:
    text = HEAD.format(source="folder", targets="") + "  - {step: distill, student: {layers: 1}}\n  - {step: validate}\n"
    others = "".join(f", {name}: {{source: 'file-{name}.tsv'}}" for name in ("training", "dev") if name != role)
    same = f", {role}: {{source: 'builtin:retrieval'}}"
    path = tmp_path / "r.yaml"
    path.write_text(text.replace(', calibration: {source: "builtin:retrieval"}', f"{others}{same}"))
    found = objections(make_plan(read_recipe(path), HARDWARE))
    assert f"data.{role} holds the validation rows; choose others, or gates mean nothing" in found


def test_calibration_on_the_rows_that_are_judged_by_is_a_warning(tmp_path: Path) -> None:
    made = plan(tmp_path, "{step: quantize, scheme: int8-static}\nvalidate")
    assert made.objections == ()
    [warning] = made.warnings
    assert warning.startswith("data.calibration holds the validation rows: ranges are fitted to what the gates judge")
    assert plan(tmp_path, "{step: quantize, scheme: int8-dynamic}\nvalidate").warnings == (), "calibration is not read"


def test_a_student_is_not_chosen_by_the_rows_it_learns(tmp_path: Path) -> None:
    text = HEAD.format(source="folder", targets="") + "  - {step: distill, student: {layers: 1}}\n"
    both = ", training: {source: rows.tsv}, dev: {source: rows.tsv, limit: 10}"
    path = tmp_path / "r.yaml"
    path.write_text(text.replace(', calibration: {source: "builtin:retrieval"}', both))
    made = make_plan(read_recipe(path), HARDWARE)
    assert objections(made) == [
        "data.dev holds the training rows, so it chooses by what was learned by heart; choose others, or set `held_out` on the step"
    ]


def test_missing_packages_are_named_with_the_command(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(planning, "installed", lambda name: name != "openvino")
    made = plan(tmp_path, "{step: compile, target: ov}", targets="  - {name: ov, runtime: openvino}\n")
    with pytest.raises(UnavailableError) as caught:
        made.require()
    assert str(caught.value) == "not installed: openvino (for compile). Install with: pip install 'ioptim[cpu]'"


@pytest.mark.parametrize("path", sorted((ROOT / "recipes").glob("*.yaml")), ids=lambda p: p.stem)
def test_every_recipe_plans(path: Path) -> None:
    made = make_plan(read_recipe(path), HARDWARE)
    assert objections(made) == []
    assert {node.step.step for node in made.nodes} >= {"source", "compile", "validate", "benchmark"}


# What a run would write


@pytest.mark.parametrize(
    ("uri", "place"),
    [
        ("sqlite:////anywhere/x.db", "/anywhere/x.db"),
        ("sqlite:///../x.db", "../x.db (it leads to {folder}/x.db)"),
        ("SQLite+pysqlite:////anywhere/x.db", "/anywhere/x.db"),
        ("sqlite:///file:/anywhere/x.db?uri=true", "/anywhere/x.db?uri=true"),
        ("sqlite:////anywhere?/../../{root}/x.db", "/anywhere"),
        ("file:///anywhere", "/anywhere"),
        ("file:{root}/%2e%2e/x", "{root}/../x (it leads to {folder}/x)"),
        ("file://localhost/anywhere", "/anywhere"),
        ("../runs", "../runs (it leads to {folder}/runs)"),
        ("link/runs", "link/runs (it leads to /anywhere/runs)"),
    ],
)
def test_a_tracking_uri_may_not_leave_the_root(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, uri: str, place: str) -> None:
    root = tmp_path / "root"
    root.mkdir()
    (root / "link").symlink_to("/anywhere")
    monkeypatch.chdir(root)
    made = tracked(root, uri.format(root=root))
    [problem] = made.objections
    text = f"{place.format(root=root, folder=tmp_path)} is outside the allowed root {root}; move it there, or allow a wider root"
    assert (problem.path, problem.message) == ("tracking.uri", text)


@pytest.mark.parametrize(
    "uri", ["http://mlflow:5000/a/../b", "databricks", "databricks://me", "postgresql://db/x", "sqlite:///x.db", "file:{root}/runs", "runs"]
)
def test_servers_and_places_inside_the_root_are_tracked(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, uri: str) -> None:
    monkeypatch.chdir(tmp_path)
    assert tracked(tmp_path, uri.format(root=tmp_path)).objections == ()


def tracked(root: Path, uri: str) -> Plan:
    path = root / "r.yaml"
    path.write_text(HEAD.format(source="folder", targets="") + f"  - compile\ntracking: {{uri: '{uri}'}}\n")
    return make_plan(read_recipe(path), HARDWARE, root)


# A step that reads another model than the one that arrives


TRAINED = HEAD.replace("data: {{", 'data: {{training: {{source: "a.tsv"}}, dev: {{source: "b.tsv"}}, ')


def trained(tmp_path: Path, steps: str, **changes: Any) -> Plan:
    path = tmp_path / "r.yaml"
    lines = "".join(f"  - {line}\n" for line in steps.strip().splitlines())
    path.write_text(TRAINED.format(source=changes.get("source", "folder"), targets="") + lines)
    return make_plan(read_recipe(path), HARDWARE)


def test_the_teacher_of_a_student_is_an_earlier_step(tmp_path: Path) -> None:
    made = trained(tmp_path, "{step: prune, layers: 3}\n{step: distill, teacher: source}\ncompile")
    distill = made.node("distill")
    assert (distill.model, distill.parents, distill.baselines) == ("prune", ("prune", "source"), {"teacher": "source"})
    assert objections(made) == []


def test_pruning_and_training_in_turns(tmp_path: Path) -> None:
    turns = "".join(f"{{step: prune, feed_forward: {width}}}\n{{step: distill, teacher: source}}\n" for width in (1152, 768))
    made = trained(tmp_path, f"{turns}compile")
    chain = [(node.id, node.model) for node in made.nodes if node.step.step in ("prune", "distill")]
    assert chain == [("prune", "source"), ("distill", "prune"), ("prune-2", "distill"), ("distill-2", "prune-2")]
    assert made.node("distill-2").baselines == {"teacher": "source"}
    assert objections(made) == []


def test_a_teacher_further_down_the_recipe_comes_first(tmp_path: Path) -> None:
    steps = """
        {step: distill, id: small, teacher: large, after: [source], student: {layers: 1}}
        {step: distill, id: large, after: [source], student: {layers: 3}}
        """
    made = trained(tmp_path, steps)
    assert [node.id for node in made.nodes] == ["source", "large", "small"]
    assert edges(made)["small"] == ("source", "large")


def test_a_teacher_that_is_no_step(tmp_path: Path) -> None:
    with pytest.raises(PlanError) as caught:
        trained(tmp_path, "{step: prune, layers: 3}\n{step: distill, teacher: prunes}")
    [problem] = caught.value.problems
    assert problem.path == "steps.distill.teacher"
    assert problem.message == "there is no step with the id 'prunes'; did you mean 'prune'? There are: source, prune, distill"


def test_a_teacher_that_waits_for_its_student(tmp_path: Path) -> None:
    with pytest.raises(PlanError) as caught:
        trained(tmp_path, "{step: distill, teacher: compile}\ncompile")
    [problem] = caught.value.problems
    assert problem.path == "steps.distill.teacher"
    assert problem.message == (
        "these steps wait for each other in a circle: distill after compile after distill. Name an earlier step as the teacher"
    )


def test_a_teacher_that_is_the_student(tmp_path: Path) -> None:
    made = trained(tmp_path, "{step: prune, layers: 3}\n{step: distill, teacher: prune}")
    assert objections(made) == ["the teacher prune is the model that arrives; name an earlier step, or leave `teacher` out"]


def test_a_teacher_that_is_no_torch_model(tmp_path: Path) -> None:
    steps = "{step: quantize, scheme: int8-dynamic}\n{step: distill, teacher: quantize, student: {layers: 1}, after: [source]}"
    made = trained(tmp_path, steps)
    assert objections(made) == ["the teacher quantize is onnx, and distill takes torch; name a step before that, for example source"]


def test_a_student_of_one_s_own_is_brought_in(tmp_path: Path) -> None:
    made = trained(tmp_path, "{step: distill, student: {checkpoint: other}}\ncompile")
    assert made.node("distill").baselines == {"student": "distill-student"}
    assert made.node("distill-student").inserted == "brings the student of distill in"
    assert made.node("distill-student").source == ModelSpec(source="other")
    assert objections(made) == []


def test_a_student_of_one_s_own_in_another_format(tmp_path: Path) -> None:
    made = trained(tmp_path, "{step: distill, student: {checkpoint: other.onnx}}")
    assert objections(made) == ["other.onnx is onnx, and distill takes torch"]


def test_the_key_holds_the_teacher_s_content_and_not_its_name(tmp_path: Path) -> None:
    def key(teacher: str, digest: str) -> dict[str, Any]:
        steps = f"{{step: prune, id: {teacher}, layers: 5}}\n{{step: prune, id: p, layers: 3}}\n{{step: distill, teacher: {teacher}}}"
        made = trained(tmp_path, steps)
        return ingredients(made, made.node("distill"), {"source": "s", teacher: digest, "p": "p"})

    assert key("a", "1") == key("b", "1") != key("a", "2")
    assert key("a", "1")["baselines"] == {"teacher": "1"}


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        (
            "{step: distill}",
            "name a `student` (what is cut out of the arriving model, or a checkpoint), or the `teacher` of the arriving model",
        ),
        (
            "{step: distill, teacher: source, student: {checkpoint: x}}",
            "the arriving model would be neither student nor teacher; leave `teacher` out"
            " and let this step follow source (`after: [source]`)",
        ),
        (
            "{step: distill, student: {checkpoint: x, layers: 2}}",
            "a student is a `checkpoint`, or is cut by `layers` and `feed_forward`; name one of the two",
        ),
        (
            "{step: distill, student: {layers: 2, weights: x}}",
            "revision, weights, allow_pickle and allow_remote_code are of a `checkpoint`; name it or leave them out",
        ),
    ],
)
def test_who_learns_from_whom_must_be_clear(tmp_path: Path, fields: str, message: str) -> None:
    with pytest.raises(RecipeError) as caught:
        trained(tmp_path, fields)
    assert [problem.message for problem in caught.value.problems] == [message]
