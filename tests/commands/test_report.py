"""`ioptim report`: a run again, from its record alone."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from ioptim.cli import main
from ioptim.core.record import RunRecord, Status
from ioptim.core.target import Hardware
from ioptim.errors import ExitCode
from ioptim.tracking import local

HARDWARE = Hardware(cpu_model="A processor", cpu_flags=("avx2",), cores=2, threads=4, memory_bytes=8_000_000_000)


@pytest.fixture
def home(tmp_path: Path) -> Path:
    for day in ("20261120", "20261121"):
        run_id = f"{day}-081832-sst2-3f2a91"
        run = RunRecord(run_id=run_id, recipe="sst2", status=Status.PASSED, exit_code=ExitCode.PASS, seconds=3.0, hardware=HARDWARE)
        local.create_run(tmp_path, run)
        local.write_run(tmp_path, run)
    return tmp_path


def test_the_latest_run_again(home: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["report", "--home", str(home)]) == ExitCode.PASS
    folder = home / "runs" / "20261121-081832-sst2-3f2a91"
    said = capsys.readouterr().out
    assert said.startswith("sst2: Finished: no gate was asked, nothing was judged  (3.0 s, run 20261121-081832-sst2-3f2a91)\n")
    assert said.endswith(f"  report    {folder / 'report.html'}\n")
    assert "No gate was asked" in (folder / "report.html").read_text() and (folder / "report.md").is_file()


def test_a_run_by_the_beginning_of_its_id_as_json(home: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["report", "20261120", "--home", str(home), "--json"]) == ExitCode.PASS
    document = json.loads(capsys.readouterr().out)
    assert document["run_id"] == "20261120-081832-sst2-3f2a91"
    assert Path(document["report"]).is_file()


def test_the_list(home: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["report", "--list", "--home", str(home)]) == ExitCode.PASS
    said = capsys.readouterr().out
    assert "20261121-081832-sst2-3f2a91  passed            3.0 s  sst2\n" in said
    assert said.endswith(f"2 runs in {home / 'runs'}\n")


def test_a_run_of_another_home_gets_its_report_there(home: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    folder, other = home / "runs" / "20261120-081832-sst2-3f2a91", tmp_path / "other"
    monkeypatch.chdir(folder)
    for named in (str(folder), str(folder / "run.json"), "."):
        assert main(["report", named, "--home", str(other)]) == ExitCode.PASS
        (folder / "report.html").unlink()
        (folder / "report.md").unlink()
    assert not other.exists()


def test_a_report_that_cannot_be_written(home: Path, capsys: pytest.CaptureFixture[str]) -> None:
    report = home / "runs" / "20261121-081832-sst2-3f2a91" / "report.html"
    report.mkdir()
    assert main(["report", "--home", str(home)]) == ExitCode.UNAVAILABLE
    assert f"cannot write {report}: Is a directory. Its folder must exist and be writable" in capsys.readouterr().err


def test_a_run_that_is_not_there(home: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["report", "nothing", "--home", str(home)]) == ExitCode.UNAVAILABLE
    assert "nothing" in capsys.readouterr().err
