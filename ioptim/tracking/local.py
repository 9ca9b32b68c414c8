"""The run folder: `<home>/runs/<run_id>/`. It is the truth about a run; every tracker can be filled from it again.

    run.json            the RunRecord, rewritten as a whole each time something ends
    recipe.yaml         the recipe as read
    report.html         written by the report
    logs/               captured output, one file per node
    owner.json          host, pid and start time of the process; there only while the run goes
    tracking.pending    an empty file, there while the run still has to be uploaded
"""

from __future__ import annotations

import json
import logging
import os
import re
import secrets
import shlex
import socket
from collections.abc import Iterable, Iterator
from datetime import UTC, datetime
from itertools import islice
from pathlib import Path
from typing import Any

from pydantic import ValidationError

from ioptim.core.artifact import write_json
from ioptim.core.record import NodeRecord, RunRecord, Status
from ioptim.errors import ExitCode, UnavailableError

RECORD = "run.json"
RECIPE = "recipe.yaml"
REPORT = "report.html"
LOGS = "logs"
OWNER = "owner.json"
PENDING = "tracking.pending"
SHOWN = 5
"""Runs listed when one that was asked for is not there."""

UNFINISHED = (Status.PENDING, Status.RUNNING)

logger = logging.getLogger(__name__)


def new_run_id(recipe: str) -> str:
    """A name that sorts by time, says what it is of and is new: 20261121-081832-bert-int8-3f2a91 (UTC)."""
    name = re.sub(r"[^A-Za-z0-9._-]+", "-", recipe)[:60]
    return f"{datetime.now(UTC):%Y%m%d-%H%M%S}-{name}-{secrets.token_hex(3)}"


def runs_folder(home: Path) -> Path:
    return home / "runs"


def run_folder(home: Path, run_id: str) -> Path:
    return runs_folder(home) / run_id


def create_run(home: Path, run: RunRecord) -> Path:
    """Make the folder of a new run, owned by this process, and return it.

    Raises:
        UnavailableError: the home folder cannot be written.
    """
    folder = run_folder(home, run.run_id)
    try:
        (folder / LOGS).mkdir(parents=True)
        (folder / RECIPE).write_text(run.recipe_text)
        write_json(folder / OWNER, _this_process())
    except OSError as error:
        raise UnavailableError(
            f"cannot write the run to {folder}: {error.strerror or error}. Make it writable or choose another folder with --home"
        ) from error
    write_run(home, run)
    return folder


def write_run(home: Path, run: RunRecord) -> None:
    """Replace run.json; a crash leaves the record before or the one after. One writer at a time."""
    folder = run_folder(home, run.run_id)
    finished = run.status not in UNFINISHED
    try:
        if finished and run.tracking.state == "pending":
            (folder / PENDING).touch()
        _replace(folder / RECORD, run.model_dump_json(indent=1), sure=finished)
        if finished:
            (folder / OWNER).unlink(missing_ok=True)
            if run.tracking.state != "pending":
                (folder / PENDING).unlink(missing_ok=True)
    except OSError as error:
        raise UnavailableError(f"cannot write {folder / RECORD}: {error.strerror or error}") from error


def _replace(path: Path, text: str, *, sure: bool) -> None:
    """`sure` waits for the disk. While a run goes there are dozens of records, and a power cut ends it anyway."""
    aside = path.with_name(f".{path.name}.{os.getpid()}")
    with aside.open("w", encoding="utf-8") as file:
        file.write(text)
        if sure:
            file.flush()
            os.fsync(file.fileno())
    aside.replace(path)


def read_run(home: Path, which: str | Path) -> RunRecord:
    """The run that `find_run` finds.

    Raises:
        UnavailableError: it is not found, or its record is damaged.
    """
    return _read(find_run(home, which) / RECORD)


def find_run(home: Path, which: str | Path) -> Path:
    """The folder of a run by id, by the start of its id, by path (folder or run.json, of any home) or `latest`.

    Raises:
        UnavailableError: there is no such run (the most recent ones are named), or several begin so.
    """
    path = Path(os.path.abspath(which))  # `.` has a parent too
    if path.name == RECORD and path.is_file():
        return path.parent
    if (path / RECORD).is_file():
        return path
    ids = list(_run_ids(home))
    if which == "latest" and ids:
        return run_folder(home, ids[0])
    matches = [run_id for run_id in ids if run_id == str(which)] or [i for i in ids if str(which) and i.startswith(str(which))]
    if len(matches) == 1:
        return run_folder(home, matches[0])
    if matches:
        raise UnavailableError(f"{len(matches)} runs begin with {str(which)!r}: {_listed(matches)}. Write more of the id")
    there = f"The latest are {_listed(ids)}" if ids else "There are none yet; `ioptim run RECIPE` makes one"
    raise UnavailableError(f"there is no run {str(which)!r} in {runs_folder(home)}. {there}")


def list_runs(home: Path, limit: int | None = None) -> list[RunRecord]:
    """Runs, the newest first. A record that cannot be read is left out with a warning in the log."""
    return list(islice(_readable(run_folder(home, run_id) / RECORD for run_id in _run_ids(home)), limit))


def pending(home: Path) -> list[RunRecord]:
    """Finished runs that a tracker could not be told about, the oldest first. A record that cannot be read is left out with a warning."""
    runs = _readable(path.parent / RECORD for path in sorted(runs_folder(home).glob(f"*/{PENDING}")))
    return [run for run in runs if run.status not in UNFINISHED and run.tracking.state == "pending"]


def reap(home: Path) -> list[RunRecord]:
    """Close the runs of this host whose process is gone: they become INTERRUPTED. Returns them as they are now.

    A record that cannot be read or written is left as it is, with a warning: it is no reason not to run.
    """
    closed = []
    for owner in sorted(runs_folder(home).glob(f"*/{OWNER}")):
        try:
            run = _closed(home, owner) if _gone(owner) else None
        except (UnavailableError, OSError) as error:
            logger.warning("%s", error)
            continue
        if run is not None:
            closed.append(run)
    return closed


def _closed(home: Path, owner: Path) -> RunRecord | None:
    """The run of an owner that is gone, closed; None where it had ended."""
    record = owner.parent / RECORD
    if not record.is_file():  # killed between making the folder and the first record: there is nothing to tell
        owner.unlink(missing_ok=True)
        return None
    run = _read(record)
    ended = run.status not in UNFINISHED
    if not ended:
        run = interrupted(run, datetime.fromtimestamp(record.stat().st_mtime, UTC).isoformat(timespec="seconds"))
    write_run(home, run)
    return None if ended else run


def interrupted(run: RunRecord, finished: str) -> RunRecord:
    """The run as it is when it was ended from outside: what was running is INTERRUPTED, what had not begun is SKIPPED."""
    nodes = tuple(_interrupted_node(node) for node in run.nodes)
    return run.model_copy(
        update={"status": Status.INTERRUPTED, "exit_code": ExitCode.INTERRUPTED, "finished": finished, "nodes": nodes}
    )


def _interrupted_node(node: NodeRecord) -> NodeRecord:
    new = {Status.RUNNING: Status.INTERRUPTED, Status.PENDING: Status.SKIPPED}.get(node.status, node.status)
    return node.model_copy(update={"status": new})


def _run_ids(home: Path) -> Iterator[str]:
    """Ids that have a record, the newest first."""
    for path in sorted(runs_folder(home).glob(f"*/{RECORD}"), reverse=True):
        yield path.parent.name


def _listed(ids: list[str]) -> str:
    more = f" and {len(ids) - SHOWN} more" if len(ids) > SHOWN else ""
    return ", ".join(ids[:SHOWN]) + more


def _readable(records: Iterable[Path]) -> Iterator[RunRecord]:
    for record in records:
        try:
            yield _read(record)
        except UnavailableError as error:
            logger.warning("%s", error)


def _read(path: Path) -> RunRecord:
    try:
        return RunRecord.model_validate(json.loads(path.read_text()))
    except (OSError, ValueError) as error:
        why = str(error)
        if isinstance(error, ValidationError):
            wrong = _listed([f"{'.'.join(map(str, each['loc']))}: {each['msg']}" for each in error.errors()])
            why = f"it is not as this version of ioptim writes it ({wrong})"
        remove = f"rm -r {shlex.quote(str(path.parent))}"
        raise UnavailableError(f"the record {path} cannot be read: {why}. To remove the run: {remove}") from error


def _this_process() -> dict[str, Any]:
    return {"host": socket.gethostname(), "pid": os.getpid(), "process": _process_identity(os.getpid())}


def _gone(owner: Path) -> bool:
    """Whether the process named in an owner file ran on this host and has ended. On another host: nobody can tell, so no."""
    try:
        process = json.loads(owner.read_text())
        return process["host"] == socket.gethostname() and _process_identity(process["pid"]) != process["process"]
    except (OSError, ValueError, KeyError, TypeError):
        return False  # just removed, or not ours to judge


def _process_identity(pid: int) -> str | None:
    """What no later process of the same number shares: boot and start time. None when there is no such process."""
    proc = Path("/proc")
    if not (proc / "self" / "stat").exists():  # not Linux: the number alone
        try:
            os.kill(pid, 0)
        except ProcessLookupError:
            return None
        except PermissionError:
            pass
        return str(pid)
    try:
        # The name in parentheses may hold spaces; field 22 (start time in ticks since boot) is the 20th after it, 3 is the state.
        fields = (proc / str(pid) / "stat").read_text().rpartition(")")[2].split()
        boot = (proc / "sys/kernel/random/boot_id").read_text().strip()
    except OSError:
        return None
    return None if fields[0] == "Z" else f"{boot}/{fields[19]}"
