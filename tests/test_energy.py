from __future__ import annotations

from pathlib import Path

from ioptim.energy import Meter


def package(root: Path, name: str, microjoules: int) -> Path:
    folder = root / name
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "energy_uj").write_text(str(microjoules))
    (folder / "max_energy_range_uj").write_text("1000000000")
    return folder


def test_joules_of_all_packages(tmp_path: Path) -> None:
    for name, start in (("intel-rapl:0", 1_000_000), ("intel-rapl:1", 2_000_000), ("intel-rapl:0:0", 500_000)):
        package(tmp_path, name, start)
    meter = Meter(powercap=tmp_path)
    assert meter.source == "RAPL"
    before = meter.joules()
    package(tmp_path, "intel-rapl:0", 4_000_000)
    package(tmp_path, "intel-rapl:0:0", 900_000)  # a part of the first, and in it
    assert meter.joules() - before == 3


def test_a_counter_that_starts_again(tmp_path: Path) -> None:
    package(tmp_path, "intel-rapl:0", 999_000_000)
    meter = Meter(powercap=tmp_path)
    before = meter.joules()
    package(tmp_path, "intel-rapl:0", 2_000_000)
    assert meter.joules() - before == 3
    package(tmp_path, "intel-rapl:0", 5_000_000)
    assert meter.joules() - before == 6


def test_nothing_to_read(tmp_path: Path) -> None:
    meter = Meter(powercap=tmp_path / "none")
    assert (meter.source, meter.joules()) == ("", 0.0)
