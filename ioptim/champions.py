"""The model that serves each target of a recipe now: what later runs are measured against. Out of the reach of `ioptim cache prune`.

    <home>/champions/<recipe>/<target>/champion.json    where it came from; replaced as a whole
    <home>/champions/<recipe>/<target>/<digest>/        the sealed model
"""

from __future__ import annotations

import fcntl
import json
import os
import shutil
from pathlib import Path

from pydantic import Field

from ioptim.core.artifact import MANIFEST, Format, ModelArtifact, open_artifact, verify, write_json
from ioptim.core.base import Frozen
from ioptim.errors import StepError, UnavailableError

RECORD = "champion.json"
_NAME = r"^[A-Za-z0-9][A-Za-z0-9._-]*$"


class Champion(Frozen):
    """One champion, and the run that made it."""

    folder: Path = Field(exclude=True, description="of its sealed model")
    recipe: str = Field(pattern=_NAME)
    target: str = Field(pattern=_NAME)
    run_id: str
    made_by: str = Field(description="node of that run")
    digest: str = Field(pattern=r"^[0-9a-f]{64}$")
    format: Format
    runtime: str = Field(description="which it was compiled for")
    hardware: str = Field(description="fingerprint of the machine it was compiled on")
    promoted: str = Field(description="UTC, ISO 8601")
    overridden: tuple[str, ...] = Field((), description="why that run is no pass, where it was promoted with --force all the same")


def place(home: Path, recipe: str, target: str) -> Path:
    """The folder of a target's champion, there or not."""
    return home / "champions" / recipe / target


def read(home: Path, recipe: str, target: str) -> Champion | None:
    """The champion of a target; None where there is none yet. Its files are not read: `damage` does.

    Raises:
        UnavailableError: its record cannot be read, or its model is gone.
    """
    record = place(home, recipe, target) / RECORD
    again = "Promote a run again: ioptim promote RUN"
    try:
        document = json.loads(record.read_text())
        champion = Champion.model_validate({**document, "folder": record.parent / document["digest"]})
    except FileNotFoundError:
        return None
    except (OSError, ValueError, TypeError, KeyError) as error:
        raise UnavailableError(f"the champion's record {record} cannot be read ({type(error).__name__}). {again}") from error
    if not (champion.folder / MANIFEST).is_file():
        raise UnavailableError(f"the champion's model {champion.folder} is gone. {again}")
    return champion


def damage(folder: Path, digest: str) -> str:
    """What is wrong with a sealed model that is to have this digest, read to the last byte; nothing when it has."""
    try:
        model = open_artifact(folder)
        wrong = verify(model)
    except (StepError, OSError, ValueError, TypeError) as error:
        return str(error)
    return "; ".join(wrong) or ("" if model.digest == digest else f"it is {model.digest[:12]}, not {digest[:12]}")


def crown(champion: Champion, model: ModelArtifact) -> None:
    """Copy the model to the champion's folder and only then replace the record; of older ones only the last stays.

    Killed at any moment it leaves the champion before or this one.

    Raises:
        UnavailableError: the folder cannot be written, or the model is not what its digest says.
    """
    folder = champion.folder.parent
    try:
        folder.mkdir(parents=True, exist_ok=True)
        with (folder / ".lock").open("w") as held:
            fcntl.flock(held, fcntl.LOCK_EX)
            before = _folder_now(folder)  # stays: a run that was planned with it may still be under way
            if damage(champion.folder, champion.digest):  # it is not there yet
                _copy(model.path, champion)
            write_json(folder / RECORD, champion.model_dump(mode="json"))
            for other in folder.iterdir():
                if other.is_dir() and other not in (champion.folder, before):
                    shutil.rmtree(other)
    except OSError as error:
        why = error.strerror or error
        raise UnavailableError(f"cannot copy the champion to {folder}: {why}. Make it writable, or free some room") from error


def _folder_now(folder: Path) -> Path | None:
    """Of the model that the record names; None where there is none that can be read."""
    try:
        return folder / json.loads((folder / RECORD).read_text())["digest"]
    except (OSError, ValueError, TypeError, KeyError):
        return None


def _copy(model: Path, champion: Champion) -> None:
    aside = champion.folder.with_name(".new")
    shutil.rmtree(aside, ignore_errors=True)  # of one that was killed
    shutil.copytree(model, aside)
    for path in aside.rglob("*"):
        if path.is_file():
            with path.open("rb") as file:
                os.fsync(file.fileno())
    if wrong := damage(aside, champion.digest):
        shutil.rmtree(aside)
        raise UnavailableError(f"the model in {model} cannot be promoted: {wrong}. Run the recipe again and promote that run")
    shutil.rmtree(champion.folder, ignore_errors=True)
    os.rename(aside, champion.folder)
