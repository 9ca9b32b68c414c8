"""The hub, without a network: a cache made in a folder."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from ioptim.core.source import DataSource, DataSpec, ModelSource, ModelSpec
from ioptim.errors import PlanError, UnavailableError
from ioptim.sources import data_source, model_source
from ioptim.tasks.feature_extraction import FeatureExtraction

COMMIT = "0123456789abcdef0123456789abcdef01234567"
Checkpoint = Callable[..., Path]


@pytest.fixture
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """An empty hub cache that is in use, and no network."""
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    monkeypatch.setenv("HF_HUB_CACHE", str(tmp_path / "hub"))
    return tmp_path / "hub"


def snapshot(cache: Path, repository: str, revision: str = "main", commit: str = COMMIT) -> Path:
    """The folder of a snapshot that a revision points to."""
    folder = cache / repository
    (folder / "refs").mkdir(parents=True, exist_ok=True)
    (folder / "refs" / revision).write_text(commit)
    place = folder / "snapshots" / commit
    place.mkdir(parents=True)
    return place


def linked(cache: Path, repository: str, files: Path) -> Path:
    """A snapshot as the hub's client makes it: links to blobs."""
    place = snapshot(cache, repository)
    blobs = place.parents[1] / "blobs"
    blobs.mkdir()
    for path in files.iterdir():
        path.rename(blobs / path.name)
        (place / path.name).symlink_to(blobs / path.name)
    return place


def model(name: str, **options: Any) -> ModelSource:
    return model_source(ModelSpec(source=name, **options), Path(), None)


def data(name: str, **options: Any) -> DataSource:
    return data_source(DataSpec(source=name, **options), Path(), None)


def test_a_cached_model_needs_no_network(cache: Path, checkpoint: Checkpoint) -> None:
    linked(cache, "models--org--name", checkpoint())
    source = model("hf:org/name")
    assert source.check() == []
    assert source.identity() == {"hub": f"org/name@{COMMIT}"}
    assert model("hf:org/name", revision=COMMIT).identity() == source.identity()


def test_a_cached_model_is_checked(cache: Path, checkpoint: Checkpoint) -> None:
    folder = checkpoint()
    (folder / "config.json").write_text("{")
    place = linked(cache, "models--org--name", folder)
    assert model("hf:org/name").check() == [
        f"{place}/config.json is not valid JSON: Expecting property name enclosed in double quotes: line 1 column 2 (char 1)"
    ]


def test_not_cached_and_offline(cache: Path) -> None:
    message = (
        f"the checkpoint of hf:org/name@v1 is not in the cache {cache}, and HF_HUB_OFFLINE forbids the network."
        " Fetch it where there is one: hf download org/name --revision v1 or unset HF_HUB_OFFLINE"
    )
    source = model("hf:org/name", revision="v1")
    assert source.check() == [message]
    with pytest.raises(PlanError):
        source.identity()
    with pytest.raises(UnavailableError) as caught:
        source.fetch(cache.parent / "out", FeatureExtraction())
    assert str(caught.value) == message


def test_another_revision_is_not_the_cached_one(cache: Path, checkpoint: Checkpoint) -> None:
    linked(cache, "models--org--name", checkpoint())
    assert "is not in the cache" in model("hf:org/name", revision="v2").check()[0]


def test_a_snapshot_without_weights_is_not_a_cached_model(cache: Path, checkpoint: Checkpoint) -> None:
    folder = checkpoint()
    (folder / "model.safetensors").unlink()
    linked(cache, "models--org--name", folder)
    assert "is not in the cache" in model("hf:org/name").check()[0]


@pytest.mark.parametrize("name", ["hf:", "hf:a/b/c", "hf:../secret", "hf:org/na me"])
def test_a_name_that_is_none(cache: Path, name: str) -> None:
    assert model(name).check() == [f"{name[3:]!r} is not the name of a repository: expected hf:ORG/NAME"]


def test_a_revision_that_is_none(cache: Path) -> None:
    assert model("hf:org/name", revision="../x").check() == ["revision '../x' is not a branch, a tag or a commit"]


def test_no_network_is_said_with_the_command_that_helps(cache: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The client itself refuses here (it read HF_HUB_OFFLINE when it was imported); a cut cable takes the same way."""
    hub = pytest.importorskip("huggingface_hub")
    monkeypatch.delenv("HF_HUB_OFFLINE")

    def unreachable(*_: Any, **__: Any) -> None:
        raise ConnectionError("no route to host")

    monkeypatch.setattr(hub.HfApi, "repo_info", unreachable)
    source = model("hf:org/name")
    assert source.check() == []
    with pytest.raises(UnavailableError) as caught:
        source.identity()
    assert str(caught.value) == (
        f"hf:org/name is not in the cache {cache} and the hub cannot be reached: no route to host."
        " Fetch it where there is a network: hf download org/name"
    )


def test_a_hub_that_refuses_the_connection(cache: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """By the client's own HTTP library, whose errors are of its own kind: port 9 of this machine has nobody listening."""
    pytest.importorskip("huggingface_hub")
    code = (
        "from ioptim.core.source import ModelSpec; from ioptim.sources import model_source; from pathlib import Path;"
        " model_source(ModelSpec(source='hf:org/name'), Path('.'), None).identity()"
    )
    env = {**os.environ, "HF_ENDPOINT": "http://127.0.0.1:9", "HF_HUB_OFFLINE": "0", "HF_HUB_CACHE": str(cache)}
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, env=env, cwd=Path(__file__).parents[2])
    assert done.stderr.splitlines()[-1].startswith(
        f"ioptim.errors.UnavailableError: hf:org/name is not in the cache {cache} and the hub cannot be reached:"
    )


def test_an_unknown_repository(cache: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    hub = pytest.importorskip("huggingface_hub")
    import httpx
    from huggingface_hub.errors import RepositoryNotFoundError

    monkeypatch.delenv("HF_HUB_OFFLINE")

    def unknown(*_: Any, **__: Any) -> None:
        raise RepositoryNotFoundError("404", response=httpx.Response(404, request=httpx.Request("GET", "https://example.org")))

    monkeypatch.setattr(hub.HfApi, "repo_info", unknown)
    with pytest.raises(UnavailableError) as caught:
        model("hf:org/nmae").identity()
    assert str(caught.value) == "the hub has no model 'org/nmae', or it is private; check the spelling, or run: hf auth login"


def test_only_what_is_needed_is_downloaded(cache: Path, checkpoint: Checkpoint, monkeypatch: pytest.MonkeyPatch) -> None:
    hub = pytest.importorskip("huggingface_hub")
    monkeypatch.delenv("HF_HUB_OFFLINE")
    asked: dict[str, Any] = {}

    class DownloadedError(Exception):
        pass

    def download(name: str, **options: Any) -> str:
        asked.update(options, name=name)
        raise DownloadedError

    monkeypatch.setattr(hub, "snapshot_download", download)
    with pytest.raises(DownloadedError):
        model("hf:org/name", revision="v1").fetch(cache, FeatureExtraction())
    assert (asked["name"], asked["revision"], asked["repo_type"]) == ("org/name", "v1", "model")
    assert asked["ignore_patterns"] == ["*/*"]
    assert not {"*.bin", "*.py"} & set(asked["allow_patterns"])


def test_data_of_a_split(cache: Path) -> None:
    place = snapshot(cache, "datasets--org--rows")
    (place / "data").mkdir()
    (place / "data" / "train-00000-of-00002.csv").write_text("text,label\na,0\n")
    (place / "data" / "train-00001-of-00002.csv").write_text("text,label\nb,1\n")
    (place / "data" / "validation-00000-of-00001.csv").write_text("text,label\nc,1\n")
    train = data("hf:org/rows", split="train", columns={"sentence": "text"})
    assert train.check() == []
    table = train.read()
    assert table.columns == {"sentence": ["a", "b"], "label": ["0", "1"]}
    assert table.rows == ("train-00000-of-00002.csv:2", "train-00001-of-00002.csv:2")
    assert table.origin == "hf:org/rows (train)"
    assert train.identity()["hub"] == f"org/rows@{COMMIT}"
    assert len(data("hf:org/rows", split="validation").read()) == 1


def test_a_split_that_lacks_a_part_is_not_cached(cache: Path) -> None:
    place = snapshot(cache, "datasets--org--rows")
    (place / "train-00000-of-00002.csv").write_text("text\na\n")
    (objection,) = data("hf:org/rows", split="train").check()
    assert objection.startswith(f"the split 'train' of hf:org/rows is not in the cache {cache}, and HF_HUB_OFFLINE forbids")
    assert "hf download org/rows --repo-type dataset" in objection


def test_a_split_that_is_not_there(cache: Path) -> None:
    place = snapshot(cache, "datasets--org--rows")
    (place / "train.csv").write_text("text\na\n")
    assert data("hf:org/rows").check() == [
        "hf:org/rows: name the split, for example `split: validation`. The cached snapshot has train.csv"
    ]
    assert data("hf:org/rows", split="test").check()[0].endswith(". The cached snapshot has train.csv")


@pytest.mark.parametrize("folder", ["../../..", "data/../../x", "/etc"])
def test_a_folder_that_is_not_of_the_data_set(cache: Path, folder: str) -> None:
    snapshot(cache, "datasets--org--rows")
    assert data(f"hf:org/rows/{folder}").check() == [f"hf:org/rows/{folder}: {folder!r} is not a folder of the data set"]


def test_several_configurations(cache: Path) -> None:
    place = snapshot(cache, "datasets--org--glue")
    for folder in ("cola", "sst2"):
        (place / folder).mkdir()
        (place / folder / "train.csv").write_text(f"text\n{folder}\n")
    assert data("hf:org/glue", split="train").check() == [
        "hf:org/glue has the split 'train' in 2 folders; choose one: hf:org/glue/cola, hf:org/glue/sst2"
    ]
    assert data("hf:org/glue/sst2", split="train").read().columns == {"text": ["sst2"]}


@pytest.mark.integration
def test_a_cached_model_is_copied_and_its_commit_noted(cache: Path, tiny_bert: Path, tmp_path: Path) -> None:
    import shutil

    shutil.copytree(tiny_bert, tmp_path / "copy")
    linked(cache, "models--org--name", tmp_path / "copy")
    outcome = model("hf:org/name").fetch(tmp_path / "out", FeatureExtraction())
    assert outcome.notes[0].text == f"hf:org/name@main is commit {COMMIT}; it came from the cache"
    assert not any(path.is_symlink() for path in (tmp_path / "out" / "model").iterdir())
