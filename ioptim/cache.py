"""The store: sealed models and files by content, results by key.

    <store>/objects/<digest>/    a sealed model (artifact.json) or the sealed files of a step (files.json)
    <store>/results/<key>.json   what a step returned, pointing at its objects; written last, so it never points at half a thing
    <store>/work/<name>/         where running steps write; removed when its owner has gone
    <store>/locks/               held by the kernel (flock), so a killed run leaves none behind

A result whose objects are missing or changed is a miss and is computed again; failures are never kept.
"""

from __future__ import annotations

import errno
import fcntl
import json
import os
import shutil
import tempfile
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, suppress
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any, NoReturn, TextIO

from pydantic import Field, ValidationError

from ioptim.core.artifact import MANIFEST, FileRecord, ModelArtifact, hash_tree, open_artifact, seal, verify, write_json
from ioptim.core.base import Frozen, digest_of
from ioptim.core.step import Outcome
from ioptim.errors import StepError, UnavailableError

FILES_MANIFEST = "files.json"


class Result(Frozen):
    """What one step returned, as kept."""

    key: str
    step: str
    ingredients: Mapping[str, Any] = Field(description="everything the key was taken of, so that two keys can be compared")
    outcome: Outcome
    model: str | None = Field(None, description="digest of the sealed model; None for a step that writes none")
    files: str | None = Field(None, description="digest of the sealed files; None when the step kept none")
    seconds: float
    computed: str = Field(description="UTC, ISO 8601")


class Store:
    """One store on a local disk. Safe for several processes at once."""

    def __init__(self, root: Path) -> None:
        self.root = root

    def create(self) -> Store:
        """Make the folders.

        Raises:
            UnavailableError: the store cannot be written to.
        """
        try:
            for name in ("objects", "results", "work", "locks"):
                (self.root / name).mkdir(parents=True, exist_ok=True)
            with tempfile.TemporaryFile(dir=self.root / "work"):
                pass
        except OSError as error:
            if error.errno in (errno.ENOENT, errno.ENAMETOOLONG, errno.ELOOP):  # below /proc, say
                raise UnavailableError(
                    f"the store {self.root}: no folder can be made there ({error.strerror}). Name another with --home or IOPTIM_HOME"
                ) from error
            self._refuse(error)
        self._sweep()
        return self

    # Reading

    def get(self, key: str) -> Result | None:
        """The result of a key, verified to the last byte; None when there is none or it is damaged (it is then removed)."""
        result, problem = self._read(key)
        if problem:
            self._drop(key)
        return None if problem else result

    def has(self, key: str) -> Result | None:
        """The result of a key without verifying its objects: what a forecast may use, never a run."""
        return self._read(key, deep=False)[0]

    def model(self, digest: str) -> ModelArtifact:
        """The sealed model of a digest."""
        return open_artifact(self._object(digest))

    def files(self, digest: str) -> Path:
        """The folder of the sealed files of a digest."""
        return self._object(digest)

    def problem(self, digest: str) -> str:
        """What is wrong with the sealed model or files of a digest, read to the last byte; nothing when all is as it was sealed."""
        return self._object_problem(digest)

    # Writing

    @contextmanager
    def lock(self, key: str) -> Iterator[None]:
        """Hold a key, so that two runs do not compute it twice. Freed by the kernel if this process dies."""
        with (self.root / "locks" / f"{key[:32]}.lock").open("w") as file:
            fcntl.flock(file, fcntl.LOCK_EX)
            yield

    @contextmanager
    def in_use(self) -> Iterator[None]:
        """Hold the store for a run, so that `prune` takes nothing away under it."""
        with (self.root / "locks" / "store.lock").open("w") as file:
            fcntl.flock(file, fcntl.LOCK_SH)
            yield

    @contextmanager
    def work(self) -> Iterator[Path]:
        """An empty folder of this process's own, on the store's disk; removed afterwards."""
        path, held = self._own_folder()
        try:
            (path / "out").mkdir()
            yield path / "out"
        finally:
            shutil.rmtree(path, ignore_errors=True)
            held.close()

    def _own_folder(self) -> tuple[Path, TextIO]:
        """A new folder under `work`, and the file whose lock says that somebody is at work in it."""
        while True:
            path = Path(tempfile.mkdtemp(dir=self.root / "work"))
            held = (path / ".owner").open("w")
            fcntl.flock(held, fcntl.LOCK_EX)
            if (path / ".owner").exists():
                return path, held
            held.close()  # another run's sweep had the lock first, and took the folder away

    def partial(self, key: str) -> Path:
        """Where a step may leave what it needs to go on after a kill; there until a result is put under the key."""
        return self.root / "partial" / key

    def put(
        self, key: str, step: str, ingredients: Mapping[str, Any], outcome: Outcome, out: Path, seconds: float, parent: ModelArtifact | None
    ) -> Result:
        """Seal what a step left in `out` (`model/`, `files/`), move it in, and only then write the result.

        Raises:
            UnavailableError: the disk is full.
            StepError: the step said that it wrote a model and did not.
        """
        try:
            model = self._put_model(key, step, outcome, out / "model", parent)
            files = self._put_files(out / "files")
            result = Result(
                key=key,
                step=step,
                ingredients=ingredients,
                outcome=outcome,
                model=model,
                files=files,
                seconds=round(seconds, 3),
                computed=now(),
            )
            write_json(self._result(key), result.model_dump(mode="json"))
            shutil.rmtree(self.root / "partial" / key, ignore_errors=True)
        except OSError as error:
            self._refuse(error)
        return result

    def _put_model(self, key: str, step: str, outcome: Outcome, folder: Path, parent: ModelArtifact | None) -> str | None:
        written = outcome.written
        if written is None:
            return None
        if not (folder / written.entry).exists():
            raise StepError(f"the step {step} said that it wrote {written.entry}, and there is no such file")
        inherited = [name for name in (parent.assets if parent else ()) if name not in written.assets and not (folder / name).exists()]
        for name in inherited:
            assert parent is not None
            (folder / name).parent.mkdir(parents=True, exist_ok=True)
            shutil.copyfile(parent.path / name, folder / name)
        sealed = seal(
            ModelArtifact(
                path=folder,
                format=written.format,
                entry=written.entry,
                inputs=written.inputs or (parent.inputs if parent else ()),
                outputs=written.outputs or (parent.outputs if parent else ()),
                assets=tuple(sorted({*written.assets, *(parent.assets if parent else ())})),
                facts={**_inheritable(parent), **written.facts},
                provenance={"step": step, "key": key, "made_from": parent.digest if parent else None, "made": now()},
            )
        )
        self._move_in(folder, sealed.digest)
        return sealed.digest

    def _put_files(self, folder: Path) -> str | None:
        if not folder.is_dir() or not any(folder.iterdir()):
            return None
        records = {name: record.model_dump() for name, record in hash_tree(folder).items()}
        write_json(folder / FILES_MANIFEST, records)
        digest = digest_of(records)
        self._move_in(folder, digest)
        return digest

    def _move_in(self, folder: Path, digest: str) -> None:
        for path in folder.rglob("*"):
            if path.is_file():
                with path.open("rb") as file:
                    os.fsync(file.fileno())
        target = self._object(digest)
        if target.exists() and not self._object_problem(digest):
            return  # the same content is already there
        if target.exists():
            self._discard(target)
        try:
            os.rename(folder, target)
        except OSError as error:
            if error.errno not in (errno.ENOTEMPTY, errno.EEXIST):  # another run moved the same content in first
                raise

    # Housekeeping

    def results(self) -> Iterator[Result]:
        """Every result that can be read, oldest first."""
        for path in sorted((self.root / "results").glob("*.json"), key=lambda p: p.stat().st_mtime):
            result, _ = self._read(path.stem, deep=False)
            if result is not None:
                yield result

    def verify(self) -> dict[str, str]:
        """What is wrong with each damaged result, by key; empty when all is as it was sealed."""
        wrong = {}
        for path in sorted((self.root / "results").glob("*.json")):
            _, problem = self._read(path.stem)
            if problem:
                wrong[path.stem] = problem
        return wrong

    def prune(self, older_than: timedelta, dry_run: bool = False) -> tuple[int, int]:
        """Remove results not computed within `older_than`, and objects that no result points at.

        Returns:
            How many results went, and how many bytes.
        Raises:
            UnavailableError: a run is using the store.
        """
        with (self.root / "locks" / "store.lock").open("w") as file:
            try:
                fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError:
                raise UnavailableError(f"a run is using the store {self.root}; prune it when the run has ended") from None
            return self._prune(datetime.now(UTC) - older_than, dry_run)

    def _prune(self, limit: datetime, dry_run: bool) -> tuple[int, int]:
        kept: set[str] = set()
        gone = freed = 0
        for path in (self.root / "results").glob("*.json"):
            result, problem = self._read(path.stem, deep=False)
            if result is not None and not problem and datetime.fromisoformat(result.computed) >= limit:
                kept |= {digest for digest in (result.model, result.files) if digest}
                continue
            gone += 1
            freed += path.stat().st_size
            if not dry_run:
                path.unlink()
        for folder in (self.root / "objects").iterdir():
            if folder.name not in kept:
                freed += sum(p.stat().st_size for p in folder.rglob("*") if p.is_file())
                if not dry_run:
                    self._discard(folder)
        for folder in (self.root / "partial").glob("*"):
            if datetime.fromtimestamp(folder.stat().st_mtime, UTC) < limit:
                freed += sum(p.stat().st_size for p in folder.rglob("*") if p.is_file())
                if not dry_run:
                    shutil.rmtree(folder)
        return gone, freed

    def _sweep(self) -> None:
        """Remove the work folders of processes that have died."""
        for folder in (self.root / "work").iterdir():
            owner = folder / ".owner"
            try:
                with owner.open("r+") as file:
                    fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
                    shutil.rmtree(folder, ignore_errors=True)
            except BlockingIOError:
                continue  # somebody is at work in it
            except FileNotFoundError:
                # Being made this very moment, left half made (only age tells), or removed by another run meanwhile.
                with suppress(FileNotFoundError):
                    if datetime.now().timestamp() - folder.stat().st_mtime > 3600:
                        shutil.rmtree(folder, ignore_errors=True)

    def _read(self, key: str, deep: bool = True) -> tuple[Result | None, str]:
        path = self._result(key)
        try:
            result = Result.model_validate_json(path.read_text())
        except FileNotFoundError:
            return None, ""
        except (ValidationError, ValueError) as error:
            return None, f"the record cannot be read: {type(error).__name__}"
        for digest in (result.model, result.files):
            problem = self._object_problem(digest, deep) if digest else ""
            if problem:
                return None, problem
        return result, ""

    def _object_problem(self, digest: str, deep: bool = True) -> str:
        folder = self._object(digest)
        if not folder.is_dir():
            return f"the object {digest[:12]} is missing"
        try:
            if (folder / MANIFEST).is_file():
                wrong = verify(open_artifact(folder)) if deep else []
            else:
                records = json.loads((folder / FILES_MANIFEST).read_text())
                present = hash_tree(folder) if deep else {}
                present.pop(FILES_MANIFEST, None)
                same = not deep or present == {name: FileRecord(**record) for name, record in records.items()}
                wrong = [] if same and digest_of(records) == digest else ["its files are not as they were sealed"]
        except (OSError, ValueError) as error:
            wrong = [f"it cannot be read: {error}"]
        return f"the object {digest[:12]} is damaged: {'; '.join(wrong)}" if wrong else ""

    def _drop(self, key: str) -> None:
        self._result(key).unlink(missing_ok=True)

    def _discard(self, folder: Path) -> None:
        """Take an object out of sight in one move, then remove it."""
        aside = Path(tempfile.mkdtemp(dir=self.root / "work"))
        os.rename(folder, aside / "gone")
        shutil.rmtree(aside, ignore_errors=True)

    def _object(self, digest: str) -> Path:
        return self.root / "objects" / digest

    def _result(self, key: str) -> Path:
        return self.root / "results" / f"{key}.json"

    def _refuse(self, error: OSError) -> NoReturn:
        if error.errno in (errno.ENOSPC, errno.EDQUOT):
            what = "the disk is full: nothing half-written was kept. Free some room (`ioptim cache prune`)"
        elif error.errno in (errno.EACCES, errno.EPERM, errno.EROFS, errno.ENOTDIR, errno.EEXIST):
            what = f"it cannot be written to ({os.strerror(error.errno)}). Change its permissions"
        else:
            raise error
        raise UnavailableError(f"the store {self.root}: {what}, or name another folder with --home or IOPTIM_HOME") from error


def _inheritable(parent: ModelArtifact | None) -> dict[str, Any]:
    """Facts about the model itself (labels, model type) that stay true whatever a step does to it; not how to load it."""
    if parent is None:
        return {}
    return {key: value for key, value in parent.facts.items() if key not in ("loader", "runtime")}


def now() -> str:
    """UTC, ISO 8601, to the millisecond."""
    return datetime.now(UTC).isoformat(timespec="milliseconds")
