from __future__ import annotations

import errno
import fcntl
import os
import subprocess
import sys
import textwrap
from datetime import timedelta
from pathlib import Path
from typing import IO

import pytest

from ioptim.cache import Store
from ioptim.core.artifact import Format
from ioptim.core.base import digest_of
from ioptim.core.step import Outcome, Written
from ioptim.errors import StepError, UnavailableError

OUTCOME = Outcome(written=Written(format=Format.ONNX, entry="model.onnx"), metrics={"layers": 3.0})


def put(store: Store, key: str, content: bytes = b"weights", files: str | None = "x"):
    with store.work() as out:
        (out / "model").mkdir()
        (out / "model" / "model.onnx").write_bytes(content)
        if files is not None:
            (out / "files").mkdir()
            (out / "files" / "samples.json").write_text(files)
        return store.put(key, "quantize", {"a": 1}, OUTCOME, out, 1.5, None)


@pytest.fixture
def store(tmp_path: Path) -> Store:
    return Store(tmp_path / "store").create()


KEY = digest_of("a key")


def test_what_is_put_is_got(store: Store) -> None:
    kept = put(store, KEY)
    assert store.get(KEY) == kept
    assert store.model(kept.model).model_path.read_bytes() == b"weights"
    assert (store.files(kept.files) / "samples.json").read_text() == "x"
    assert list((store.root / "work").iterdir()) == []
    assert store.get(digest_of("another")) is None


def test_equal_content_is_kept_once(store: Store) -> None:
    assert put(store, KEY).model == put(store, digest_of("another")).model
    assert len(list((store.root / "objects").iterdir())) == 2  # one model, one set of files


@pytest.mark.parametrize("what", ["model", "files"])
@pytest.mark.parametrize("damage", ["change", "remove", "add"])
def test_a_damaged_object_is_a_miss_and_is_repaired(store: Store, what: str, damage: str) -> None:
    kept = put(store, KEY)
    folder = store.root / "objects" / getattr(kept, what)
    file = next(p for p in folder.iterdir() if p.name in ("model.onnx", "samples.json"))
    {"change": lambda: file.write_bytes(b"x" * file.stat().st_size + b"!"), "remove": file.unlink, "add": (folder / "new").touch}[damage]()
    assert "damaged" in store.verify()[KEY]
    assert store.get(KEY) is None
    put(store, KEY)
    assert store.get(KEY) is not None
    assert store.verify() == {}


def test_a_record_that_is_no_record_is_a_miss(store: Store) -> None:
    put(store, KEY)
    (store.root / "results" / f"{KEY}.json").write_text("{")
    assert store.get(KEY) is None


def test_a_model_that_was_promised_must_be_there(store: Store) -> None:
    with store.work() as out, pytest.raises(StepError, match="said that it wrote model.onnx, and there is no such file"):
        store.put(KEY, "quantize", {}, OUTCOME, out, 1.0, None)
    assert store.get(KEY) is None


def test_assets_and_facts_are_inherited(store: Store) -> None:
    with store.work() as out:
        (out / "model").mkdir()
        (out / "model" / "model.safetensors").write_bytes(b"w")
        (out / "model" / "tokenizer.json").write_text("{}")
        written = Written(
            format=Format.TORCH,
            entry="model.safetensors",
            assets=("tokenizer.json",),
            facts={"labels": ["no", "yes"], "loader": {"kind": "x"}},
        )
        first = store.put(KEY, "source", {}, Outcome(written=written), out, 1.0, None)
    with store.work() as out:
        (out / "model").mkdir()
        (out / "model" / "model.onnx").write_bytes(b"o")
        second = store.put(digest_of(2), "export", {}, OUTCOME, out, 1.0, store.model(first.model))
    model = store.model(second.model)
    assert model.assets == ("tokenizer.json",)
    assert (model.path / "tokenizer.json").read_text() == "{}"
    assert dict(model.facts) == {"labels": ["no", "yes"]}  # how to load a torch model is not true of its export


def test_prune_keeps_what_is_young_and_what_is_pointed_at(store: Store) -> None:
    put(store, KEY)
    orphan = store.root / "objects" / "f00d"
    orphan.mkdir()
    (orphan / "model.onnx").write_bytes(b"12345")
    assert store.prune(timedelta(days=1), dry_run=True) == (0, 5)
    assert orphan.exists()
    assert store.prune(timedelta(days=1)) == (0, 5)
    assert not orphan.exists() and store.get(KEY) is not None
    gone, freed = store.prune(timedelta(0))
    assert gone == 1 and freed > 0
    assert store.get(KEY) is None and list((store.root / "objects").iterdir()) == []


def test_what_an_attempt_left_stays_until_its_result_is_put(store: Store) -> None:
    left, other = store.partial(KEY), store.partial("other")
    for folder in (left, other):
        folder.mkdir(parents=True)
        (folder / "state.json").write_text("{}")
    put(store, KEY)
    assert not left.exists() and other.exists()
    assert store.prune(timedelta(days=1)) == (0, 0)
    store.prune(timedelta(0))
    assert not other.exists()


def test_prune_waits_for_no_run(store: Store) -> None:
    with store.in_use(), pytest.raises(UnavailableError, match="a run is using the store"):
        store.prune(timedelta(0))


def test_a_full_disk_is_said_so_and_leaves_nothing(store: Store, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(fd: int) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(os, "fsync", full)
    with pytest.raises(UnavailableError) as caught:
        put(store, KEY)
    assert str(caught.value) == (
        f"the store {store.root}: the disk is full: nothing half-written was kept. Free some room (`ioptim cache prune`),"
        " or name another folder with --home or IOPTIM_HOME"
    )
    monkeypatch.undo()
    assert store.get(KEY) is None and list((store.root / "objects").iterdir()) == []


def test_a_folder_that_cannot_be_written_is_said_so(tmp_path: Path) -> None:
    (tmp_path / "store").write_text("a file where a folder should be")
    with pytest.raises(
        UnavailableError, match=r"it cannot be written to \(.*\)\. Change its permissions, or name another folder with --home"
    ):
        Store(tmp_path / "store").create()


@pytest.mark.parametrize("home", ["/proc/x", "/tmp/" + "x" * 300])
def test_a_folder_that_cannot_be_made_is_said_so(home: str) -> None:
    with pytest.raises(UnavailableError, match=rf"the store {home}/store: no folder can be made there \(.+\)\. Name another with --home"):
        Store(Path(home) / "store").create()


PUT_SLOWLY = """
    import sys, os, time
    sys.path[:0] = {path!r}
    from pathlib import Path
    from ioptim.cache import Store
    from ioptim.core.step import Outcome, Written
    store = Store(Path({root!r})).create()
    with store.work() as out:
        (out / "model").mkdir()
        (out / "model" / "model.onnx").write_bytes(b"half")
        print("ready", flush=True)
        time.sleep(60)
"""


def test_what_a_killed_run_left_is_swept(store: Store) -> None:
    code = textwrap.dedent(PUT_SLOWLY.format(root=str(store.root), path=[p for p in sys.path if p]))
    process = subprocess.Popen([sys.executable, "-c", code], stdout=subprocess.PIPE, text=True)
    assert process.stdout is not None and process.stdout.readline() == "ready\n"
    store.create()
    assert len(list((store.root / "work").iterdir())) == 1  # its owner lives
    process.kill()
    process.wait()
    process.stdout.close()
    store.create()
    assert list((store.root / "work").iterdir()) == []


def test_a_folder_that_a_sweep_takes_before_its_owner_holds_it_is_made_anew(store: Store, monkeypatch: pytest.MonkeyPatch) -> None:
    hold = fcntl.flock

    def swept_first(file: IO[str], how: int) -> None:
        monkeypatch.setattr(fcntl, "flock", hold)
        store.create()  # another run's
        hold(file, how)

    monkeypatch.setattr(fcntl, "flock", swept_first)
    with store.work() as out:
        assert out.is_dir()
        store.create()
        assert out.is_dir(), "held: no sweep takes it"
    assert list((store.root / "work").iterdir()) == []


def test_a_folder_that_goes_while_it_is_swept(store: Store, monkeypatch: pytest.MonkeyPatch) -> None:
    (store.root / "work" / "going").mkdir()
    folders = list((store.root / "work").iterdir())
    folders[0].rmdir()
    monkeypatch.setattr(Path, "iterdir", lambda _: iter(folders))
    store.create()


def test_a_key_is_held_by_one_at_a_time(store: Store) -> None:
    code = f"""
import sys; sys.path[:0] = {[p for p in sys.path if p]!r}
from pathlib import Path
from ioptim.cache import Store
store = Store(Path({str(store.root)!r}))
print("waiting", flush=True)
with store.lock("k"):
    print("got it", flush=True)
"""
    with store.lock("k"):
        process = subprocess.Popen([sys.executable, "-c", code], stdout=subprocess.PIPE, text=True)
        assert process.stdout is not None and process.stdout.readline() == "waiting\n"
        with pytest.raises(subprocess.TimeoutExpired):
            process.wait(0.3)
    assert process.stdout.readline() == "got it\n"
    assert process.wait(10) == 0
    process.stdout.close()
