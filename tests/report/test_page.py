"""The HTML report: what it says, that it is sound markup, and that nothing in a record can become markup or a request."""

from __future__ import annotations

import base64
import hashlib
import json
import shutil
from html.parser import HTMLParser
from pathlib import Path
from types import ModuleType

import pytest

from ioptim.core.artifact import write_json
from ioptim.core.record import RunRecord, Status
from ioptim.core.step import TableFigure
from ioptim.report import write_report
from ioptim.report.board import boards
from ioptim.report.html import el
from ioptim.report.script import DRAW, plotly_js
from ioptim.report.style import CSS

KINDS = ("passed", "charted", "gate_failed", "errored", "hostile", "several")


class Reader(HTMLParser):
    """Collects the text and the tags, and checks that tags close in the order they opened."""

    def __init__(self) -> None:
        super().__init__()
        self.open: list[str] = []
        self.tags: list[tuple[str, dict[str, str | None]]] = []
        self.words: list[str] = []
        self.sources: list[tuple[str, str | None, str]] = []
        """Tag, type and content of every script and style."""

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append((tag, dict(attrs)))
        if tag not in ("br", "meta"):
            self.open.append(tag)
        if tag in ("script", "style"):
            self.sources.append((tag, dict(attrs).get("type"), ""))

    def handle_startendtag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append((tag, dict(attrs)))

    def handle_endtag(self, tag: str) -> None:
        assert self.open.pop() == tag

    def handle_data(self, data: str) -> None:
        if self.open and self.open[-1] in ("script", "style"):
            tag, kind, content = self.sources[-1]
            self.sources[-1] = (tag, kind, content + data)
        elif self.open:
            self.words.append(data)

    @property
    def text(self) -> str:
        return " ".join(" ".join(self.words).split())


def read(run: RunRecord, folder: Path) -> Reader:
    reader = Reader()
    reader.feed(write_report(run, folder).read_text(encoding="utf-8"))
    assert reader.open == []
    return reader


@pytest.mark.parametrize("kind", KINDS)
def test_sound_markup_that_fetches_nothing(records: ModuleType, tmp_path: Path, kind: str) -> None:
    reader = read(getattr(records, kind)(tmp_path), tmp_path)
    names = {tag for tag, _ in reader.tags}
    assert names.isdisjoint({"img", "iframe", "object", "embed", "link", "base", "form", "foreignobject"})
    for tag, attributes in reader.tags:
        assert not [name for name in attributes if name.startswith("on") or name in ("src", "srcset", "xlink:href", "style")], tag
        link = attributes.get("href") or "#"
        assert link.startswith(("#", "http://127.0.0.1:5000/"))


@pytest.mark.parametrize("kind", KINDS)
def test_only_scripts_and_styles_of_known_digest_may_run(records: ModuleType, tmp_path: Path, kind: str) -> None:
    reader = read(getattr(records, kind)(tmp_path), tmp_path)
    [policy] = [a["content"] or "" for tag, a in reader.tags if tag == "meta" and a.get("http-equiv") == "Content-Security-Policy"]
    rules = dict(part.split(" ", 1) for part in policy.split("; "))
    assert rules["default-src"] == "'none'" and set(rules) <= {"default-src", "script-src", "style-src", "base-uri", "form-action"}
    scripts = [content for tag, kind, content in reader.sources if tag == "script" and kind != "application/json"]
    styles = [content for tag, _, content in reader.sources if tag == "style"]
    assert scripts == ([plotly_js(), DRAW] if "script-src" in rules else []) and styles[0] == CSS and len(styles) <= 2
    assert rules.get("script-src", "").split() == [digest(content) for content in scripts]
    assert rules["style-src"].split() == [digest(content) for content in styles]
    charts = [json.loads(content) for _, kind, content in reader.sources if kind == "application/json"]
    assert all(set(chart) == {"data", "layout", "narrow"} for chart in charts) and bool(charts) == bool(scripts)


def digest(content: str) -> str:
    return f"'sha256-{base64.b64encode(hashlib.sha256(content.encode()).digest()).decode()}'"


@pytest.mark.parametrize("kind", KINDS)
def test_ids_are_unique_and_every_link_into_the_page_has_its_place(records: ModuleType, tmp_path: Path, kind: str) -> None:
    reader = read(getattr(records, kind)(tmp_path), tmp_path)
    ids = [attributes["id"] for _, attributes in reader.tags if "id" in attributes]
    assert len(ids) == len(set(ids))
    assert {(a["href"] or "")[1:] for _, a in reader.tags if (a.get("href") or "").startswith("#")} <= set(ids)


def test_hostile_text_is_shown_as_it_is(records: ModuleType, tmp_path: Path) -> None:
    reader = read(records.hostile(tmp_path), tmp_path)
    assert "<script>alert(1)</script><img src=x onerror=alert(1)>" in reader.text
    assert "javascript:alert(1)" in reader.text


def test_verdicts_come_first_and_the_worst_before_the_others(records: ModuleType, tmp_path: Path) -> None:
    run = records.gate_failed(tmp_path)
    text = read(run, tmp_path).text
    assert "Gate failed: 1 of 4 gates failed, 1 undecided, 2 passed" in text
    reasons = [gate.reason for gate in run.gates]
    assert all(reason in text for reason in reasons)
    fail, cosine, undecided, size = (text.index(reason) for reason in reasons)
    assert fail < undecided < cosine < size < text.index("Quality, latency and size") < text.index("Hardware and environment")
    assert "The recipe only warns of an undecided verdict." in text


def test_models_are_compared_with_every_baseline(records: ModuleType, tmp_path: Path) -> None:
    text = read(records.passed(tmp_path), tmp_path).text
    for said in ("1.04 ms", "compile: 7.6× faster", "compile: 2.79× faster", "compile: 3.96× smaller", "compile: −0.0035"):
        assert said in text
    text = read(records.several(tmp_path), tmp_path).text
    assert "7.6× faster than source" in text


def test_what_was_made_of_what_where_and_how_to_get_it_again(records: ModuleType, tmp_path: Path) -> None:
    text = read(records.passed(tmp_path), tmp_path).text
    for said in (
        "c" * 64,
        "ioptim run recipes/bert-sst2-int8.yaml --set steps.quantize.scheme=int8-dynamic",
        "scheme: int8-dynamic",
        "Warning: 1 MatMul left in float: /classifier/MatMul is excluded by default",
        "1 warning of the steps",
        "onnxruntime 1.31.1",
        "avx512_vnni",
        records.HARDWARE.fingerprint,
        "1 of 7 steps from the cache",
        "http://127.0.0.1:5000/#/runs/1",
    ):
        assert said in text
    assert "secret" not in text


def test_an_artifact_is_listed_once_at_the_step_that_made_it(records: ModuleType, tmp_path: Path) -> None:
    text = read(records.passed(tmp_path), tmp_path).text
    listed = text[text.rindex("Artifacts, and") : text.rindex("Recipe, and how")]
    assert [listed.count(digest * 64) for digest in "abcd"] == [1, 1, 1, 1]
    assert f"quantize export onnx 22.97 MB {'c' * 64}" in listed


def test_an_error_is_shown_with_the_end_of_its_output(records: ModuleType, tmp_path: Path) -> None:
    run = records.errored(tmp_path)
    text = read(run, tmp_path).text
    assert "Error in quantize" in text
    assert "quantize was ended: it used more than 4 GB of memory" in text
    assert "line 49 terminate called after throwing an instance of 'std::bad_alloc'" in text
    assert "line 20" not in text
    assert "No gate was judged: the run ended before what it bounds was measured." in text
    (tmp_path / "quantize.log").unlink()
    assert "Error in quantize" in read(run, tmp_path).text


def test_a_run_that_was_interrupted_or_has_barely_begun(records: ModuleType, tmp_path: Path) -> None:
    run = records.passed(tmp_path)
    stopped = tuple(records.node(each.id, status=Status.INTERRUPTED, error="ended by the user", seconds=0.0) for each in run.nodes)
    text = read(run.model_copy(update={"status": Status.INTERRUPTED, "nodes": stopped}), tmp_path).text
    assert "Interrupted during source" in text
    bare = RunRecord(run_id="r", recipe="bare", hardware=records.HARDWARE)
    text = read(bare, tmp_path).text
    assert "Not finished" in text and "No gate was asked: nothing was judged." in text


def test_a_run_without_gates_says_that_nothing_was_judged(records: ModuleType, tmp_path: Path) -> None:
    run = records.passed(tmp_path)
    nodes = tuple(each.model_copy(update={"gates": (), "config": {}}) for each in run.nodes)
    text = read(run.model_copy(update={"nodes": nodes}), tmp_path).text
    assert "Finished: no gate was asked, nothing was judged" in text
    assert "7.6× faster" in text


def test_unsafe_options_are_flagged_at_the_top(records: ModuleType, tmp_path: Path) -> None:
    config = {"model": {"allow_pickle": True, "allow_remote_code": False}}
    warnings = ("model.allow_pickle is on: the checkpoint may have run code of its own on this machine", "the server is away")
    text = read(records.passed(tmp_path).model_copy(update={"recipe_config": config, "warnings": warnings}), tmp_path).text
    flag = "model.allow_pickle was on. The model was loaded from a pickle, which can run any code on this machine."
    assert text.index(flag) < text.index("Verdicts")
    assert text.count("allow_pickle was on") == 1 and "allow_pickle is on" not in text
    assert "the server is away" in text


def test_samples_that_were_pruned_leave_out_their_chart_only(records: ModuleType, tmp_path: Path) -> None:
    run = records.passed(tmp_path)
    assert "latency_p50_ms: every block" in read(run, tmp_path).text
    shutil.rmtree(tmp_path / "benchmark")
    text = read(run, tmp_path).text
    assert "every block" not in text and "compile: 2.79× faster" in text


def test_markdown_beside_it_holds_no_markup_of_the_record(records: ModuleType, tmp_path: Path) -> None:
    write_report(records.hostile(tmp_path), tmp_path)
    written = (tmp_path / "report.md").read_text(encoding="utf-8")
    assert "<script>" not in written.replace("\\<script\\>", "")
    assert "[y](" not in written.replace("\\[y\\](", "")
    write_report(records.passed(tmp_path), tmp_path)
    written = (tmp_path / "report.md").read_text(encoding="utf-8")
    assert "**Passed: all 4 gates**" in written
    assert "| latency\\_p50\\_ms | 1.04 ms | 7.9 ms (7.6× faster) | 2.9 ms (2.79× faster) |" in written


def test_only_el_makes_markup() -> None:
    assert el("p", "a < b", class_='"x"', hidden=True, open=False, title=None) == '<p class="&quot;x&quot;" hidden>a &lt; b</p>'
    assert el("p", [el("b", "x"), None, 3]) == "<p><b>x</b>3</p>"
    assert el("p", el("b", "x") + "<i>") == "<p>&lt;b&gt;x&lt;/b&gt;&lt;i&gt;</p>"


def test_a_record_read_back_from_its_file_gives_the_same_page(records: ModuleType, tmp_path: Path) -> None:
    """Its keys come back sorted; the order of metrics and models does not follow them."""
    run = records.passed(tmp_path)
    write_json(tmp_path / "run.json", run.model_dump(mode="json"))
    again = RunRecord.model_validate_json((tmp_path / "run.json").read_text())
    (board,) = boards(run)
    (same,) = boards(again)
    assert (
        same.metrics
        == board.metrics
        == (
            "accuracy",
            "output_cosine_mean",
            "latency_p50_ms",
            "size_bytes",
            "latency_p99_ms",
            "throughput_per_s",
            "load_s",
        )
    )
    assert same.subjects == board.subjects == ("compile", "source", "runtime-fp32")


def test_long_tables_are_folded(records: ModuleType, tmp_path: Path) -> None:
    run = records.passed(tmp_path)
    long = TableFigure(title="Operators", columns=("operator",), rows=tuple((f"Op{i}",) for i in range(40)))
    run = run.model_copy(update={"nodes": (run.nodes[0].model_copy(update={"tables": (long,)}),)})
    assert "Operators 40 rows" in read(run, tmp_path).text
