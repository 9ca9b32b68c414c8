"""What a plan says of a student before it is trained: from headers, and from a profile where one is in the store."""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

from ioptim.cache import Store
from ioptim.core.step import Outcome
from ioptim.core.target import Hardware
from ioptim.estimate import estimates
from ioptim.keys import Forecast, forecast
from ioptim.plan import Plan, make_plan
from ioptim.recipe import read_recipe

HARDWARE = Hardware(cpu_model="test", cpu_flags=(), cores=2, threads=2, memory_bytes=8 << 30)
WIDTH, NEURONS, WORDS, LAYERS = 8, 16, 50, 4


def write_checkpoint(folder: Path, layers: int = LAYERS, width: int = WIDTH) -> None:
    """Headers and zeros, by hand: nothing of torch's is needed to plan."""
    folder.mkdir()
    shapes: dict[str, list[int]] = {"bert.embeddings.word_embeddings.weight": [WORDS, width], "classifier.weight": [2, width]}
    for i in range(layers):
        at = f"bert.encoder.layer.{i}"
        shapes |= {f"{at}.attention.self.{name}.weight": [width, width] for name in ("query", "key", "value")}
        shapes |= {f"{at}.intermediate.dense.weight": [NEURONS, width], f"{at}.output.dense.weight": [width, NEURONS]}
    header, end = {}, 0
    for name, shape in shapes.items():
        size = 4 * shape[0] * shape[1]
        header[name] = {"dtype": "F32", "shape": shape, "data_offsets": [end, end + size]}
        end += size
    text = json.dumps(header).encode()
    (folder / "model.safetensors").write_bytes(len(text).to_bytes(8, "little") + text + bytes(end))
    config = {"vocab_size": WORDS, "hidden_size": width, "num_hidden_layers": layers, "intermediate_size": NEURONS}
    (folder / "config.json").write_text(json.dumps(config))
    (folder / "tokenizer.json").write_text("{}")


RECIPE = """\
model: {{source: large, task: text-classification}}
data:
  training: {{source: a.tsv}}
  dev: {{source: b.tsv}}
  validation: {{source: c.tsv}}
targets: [{{name: cpu, runtime: onnxruntime}}]
steps: [{steps}]
"""


@pytest.fixture
def plan(tmp_path: Path) -> Callable[[str], Plan]:
    write_checkpoint(tmp_path / "large")
    for name in "abc":
        (tmp_path / f"{name}.tsv").write_text(f"sentence\tlabel\ngood {name}\t1\nbad\t0\n")

    def make(steps: str) -> Plan:
        (tmp_path / "r.yaml").write_text(RECIPE.format(steps=steps))
        return make_plan(read_recipe(tmp_path / "r.yaml"), HARDWARE)

    return make


def said(made: Plan, store: Store) -> dict[str, str]:
    states: dict[str, Forecast] = {found.node: found for found in forecast(made, store)}
    return {node: str(estimate) for node, estimate in estimates(made, store, states).items()}


PER_LAYER = 3 * WIDTH * WIDTH + 2 * WIDTH * NEURONS
OTHERS = (WORDS + 2) * WIDTH


def test_by_the_operations_where_nothing_was_profiled(plan: Callable[[str], Plan], tmp_path: Path) -> None:
    """A layer: 448 weights for each of 128 tokens, and 2 x 128² x 8; the classifier's 16 once."""
    made = plan("{step: distill, student: {layers: 2}}")
    assert made.objections == ()
    large, small = (n * (PER_LAYER * 128 + 2 * 128 * 128 * WIDTH) + 2 * WIDTH for n in (4, 2))
    assert said(made, Store(tmp_path / "store").create()) == {
        "distill": f"{2 * PER_LAYER + OTHERS:,} of {4 * PER_LAYER + OTHERS:,} parameters, 1 of 1 million multiply-adds for 128 tokens;"
        f" about {large / small:.1f} times as fast, by the operations alone"
    }


def test_by_the_times_of_a_profile_in_the_store(plan: Callable[[str], Plan], tmp_path: Path) -> None:
    """Half the layers: products and what runs in every layer take half their time, looking words up takes all of it."""
    made = plan("{step: profile}, {step: distill, student: {layers: 2}}")
    store = Store(tmp_path / "store").create()
    shares = {"matrix_products_share": 0.4, "elementwise_share": 0.2, "embeddings_share": 0.4, "int8_time_share": 0.9}
    for node_id, metrics in (("source", {}), ("profile", shares)):
        key = {f.node: f.key for f in forecast(made, store)}[node_id]
        assert key is not None
        with store.work() as out:
            outcome = Outcome(metrics=metrics)
            if node_id == "source":
                (out / "model").mkdir()
                (out / "model/m").write_text("m")
                outcome = Outcome.model_validate({"written": {"format": "torch", "entry": "m"}})
            store.put(key, node_id, {}, outcome, out, 1.0, None)
    half = 1 / (0.4 * 0.5 + 0.2 * 0.5 + 0.4)
    [text] = said(made, store).values()
    assert text.endswith(f"; about {half:.1f} times as fast, by the times that profile has measured")


def test_a_model_in_the_store_is_read_there(plan: Callable[[str], Plan], tmp_path: Path) -> None:
    """Without it nobody knows what a step like `prune` leaves; with it the next one is known too."""
    made = plan("{step: prune, vocabulary: true}, {step: distill, teacher: source, student: {layers: 2}}")
    store = Store(tmp_path / "store").create()
    for node_id, layers, width in (("source", LAYERS, WIDTH), ("prune", 3, WIDTH)):
        key = {f.node: f.key for f in forecast(made, store)}[node_id]
        assert key is not None
        with store.work() as out:
            write_checkpoint(out / "model", layers, width)
            outcome = Outcome.model_validate({"written": {"format": "torch", "entry": "model.safetensors", "assets": ["config.json"]}})
            store.put(key, node_id, {}, outcome, out, 1.0, None)
    whole = f"{4 * PER_LAYER + OTHERS:,} parameters"
    found = said(made, store)
    assert found["prune"].startswith(f"{3 * PER_LAYER + OTHERS:,} of {whole}, ")
    assert found["distill"].startswith(f"{2 * PER_LAYER + OTHERS:,} of {whole}, ")


def test_a_pruned_model_s_teacher_is_what_it_is_compared_with(plan: Callable[[str], Plan], tmp_path: Path) -> None:
    write_checkpoint(tmp_path / "small", layers=1)
    made = plan("{step: distill, student: {checkpoint: small}}")
    [text] = said(made, Store(tmp_path / "store").create()).values()
    assert text.startswith(f"{PER_LAYER + OTHERS:,} of {4 * PER_LAYER + OTHERS:,} parameters, ")


@pytest.mark.parametrize(
    ("student", "message"),
    [
        ("{layers: 9}", "student.layers is 9; the model that arrives has 4, and a student is cut out of it"),
        ("{layers: 4}", "nothing would become smaller (4 layers); name fewer layers or a narrower feed_forward"),
        ("{feed_forward: 32}", "feed_forward is 32; the model's is 16 and cannot grow"),
        ("{checkpoint: larger}", f"the student has {6 * PER_LAYER + OTHERS:,} parameters and its teacher {4 * PER_LAYER + OTHERS:,}:"
         " a student cannot be larger"),
    ],
)  # fmt: skip
def test_a_student_larger_than_its_teacher_is_an_objection(plan: Callable[[str], Plan], tmp_path: Path, student: str, message: str) -> None:
    write_checkpoint(tmp_path / "larger", layers=6)
    made = plan(f"{{step: distill, student: {student}}}")
    assert [(problem.path, problem.message) for problem in made.objections] == [("steps.distill", message)]


def test_planning_loads_no_heavy_library(plan: Callable[[str], Plan], tmp_path: Path) -> None:
    plan("{step: distill, student: {layers: 2}}")
    code = (
        "import sys; from ioptim.cli import main; main(['plan', 'r.yaml', '--home', 'home']);"
        "heavy = {'torch', 'transformers', 'accelerate', 'safetensors', 'numpy', 'onnx'} & set(sys.modules);"
        "print('loaded:', sorted(heavy))"
    )
    ran = subprocess.run([sys.executable, "-c", code], cwd=tmp_path, capture_output=True, text=True, timeout=60)
    assert "expected: " in ran.stdout and ran.stdout.endswith("loaded: []\n"), ran.stdout + ran.stderr


def test_layers_that_prune_takes_out_are_known_before_it_runs(plan: Callable[[str], Plan], tmp_path: Path) -> None:
    made = plan("{step: prune, layers: 3}, {step: prune, id: words, vocabulary: true}")
    found = said(made, Store(tmp_path / "store").create())
    assert found["prune"].startswith(f"{3 * PER_LAYER + OTHERS:,} of {4 * PER_LAYER + OTHERS:,} parameters, ")
    assert found["words"].startswith(f"at most {3 * PER_LAYER + OTHERS:,} of {3 * PER_LAYER + OTHERS:,} parameters, ")


def test_a_student_of_a_teacher_with_fewer_words_is_known_before_it_runs(plan: Callable[[str], Plan], tmp_path: Path) -> None:
    """Words multiply nothing: the student of the trimmed model is as much faster as that of the whole one."""
    store = Store(tmp_path / "store").create()
    trimmed = said(plan("{step: prune, vocabulary: true}, {step: distill, student: {layers: 2}}"), store)["distill"]
    whole = said(plan("{step: distill, student: {layers: 2}}"), store)["distill"]
    assert trimmed == f"at most {whole}" and "times as fast" in whole
