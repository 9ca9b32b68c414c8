"""Every chart and table is shown once: in the section that answers its question, or with its step."""

from __future__ import annotations

from pathlib import Path
from types import ModuleType

import pytest

from ioptim.report import write_report
from ioptim.report.placement import elsewhere, own, placed, section_of


@pytest.mark.parametrize(
    ("step", "title", "chart", "section"),
    [
        ("benchmark", "Latency, single-stream", True, "latency"),
        ("benchmark", "Server: p99 against the rate of arrivals", True, "latency"),
        ("benchmark", "Warm-up, single-stream", True, None),
        ("benchmark", "Speed, memory and size", False, None),
        ("profile", "Roofline", True, "roofline"),
        ("profile", "Roofs of this machine", False, "roofline"),
        ("profile", "Time by operator", True, "time"),
        ("profile", "Time by operator", False, None),
        ("profile", "Advice", False, "time"),
        ("profile", "What runs in int8", False, "quantized"),
        ("profile", "Sensitivity: accuracy lost by quantizing one layer", True, "sensitivity"),
        ("quantize", "Layers by kind", False, "quantized"),
        ("validate", "Quality on the same rows", False, None),
    ],
)
def test_section_of(step: str, title: str, chart: bool, section: str | None) -> None:
    assert section_of(step, title, chart) == section


def test_nothing_is_shown_twice_or_lost(records: ModuleType, tmp_path: Path) -> None:
    run = records.charted(tmp_path)
    shown = [chart.title for parts in placed(run).values() for part in parts for chart in part.charts]
    shown += [chart.title for node in run.nodes for chart in own(node)[2]]
    assert sorted(shown) == sorted(chart.title for node in run.nodes for chart in node.charts)
    tables = [table.title for parts in placed(run).values() for part in parts for table in part.tables]
    tables += [table.title for node in run.nodes for table in own(node)[1]]
    assert sorted(tables) == sorted(table.title for node in run.nodes for table in node.tables)
    assert list(elsewhere(run.node("profile"))) == ["roofline", "time", "sensitivity"]


def test_sections_come_in_the_order_of_the_questions(records: ModuleType, tmp_path: Path) -> None:
    html = write_report(records.charted(tmp_path), tmp_path).read_text(encoding="utf-8")
    titles = (
        "verdicts",
        "models-0",
        "latency",
        "roofline",
        "time",
        "quantized",
        "sensitivity",
        "steps",
        "environment",
        "artifacts",
        "recipe",
    )
    places = [html.index(f'<h2 id="{title}">') for title in titles]
    assert places == sorted(places)
