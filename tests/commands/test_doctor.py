"""`ioptim doctor`: what computes here, and the commands that mend what does not."""

from __future__ import annotations

import json

import pytest

from ioptim.cli import main
from ioptim.commands import doctor
from ioptim.errors import ExitCode


@pytest.fixture
def packages(monkeypatch: pytest.MonkeyPatch) -> set[str]:
    """The distributions that doctor finds installed; a test adds to them."""
    there: set[str] = set()
    monkeypatch.setattr(doctor, "installed", there.__contains__)
    monkeypatch.setattr(doctor.hardware, "versions", lambda names: {name: "1.0" if name in there else None for name in names})
    return there


@pytest.mark.integration
def test_what_is_installed_computes(capsys: pytest.CaptureFixture[str]) -> None:
    pytest.importorskip("onnxruntime")
    assert main(["doctor", "--json"]) == ExitCode.PASS
    document = json.loads(capsys.readouterr().out)
    assert document["exit_code"] == 0 and document["problems"] == []
    assert document["hardware"]["cores"] >= 1 and document["hardware"]["fingerprint"]
    found = {check["runtime"]: check for check in document["runtimes"]}
    for name in ("null", "onnxruntime"):
        assert found[name]["usable"] and found[name]["computed"] == [2.0, 4.0, 6.0] and found[name]["fix"] == ""


def test_without_a_runtime_it_says_how_to_get_one(packages: set[str], capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["doctor"]) == ExitCode.UNAVAILABLE
    said = capsys.readouterr().out
    assert "✗ openvino     not installed: openvino, numpy\n               pip install 'ioptim[cpu]'\n" in said
    assert "               pip install 'ioptim[gpu]'\n" in said
    assert "uninstall" not in said


@pytest.mark.parametrize(
    ("there", "runtime", "fix"),
    [
        ("onnxruntime", "tensorrt", "pip uninstall -y onnxruntime && pip install 'ioptim[gpu]'"),
        ("onnxruntime-gpu", "openvino", "pip uninstall -y onnxruntime-gpu && pip install 'ioptim[cpu]'"),
        ("onnxruntime", "openvino", "pip install 'ioptim[cpu]'"),
        ("onnxruntime", "torch", "pip install 'ioptim[torch]'"),
    ],
)
def test_no_command_installs_one_onnxruntime_over_the_other(
    packages: set[str], capsys: pytest.CaptureFixture[str], there: str, runtime: str, fix: str
) -> None:
    packages.add(there)
    main(["doctor", "--json"])
    [check] = [check for check in json.loads(capsys.readouterr().out)["runtimes"] if check["runtime"] == runtime]
    assert check["fix"] == fix


def test_two_onnxruntimes_are_a_problem(packages: set[str], capsys: pytest.CaptureFixture[str]) -> None:
    packages |= {"onnxruntime", "onnxruntime-gpu"}
    assert main(["doctor"]) == ExitCode.UNAVAILABLE
    assert "✗ onnxruntime and onnxruntime-gpu are both installed and overwrite each other's files" in capsys.readouterr().out
