"""Snapshots of Hugging Face hub repositories: from the cache when it has them, else downloaded.

The cache is read by its layout alone (`models--ORG--NAME/refs/main`, `.../snapshots/COMMIT/`), so a plan needs neither network
nor `huggingface_hub`: https://huggingface.co/docs/huggingface_hub/guides/manage-cache
"""

from __future__ import annotations

import contextlib
import importlib
import os
import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TypeVar

from ioptim.errors import UnavailableError

T = TypeVar("T")

_NAME = re.compile(r"^[A-Za-z0-9][\w.-]*(?:/[A-Za-z0-9][\w.-]*)?$")
_COMMIT = re.compile(r"^[0-9a-f]{40}$")
_REVISION = re.compile(r"^[\w][\w./-]*$")


def offline() -> bool:
    """Whether the user has forbidden the hub (`HF_HUB_OFFLINE`)."""
    return os.environ.get("HF_HUB_OFFLINE", "").upper() in ("1", "ON", "YES", "TRUE")


def cache_folder() -> Path:
    """Where `huggingface_hub` keeps its snapshots."""
    home = Path(os.environ.get("HF_HOME") or Path(os.environ.get("XDG_CACHE_HOME") or "~/.cache") / "huggingface")
    return Path(os.environ.get("HF_HUB_CACHE") or os.environ.get("HUGGINGFACE_HUB_CACHE") or home / "hub").expanduser()


@dataclass(frozen=True)
class Repository:
    """One repository at one revision. `kind` is `model` or `dataset`."""

    name: str
    kind: str
    revision: str | None

    def check(self) -> list[str]:
        """A name or revision that cannot be one."""
        objections = []
        if not _NAME.match(self.name) or ".." in self.name:
            objections.append(f"{self.name!r} is not the name of a repository: expected hf:ORG/NAME")
        if self.revision is not None and (not _REVISION.match(self.revision) or ".." in self.revision):
            objections.append(f"revision {self.revision!r} is not a branch, a tag or a commit")
        return objections

    def cached_commit(self) -> str | None:
        """The commit that the cache has for the revision."""
        revision = self.revision or "main"
        reference = self._folder / "refs" / revision
        commit = reference.read_text().strip() if reference.is_file() else revision
        return commit if _COMMIT.match(commit) and self._snapshot(commit).is_dir() else None

    def cached(self) -> Path | None:
        """The cached snapshot, which may lack files that nobody has asked for yet."""
        commit = self.cached_commit()
        return self._snapshot(commit) if commit else None

    def remote_commit(self) -> str:
        """The commit that the hub has for the revision; asks the network.

        Raises:
            UnavailableError: no network, no such repository, or `huggingface_hub` is not installed.
        """
        return _asking(self, lambda hub: str(hub.HfApi().repo_info(self.name, repo_type=self.kind, revision=self.revision).sha))

    def download(self, patterns: Sequence[str], ignore: Sequence[str] = ()) -> Path:
        """The snapshot's folder, after the files that match have been fetched. By revision: the cache then knows its commit.

        Raises:
            UnavailableError: as `remote_commit`.
        """
        return Path(
            _asking(
                self,
                lambda hub: hub.snapshot_download(
                    self.name,
                    repo_type=self.kind,
                    revision=self.revision,
                    cache_dir=cache_folder(),
                    allow_patterns=list(patterns),
                    ignore_patterns=list(ignore) or None,
                ),
            )
        )

    def not_cached(self, what: str) -> str:
        """That there is neither cache nor network, and the command that fills the cache elsewhere."""
        at = f" --revision {self.revision}" if self.revision else ""
        typed = "" if self.kind == "model" else f" --repo-type {self.kind}"
        return (
            f"{what} of {self} is not in the cache {cache_folder()}, and HF_HUB_OFFLINE forbids the network."
            f" Fetch it where there is one: hf download {self.name}{typed}{at} or unset HF_HUB_OFFLINE"
        )

    def __str__(self) -> str:
        return f"hf:{self.name}" + (f"@{self.revision}" if self.revision else "")

    @property
    def _folder(self) -> Path:
        return cache_folder() / f"{self.kind}s--{self.name.replace('/', '--')}"

    def _snapshot(self, commit: str) -> Path:
        return self._folder / "snapshots" / commit


def _asking(repository: Repository, ask: Callable[..., T]) -> T:
    try:
        import huggingface_hub
        from huggingface_hub import errors
    except ImportError as error:
        raise UnavailableError(f"hf:{repository.name} is not in the cache; to fetch it: pip install huggingface_hub") from error
    try:
        return ask(huggingface_hub)
    except errors.GatedRepoError as error:
        text = f"{repository} is gated: accept its terms at https://huggingface.co/{repository.name}, then run: hf auth login"
        raise UnavailableError(text) from error
    except errors.RevisionNotFoundError as error:
        raise UnavailableError(f"the hub has hf:{repository.name}, but not the revision {repository.revision!r}") from error
    except errors.RepositoryNotFoundError as error:
        text = f"the hub has no {repository.kind} {repository.name!r}, or it is private; check the spelling, or run: hf auth login"
        raise UnavailableError(text) from error
    # Connection errors, timeouts, OfflineModeIsEnabled and LocalEntryNotFoundError are all OSErrors or errors of the HTTP library.
    except (OSError, errors.HfHubHTTPError, *_network_errors()) as error:
        text = " ".join(str(error).split())[:300]
        raise UnavailableError(
            f"{repository} is not in the cache {cache_folder()} and the hub cannot be reached: {text}."
            f" Fetch it where there is a network: hf download {repository.name}"
        ) from error


def _network_errors() -> tuple[type[Exception], ...]:
    """Of the HTTP library that the hub's client speaks through: httpx, from its version 2.4 on httpx2."""
    found = []
    for name in ("httpx", "httpx2"):
        with contextlib.suppress(ImportError):
            found.append(importlib.import_module(name).HTTPError)
    return tuple(found)
