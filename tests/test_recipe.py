from __future__ import annotations

import json
from pathlib import Path

import pytest

from ioptim.errors import RecipeError
from ioptim.recipe import Loaded, read_recipe, schema

ROOT = Path(__file__).parents[1]

GOOD = """\
model:
  source: model.onnx
  task: text-classification
data:
  validation: {source: test.tsv}
targets:
  - name: cpu
    runtime: onnxruntime
steps:
  - profile
  - step: quantize
    scheme: int8-dynamic
  - step: compile
"""


def read(tmp_path: Path, text: str, *overrides: str) -> Loaded:
    path = tmp_path / "mine.yaml"
    path.write_text(text)
    return read_recipe(path, overrides)


def mistakes(tmp_path: Path, text: str, *overrides: str) -> list[str]:
    with pytest.raises(RecipeError) as caught:
        read(tmp_path, text, *overrides)
    return [str(problem) for problem in caught.value.problems]


def test_short_forms_and_defaults(tmp_path: Path) -> None:
    recipe = read(tmp_path, GOOD).recipe
    assert recipe.name == "mine"
    assert [step.step for step in recipe.steps] == ["profile", "quantize", "compile"]
    assert recipe.targets[0].device == "cpu"
    assert recipe.targets[0].runtime.runtime == "onnxruntime"
    assert recipe.model.task.task == "text-classification"


def test_a_misspelt_key_gets_a_suggestion_and_its_line(tmp_path: Path) -> None:
    [mistake] = mistakes(tmp_path, GOOD.replace("scheme:", "schem:").replace("int8-dynamic", "int8-dynamic\n    scheme: int8-dynamic"))
    assert mistake.startswith("line 12: steps.quantize.schem: unknown key; did you mean 'scheme'? Accepted here: step, id, after, target,")


def test_every_mistake_is_reported_at_once(tmp_path: Path) -> None:
    text = GOOD.replace("text-classification", "text-clasification").replace(
        "runtime: onnxruntime", "runtime: onnxruntme\n    threads: '2'"
    )
    text = text.replace("- profile", "- profil").replace("int8-dynamic", "int8-dynmic") + "etc: 1\n"
    found = mistakes(tmp_path, text)
    assert len(found) == 6
    assert found[0].startswith("line 3: model.task: unknown task 'text-clasification'; did you mean 'text-classification'? There are:")
    assert found[1].startswith("line 8: targets.cpu.runtime: unknown runtime 'onnxruntme'; did you mean 'onnxruntime'? There are:")
    assert found[2] == 'line 9: targets.cpu.threads: input should be a valid integer; received "2"'
    assert found[3].startswith("line 11: steps.profil: unknown step 'profil'; did you mean 'profile'? There are:")
    assert found[4].startswith("line 13: steps.quantize.scheme: 'int8-dynmic' is not accepted; did you mean 'int8-dynamic'? Accepted:")
    assert found[5].startswith("line 15: etc: unknown key. Accepted here: name, description, seed, model, data, targets, steps")


def test_missing_keys_say_what_they_are(tmp_path: Path) -> None:
    found = mistakes(tmp_path, "steps: []\nmodel: {task: text-classification}\ntargets: [{name: a}]\n")
    assert "line 1: steps: at least one is needed; there is none" in found
    assert any(m.startswith("line 2: model.source: missing key (package:NAME") for m in found)
    assert any(m.startswith("line 3: targets.a.runtime: missing key (name of the runtime") for m in found)


def test_a_gate_has_one_bound(tmp_path: Path) -> None:
    text = GOOD + "  - step: validate\n    gates: [{metric: accuracy, max_drop: 0.1, max_ratio: 2.0}]\n"
    [mistake] = mistakes(tmp_path, text)
    assert mistake == (
        "line 15: steps.validate.gates.accuracy: a gate has exactly one bound out of max_drop, max_ratio, min_ratio, min_speedup,"
        " min_value, max_value; this one has max_drop, max_ratio"
    )


@pytest.mark.parametrize(
    ("stem", "better"), [("my recipe", "my-recipe"), ("_small", "small"), ("модель", "my-recipe"), ("x" * 90, "x" * 80)]
)
def test_a_file_name_that_is_no_recipe_s(tmp_path: Path, stem: str, better: str) -> None:
    path = tmp_path / f"{stem}.yaml"
    path.write_text(GOOD)
    with pytest.raises(RecipeError) as caught:
        read_recipe(path, ["seed=1"])
    shown = stem if len(stem) < 60 else f"{stem[:56]}..."
    assert [str(problem).replace('"', "") for problem in caught.value.problems] == [
        f"name: the file's name, {shown}, cannot be the recipe's: a name has at most 80 letters, digits and ._- and starts with"
        f" a letter or digit. Write a name into the file, for example `name: {better}`, or rename the file"
    ]
    assert read_recipe(path, [f"name={better}"]).recipe.name == better


def test_a_name_that_is_written_and_wrong(tmp_path: Path) -> None:
    [mistake] = mistakes(tmp_path, f"name: my recipe\n{GOOD}")
    assert mistake.startswith("line 1: name: string should match pattern")


@pytest.mark.parametrize(("text", "kind"), [("", "nothing"), ("- a\n", "list"), ("word", "str")])
def test_a_file_that_is_no_mapping(tmp_path: Path, text: str, kind: str) -> None:
    [mistake] = mistakes(tmp_path, text)
    assert mistake.startswith("a recipe is a mapping with the keys name,") and mistake.endswith(f"this file holds {kind}")


def test_a_step_that_only_the_plan_may_add_is_unknown(tmp_path: Path) -> None:
    [mistake] = mistakes(tmp_path, GOOD.replace("- profile", "- source"))
    assert "unknown step 'source'" in mistake


class TestSet:
    def test_values_are_overridden_by_name(self, tmp_path: Path) -> None:
        recipe = read(tmp_path, GOOD, "steps.quantize.scheme=int8-static", "targets.cpu.threads=1", "data.validation.limit=8").recipe
        assert recipe.steps[1].scheme == "int8-static"  # type: ignore[attr-defined]
        assert recipe.targets[0].threads == 1
        assert recipe.data.validation is not None and recipe.data.validation.limit == 8

    def test_short_forms_grow_options(self, tmp_path: Path) -> None:
        recipe = read(tmp_path, GOOD, "steps.profile.timeout_s=5.0", "model.task.max_length=64").recipe
        assert recipe.steps[0].timeout_s == 5
        assert recipe.model.task.max_length == 64  # type: ignore[attr-defined]

    def test_a_path_is_meant_from_the_prompt(self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        (tmp_path / "here").mkdir()
        (tmp_path / "here" / "model.onnx").touch()
        monkeypatch.chdir(tmp_path / "here")
        assert read(tmp_path, GOOD, "model.source=model.onnx").recipe.model.source == str(tmp_path / "here" / "model.onnx")
        assert read(tmp_path, GOOD).recipe.model.source == "model.onnx"

    def test_all_that_name_nothing_are_reported(self, tmp_path: Path) -> None:
        found = mistakes(tmp_path, GOOD, "steps.quantise.scheme=x", "nonsense", "model.source.deep=1")
        assert found[0] == "--set steps.quantise.scheme: the recipe has no 'quantise' in steps; there are profile, quantize, compile"
        assert found[1] == "--set nonsense: expected PATH=VALUE, for example --set steps.quantize.scheme=int8-dynamic"

    def test_an_earlier_override_that_left_no_steps(self, tmp_path: Path) -> None:
        found = mistakes(tmp_path, GOOD, "steps=[1, {step: compile}, [x]]", "steps.foo.bar=1", "steps.0.bar=1", "steps.²=1")
        assert found == [
            "--set steps.foo.bar: the recipe has no 'foo' in steps; there are 0, compile, 2",
            "--set steps.0.bar: the recipe has no 'bar' in steps[0]; there is the value 1",
            "--set steps.²: the recipe has no '²' in steps; there are 0, compile, 2",
        ]

    def test_a_wrong_value_says_that_it_was_set(self, tmp_path: Path) -> None:
        [mistake] = mistakes(tmp_path, GOOD, "targets.cpu.threads=none")
        assert mistake == 'targets.cpu.threads: input should be a valid integer; received "none" (from --set)'


def test_the_digest_is_of_what_it_says(tmp_path: Path) -> None:
    plain = read(tmp_path, GOOD).recipe.digest
    assert read(tmp_path, "# a comment\n" + GOOD).recipe.digest == plain
    assert read(tmp_path, GOOD, "seed=1").recipe.digest != plain


def test_the_schema_is_current() -> None:
    committed = json.loads((ROOT / "recipes" / "recipe.schema.json").read_text())
    assert committed == schema(), "run: ioptim schema --output recipes/recipe.schema.json"


@pytest.mark.parametrize("path", sorted((ROOT / "recipes").glob("*.yaml")), ids=lambda p: p.stem)
def test_every_recipe_reads_and_names_its_schema_and_command(path: Path) -> None:
    first, second = path.read_text().splitlines()[:2]
    assert first == "# yaml-language-server: $schema=recipe.schema.json"
    assert second.startswith(f"# ioptim run recipes/{path.name}")
    assert read_recipe(path).recipe.description
