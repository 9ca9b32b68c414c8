"""Models and data sets of the Hugging Face hub: `hf:ORG/NAME`, for data also `hf:ORG/NAME/folder`."""

from __future__ import annotations

import importlib.util
import re
from collections.abc import Mapping, Sequence
from pathlib import Path

from ioptim.core.outline import Outline
from ioptim.core.source import DataSource, DataSpec, ModelSource, ModelSpec
from ioptim.core.step import Note, Outcome
from ioptim.core.task import Table, Task
from ioptim.errors import PlanError, StepError, UnavailableError
from ioptim.sources._checkpoint import CHECKPOINT_LIBRARIES, Checkpoint, holds_checkpoint
from ioptim.sources._hub import Repository, offline
from ioptim.sources._rows import SUFFIXES, Rows, read_rows
from ioptim.sources._table import make_table, selection

_MODEL_FILES = ("*.json", "*.safetensors", "*.txt", "*.jinja", "*.model")


class HubModel(ModelSource):
    """A checkpoint repository. A snapshot in the cache is used as it is, without asking the hub; `revision` pins another.

    Only configuration, tokenizer and safetensors files of the top folder are downloaded, pickles and code when the recipe allows them.
    """

    libraries = CHECKPOINT_LIBRARIES

    def __init__(self, spec: ModelSpec, base: Path, root: Path | None) -> None:
        self.spec = spec
        self.repository = Repository(spec.source.partition(":")[2], "model", spec.revision)

    def check(self) -> list[str]:
        """A name that is none; not in the cache where the network is forbidden; whatever is wrong with a cached checkpoint."""
        if objections := self.repository.check():
            return objections
        if (cached := self._cached()) is not None:
            return cached.check()
        if offline():
            return [self.repository.not_cached("the checkpoint")]
        return _needs_library()

    def identity(self) -> Mapping[str, str]:
        """The commit, which fixes every file. Asks the hub when the cache has none."""
        if objections := self.check():
            raise PlanError("; ".join(objections))
        return {"hub": f"{self.repository.name}@{self._commit()}"}

    def outline(self) -> Outline | None:
        """Of the cached checkpoint; nothing is downloaded for it."""
        cached = self._cached()
        return cached.outline() if cached is not None else None

    def fetch(self, out: Path, task: Task) -> Outcome:
        """From the cache, or downloaded into it; then copied and loaded once."""
        cached = self._cached()
        if cached is None:
            if offline():
                raise UnavailableError(self.repository.not_cached("the checkpoint"))
            folder = self.repository.download(self._patterns(), ["*/*"])
            cached, came = Checkpoint(folder, self.spec), "was downloaded"
        else:
            came = "came from the cache"
        note = Note(text=f"hf:{self.repository.name}@{self.repository.revision or 'main'} is commit {cached.folder.name}; it {came}")
        return cached.fetch(out, task, [note])

    def _cached(self) -> Checkpoint | None:
        folder = self.repository.cached()
        return Checkpoint(folder, self.spec) if folder is not None and holds_checkpoint(folder) else None

    def _commit(self) -> str:
        cached = self._cached()
        return cached.folder.name if cached else self.repository.remote_commit()

    def _patterns(self) -> list[str]:
        extra = [*(["*.bin", "*.pt"] if self.spec.allow_pickle else []), *(["*.py"] if self.spec.allow_remote_code else [])]
        return [*_MODEL_FILES, *extra]


class HubData(DataSource):
    """The .parquet, .csv, .tsv or .jsonl files of a data set repository that belong to one split.

    A file belongs to a split when its name or one of its folders is the split's (`data/train-00000-of-00001.parquet`,
    `train.csv`, `train/part-0.parquet`). Several parts are read in the order of their names.
    """

    cheap = False

    def __init__(self, spec: DataSpec, base: Path, root: Path | None) -> None:
        self.spec = spec
        parts = spec.source.partition(":")[2].split("/")
        self.folder = "/".join(parts[2:])
        self.repository = Repository("/".join(parts[:2]), "dataset", spec.revision)

    def check(self) -> list[str]:
        """A name that is none, no split, a split that the cached snapshot lacks where the network is forbidden."""
        objections = self.repository.check()
        if self.folder.startswith("/") or ".." in self.folder.split("/"):
            return [*objections, f"{self.spec.source}: {self.folder!r} is not a folder of the data set"]
        if self.spec.split is None:
            objections.append(f"{self.spec.source}: name the split, for example `split: validation`{self._splits_text()}")
        if objections:
            return objections
        try:
            if self._cached_files():
                return []
        except PlanError as error:
            return [str(error)]
        if offline():
            return [self.repository.not_cached(f"the split {self.spec.split!r}") + self._splits_text()]
        return _needs_library()

    def identity(self) -> Mapping[str, str]:
        """The commit, which fixes every file, and which rows and columns. Asks the hub when the cache has none."""
        if objections := self.check():
            raise PlanError("; ".join(objections))
        commit = self.repository.cached_commit() if self._cached_files() else self.repository.remote_commit()
        return {"hub": f"{self.repository.name}@{commit}", "folder": self.folder, **selection(self.spec)}

    def read(self) -> Table:
        """All parts of the split, one after the other."""
        if objections := self.check():
            raise PlanError("; ".join(objections))
        files = self._cached_files() or self._downloaded()
        parts = [read_rows(file) for file in files]
        columns = parts[0].columns
        for file, part in zip(files, parts, strict=True):
            if set(part.columns) != set(columns):
                raise PlanError(f"{file.name} has the columns {', '.join(part.columns)}; {files[0].name} has {', '.join(columns)}")
        joined = {name: [value for part in parts for value in part.columns[name]] for name in columns}
        rows = Rows(joined, tuple(name for part in parts for name in part.names))
        return make_table(rows, self.spec, f"{self.spec.source} ({self.spec.split})")

    def _downloaded(self) -> list[Path]:
        patterns = [f"{self.folder}/*" if self.folder else "*"]
        patterns = [f"{pattern}{self.spec.split}*{suffix}" for pattern in patterns for suffix in SUFFIXES]
        patterns += [pattern.replace(f"{self.spec.split}*", f"{self.spec.split}/*") for pattern in patterns]
        folder = self.repository.download(patterns)
        files = self._files_of_split(folder)
        if not files:
            raise StepError(f"{self.spec.source} has no {', '.join(SUFFIXES)} file for the split {self.spec.split!r}")
        return files

    def _cached_files(self) -> list[Path]:
        folder = self.repository.cached()
        return self._files_of_split(folder) if folder is not None else []

    def _files_of_split(self, snapshot: Path) -> list[Path]:
        """The split's files, all of one folder.

        Raises:
            PlanError: several configurations of the data set have this split.
        """
        found = [path for path in _data_files(snapshot / self.folder) if self.spec.split in _splits_of(path.relative_to(snapshot))]
        folders = sorted({path.parent.relative_to(snapshot).as_posix() for path in found})
        if len(folders) > 1:
            choices = ", ".join(f"hf:{self.repository.name}/{folder}" for folder in folders)
            raise PlanError(f"{self.spec.source} has the split {self.spec.split!r} in {len(folders)} folders; choose one: {choices}")
        return found if _complete(found) else []

    def _splits_text(self) -> str:
        snapshot = self.repository.cached()
        if snapshot is None:
            return ""
        names = [path.relative_to(snapshot).as_posix() for path in _data_files(snapshot / self.folder)]
        return f". The cached snapshot has {', '.join(names[:10])}" if names else ""


def _data_files(folder: Path) -> list[Path]:
    return sorted(path for path in folder.rglob("*") if path.suffix.lower() in SUFFIXES and path.is_file())


def _splits_of(path: Path) -> set[str]:
    """What a file may be called the split of: its name up to a part number, and its folders."""
    stem = path.name.removesuffix(path.suffix)
    return {stem, stem.split("-0")[0], *path.parent.parts}


def _complete(files: Sequence[Path]) -> bool:
    """Whether all of a split's parts are there: a cached snapshot may have some of them only."""
    wanted = {int(match[1]) for file in files if (match := re.search(r"-of-(\d+)$", file.stem))}
    return not wanted or len(files) == max(wanted)


def _needs_library() -> list[str]:
    if importlib.util.find_spec("huggingface_hub") is None:
        return ["an hf: source that is not in the cache needs huggingface_hub; install it with: pip install 'ioptim[data]'"]
    return []
