"""The page around the charts: with plotly, without it, without charts."""

from __future__ import annotations

from pathlib import Path
from types import ModuleType

import pytest

from ioptim.report import document as document_module
from ioptim.report import plot as plot_module
from ioptim.report import script, write_report
from ioptim.report.document import document
from ioptim.report.html import el

LIMIT_BYTES = 8_000_000


def test_the_bundle_is_what_plotly_would_give() -> None:
    offline = pytest.importorskip("plotly.offline")
    assert script.plotly_js() == offline.get_plotlyjs()
    assert "</script" not in str(script.plotly_js()).lower()


def test_a_report_with_every_chart_stays_small(records: ModuleType, tmp_path: Path) -> None:
    pytest.importorskip("plotly")
    run = records.charted(tmp_path)
    benchmark = run.node("benchmark").model_copy(update={"charts": tuple(records.latency_chart(20_000) for _ in range(4))})
    nodes = tuple(benchmark if node.id == "benchmark" else node for node in run.nodes)
    path = write_report(run.model_copy(update={"nodes": nodes}), tmp_path)
    assert path.stat().st_size < LIMIT_BYTES


def test_without_plotly_tables_stand_in_and_the_page_says_how_to_get_charts(
    records: ModuleType, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for module in (plot_module, document_module):
        monkeypatch.setattr(module, "plotly_js", lambda: None)
    html = write_report(records.charted(tmp_path), tmp_path).read_text(encoding="utf-8")
    assert script.NOT_INSTALLED == (
        "Charts are shown as tables here, because plotly is not installed. With it (pip install 'ioptim[report]'), "
        "`ioptim report RUN` draws them."
    )
    assert "because plotly is not installed" in html
    assert "<script" not in html and "script-src" not in html and "canvas" not in html.partition("</style>")[2]
    assert "/bert/encoder/layer.0/attention/output/dense_0/MatMul" in html  # the sensitivity chart's table
    assert len(html) < 200_000


def test_a_page_without_charts_carries_no_script() -> None:
    html = document("T", el("main", "nothing to draw"))
    assert "<script" not in html and "script-src" not in html
