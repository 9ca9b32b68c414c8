"""Runs in MLflow: one parent run per recipe run, a child run per node, the final models. The one module that imports MLflow.

Runs are made and written by explicit id only. MLflow's fluent functions keep the active run per thread: in another thread they
make a run without a parent, or a stray one that stays open.
"""

from __future__ import annotations

import contextlib
import fcntl
import json
import logging
import os
import re
import socket
import sqlite3
import tempfile
from collections.abc import Iterator, Mapping, Sequence
from datetime import datetime
from functools import cache
from pathlib import Path
from typing import TYPE_CHECKING, Any
from urllib.parse import urlsplit

from ioptim.core.artifact import TensorSpec, write_json
from ioptim.core.base import digest_of
from ioptim.core.record import NodeRecord, RunRecord, Status, TrackingState
from ioptim.core.step import Curve
from ioptim.environment import finish_imports, import_early
from ioptim.errors import UnavailableError
from ioptim.tracking import local
from ioptim.tracking.content import (
    final_models,
    flatten,
    node_metrics,
    node_tags,
    provenance,
    run_tags,
    verdict_tags,
    write_node_files,
    write_run_files,
)
from ioptim.tracking.summary import Summary, summarize

if TYPE_CHECKING:
    from mlflow.entities import DatasetInput, Metric
    from mlflow.models import ModelSignature

    from mlflow import MlflowClient

CONNECT_S = 3
PARAM_LIMIT, TAG_LIMIT, KEY_LIMIT, BATCH = 6000, 5000, 250, 100
"""MLflow refuses longer values (a tag of an older server over 5000) and larger batches of parameters or tags."""

EXPERIMENT_TAGS = {"mlflow.experimentKind": "custom_model_development"}
"""MLflow's page opens on runs and models; its other layout is for prompts and traces."""

FINISHED = {Status.PASSED: "FINISHED", Status.SKIPPED: "KILLED", Status.INTERRUPTED: "KILLED"}
"""MLflow's word for how a run or node ended; anything else is FAILED."""


def warm_up() -> None:
    """Begin to import MLflow in the background: it takes more than a second."""
    import_early("mlflow")


class MlflowTracker:
    """Follows one run. Not for use by two threads at the same time; any thread may call it.

    `uri` None stands for a SQLite database in `home`. Nothing is imported or reached before `begin`.
    """

    def __init__(self, home: Path, uri: str | None, experiment: str) -> None:
        self.home = home
        self.uri = uri or f"sqlite:///{home / 'mlflow.db'}"
        self.is_local = uri is None
        self.experiment = experiment
        self._client: MlflowClient | None = None
        self._experiment_id = ""
        self._parent = ""
        self._children: dict[str, str] = {}

    @property
    def state(self) -> TrackingState:
        """State of a run that is not yet known to be uploaded."""
        return TrackingState(state="pending", uri=without_login(self.uri), run_id=self._parent or None)

    def begin(self, run: RunRecord) -> None:
        """Open the parent run, replacing what an upload of this run that broke off has left.

        Raises:
            UnavailableError: the server does not answer, within seconds; or it refused.
        """
        with self._reaching():
            self._open()
            for left in self._uploads(run) if run.finished else ():  # a run that only now begins has left nothing
                self._discard(left.info.run_id)
            made = self._api.create_run(
                self._experiment_id, start_time=_milliseconds(run.started), run_name=run.run_id, tags=_cut(run_tags(run), TAG_LIMIT)
            )
            self._parent = made.info.run_id
            self._log(self._parent, params=flatten(run.recipe_config))
            inputs = data_sets(run)
            if inputs:
                self._api.log_inputs(self._parent, inputs)

    def node(self, run: RunRecord, node: NodeRecord) -> None:
        """Write a child run for a node that has ended."""
        with self._reaching():
            start = _milliseconds(node.started or run.started)
            tags = {"mlflow.parentRunId": self._parent, **_cut(node_tags(run, node), TAG_LIMIT)}
            child_id = self._api.create_run(self._experiment_id, start_time=start, run_name=node.id, tags=tags).info.run_id
            self._children[node.id] = child_id
            self._log(child_id, metrics=node_metrics(node), params=flatten(node.config), time=start, curves=node.curves)
            with tempfile.TemporaryDirectory(prefix="ioptim-") as folder:
                tables = write_node_files(node, Path(folder))
                self._api.log_artifacts(child_id, folder)
            if tables:
                self._api.set_tag(child_id, "mlflow.loggedArtifacts", json.dumps([{"path": path, "type": "table"} for path in tables]))
            if node.files and Path(node.files).is_dir():
                self._api.log_artifacts(child_id, node.files, "files")
            took = 0 if node.cached else int(node.seconds * 1000)
            self._api.set_terminated(child_id, FINISHED.get(node.status, "FAILED"), end_time=start + took)

    def end(self, run: RunRecord, folder: Path) -> TrackingState:
        """Write the summary, the verdicts and the final models, and close the parent run."""
        summary = summarize(run)
        with self._reaching():
            end = _milliseconds(run.finished or run.started)
            models = [model_id for node in final_models(run) if (model_id := self._model(run, node, summary)) is not None]
            self._log(self._parent, metrics=summary.metrics, tags=verdict_tags(run, summary), time=end)
            if models:
                from mlflow.entities import LoggedModelOutput

                self._api.log_outputs(self._parent, [LoggedModelOutput(model_id, step=0) for model_id in models])
            with tempfile.TemporaryDirectory(prefix="ioptim-") as files:
                write_run_files(run, folder, Path(files))
                self._api.log_artifacts(self._parent, files)
            self._api.set_tag(self._parent, "ioptim.complete", "true")
            self._api.set_terminated(self._parent, FINISHED.get(run.status, "FAILED"), end_time=end)
        return self._logged

    def uploaded(self, run: RunRecord) -> TrackingState | None:
        """The state of a run that is there in full; None when it is not, or only in part."""
        with self._reaching():
            self._open()
            for found in self._uploads(run):
                if found.data.tags.get("ioptim.complete") == "true":
                    self._parent = found.info.run_id
                    return self._logged
        return None

    # Reaching MLflow

    @property
    def _api(self) -> MlflowClient:
        if self._client is None:
            raise UnavailableError("the run was not begun in MLflow")
        return self._client

    def _open(self) -> None:
        """Connect, once, and find or make the experiment."""
        if self._client is not None:
            return
        if away := _away(self.uri):
            raise UnavailableError(away)
        finish_imports()
        from mlflow import MlflowClient

        for name in ("mlflow", "alembic"):
            logging.getLogger(name).setLevel(logging.ERROR)  # importing it set its own level again
        if self.is_local:
            self.home.mkdir(parents=True, exist_ok=True)
            _commit_without_waiting_for_the_disk()
        with _locked(self.home / "mlflow.lock") if self.is_local else contextlib.nullcontext():
            client = MlflowClient(self.uri, registry_uri=self.uri)
            found = client.get_experiment_by_name(self.experiment)
            if found is None:
                self._experiment_id = self._new_experiment(client)
            elif found.lifecycle_stage != "active":
                raise UnavailableError(
                    f"the MLflow experiment {self.experiment!r} is deleted. Restore it: MLFLOW_TRACKING_URI={without_login(self.uri)}"
                    f" mlflow experiments restore --experiment-id {found.experiment_id}"
                )
            else:
                self._experiment_id = found.experiment_id
            if self.is_local:
                _let_readers_beside_a_writer(self.home / "mlflow.db")
        self._client = client

    def _new_experiment(self, client: MlflowClient) -> str:
        from mlflow.exceptions import MlflowException

        folder = self.home / "mlflow-artifacts" / re.sub(r"[^A-Za-z0-9._-]", "-", self.experiment)
        try:
            # The default would be ./mlruns, wherever the run was started.
            where = folder.as_uri() if self.is_local else None
            return str(client.create_experiment(self.experiment, artifact_location=where, tags=EXPERIMENT_TAGS))
        except MlflowException as error:
            found = client.get_experiment_by_name(self.experiment)  # made by another run meanwhile
            if found is None:
                raise error
            return str(found.experiment_id)

    @contextlib.contextmanager
    def _reaching(self) -> Iterator[None]:
        """Turn whatever MLflow, its server or the disk says into one error of ours."""
        try:
            yield
        except ImportError as error:
            raise UnavailableError(f"MLflow cannot be imported: {error}. Install it with: pip install 'ioptim[track]'") from error
        except _errors() as error:
            text = without_login(str(error)).strip().splitlines()
            said = text[0][:500] if text else type(error).__name__
            raise UnavailableError(f"MLflow at {without_login(self.uri)}: {said}") from error

    def _uploads(self, run: RunRecord) -> Sequence[Any]:
        """Parent runs of this run that are there already, whole or not."""
        where = f"tags.`ioptim.run_id` = '{run.run_id}' and tags.`ioptim.kind` = 'pipeline'"
        return list(self._api.search_runs([self._experiment_id], where, max_results=10))

    def _discard(self, parent: str) -> None:
        for child in self._api.search_runs([self._experiment_id], f"tags.`mlflow.parentRunId` = '{parent}'", max_results=1000):
            self._api.delete_run(child.info.run_id)
        self._api.delete_run(parent)

    @property
    def _logged(self) -> TrackingState:
        server, url = without_login(self.uri), None
        if urlsplit(server).scheme in ("http", "https"):
            url = f"{server.rstrip('/')}/#/experiments/{self._experiment_id}/runs/{self._parent}"
        return TrackingState(state="logged", uri=server, run_id=self._parent, url=url)

    # Writing

    def _log(
        self,
        run_id: str,
        *,
        metrics: Mapping[str, float] | None = None,
        params: Mapping[str, str] | None = None,
        tags: Mapping[str, str] | None = None,
        time: int = 0,
        model_id: str | None = None,
        curves: Sequence[Curve] = (),
    ) -> None:
        """Write in as few calls as MLflow's limits allow. A curve becomes the history of a metric, by step and by time."""
        from mlflow.entities import Metric, Param, RunTag

        numbers: list[Metric] = [
            Metric(_key(key), float(value), time, 0, model_id=model_id, run_id=run_id if model_id else None)
            for key, value in (metrics or {}).items()
        ]
        numbers += [
            Metric(_key(curve.metric), value, time + round(seconds * 1000), step)
            for curve in curves
            for step, value, seconds in zip(curve.steps, curve.values, curve.seconds, strict=True)
        ]
        knobs = [Param(key, value) for key, value in _cut(params or {}, PARAM_LIMIT).items()]
        marks = [RunTag(key, value) for key, value in _cut(tags or {}, TAG_LIMIT).items()]
        while numbers or knobs or marks:
            self._api.log_batch(run_id, metrics=numbers[:500], params=knobs[:BATCH], tags=marks[:BATCH])
            numbers, knobs, marks = numbers[500:], knobs[BATCH:], marks[BATCH:]

    def _model(self, run: RunRecord, node: NodeRecord, summary: Summary) -> str | None:
        """The logged model of a node's artifact: the one with the same digest where the experiment has it, else a new one."""
        artifact = node.artifact
        if artifact is None or not Path(artifact.path).is_dir():  # pruned from the store since the run
            return None
        same = self._api.search_logged_models([self._experiment_id], f"tags.`ioptim.digest` = '{artifact.digest}'", max_results=10)
        whole = [model.model_id for model in same if model.status == "READY"]
        model_id = whole[0] if whole else self._new_model(run, node)
        # Linked through the node's own run: in the parent, several candidates would meet under the same names.
        time = _milliseconds(run.finished or run.started)
        self._log(self._children[node.id], metrics=summary.models.get(node.id), time=time, model_id=model_id)
        return str(model_id)

    def _new_model(self, run: RunRecord, node: NodeRecord) -> str:
        artifact = node.artifact
        assert artifact is not None
        model = self._api.create_logged_model(
            self._experiment_id,
            name=_model_name(f"{run.recipe}-{node.id}"),
            source_run_id=self._children[node.id],
            tags={"ioptim.digest": artifact.digest, "ioptim.node": node.id, "ioptim.run_id": run.run_id},
            params={"format": artifact.format.value, "size_bytes": str(artifact.size_bytes), "target": node.target or ""},
            model_type=artifact.format.value,
        )
        self._api.log_model_artifacts(model.model_id, artifact.path)
        with tempfile.TemporaryDirectory(prefix="ioptim-") as folder:
            _write_model_files(run, node, Path(folder), self._children[node.id], model.model_id)
            self._api.log_model_artifacts(model.model_id, folder)
        self._api.finalize_logged_model(model.model_id, "READY")
        return str(model.model_id)


def sync(home: Path) -> list[RunRecord]:
    """Upload every run that waits for it, the oldest first, and return them as they are now.

    A run that is there in full is only noted as logged; one that is there in part is written anew. Two processes take turns.

    Raises:
        UnavailableError: some still wait, and why; every other has been uploaded and noted.
    """
    synced: list[RunRecord] = []
    waiting: dict[str, list[str]] = {}  # why: ids of the runs
    away = cache(_away)  # a server that is silent costs seconds, and many runs may wait for it
    with _locked(home / "mlflow-sync.lock"):
        for run in local.pending(home):
            tracker = _tracker_of(home, run)
            try:
                if why := away(tracker.uri):
                    raise UnavailableError(why)
                uploaded = run.model_copy(update={"tracking": _upload(tracker, home, run)})
                local.write_run(home, uploaded)
            except UnavailableError as error:
                waiting.setdefault(str(error), []).append(run.run_id)
            else:
                synced.append(uploaded)
    if waiting:
        lines = "".join(f"\n  {', '.join(ids)}: {why}" for why, ids in waiting.items())
        give_up = f"to give one up, remove its {local.PENDING} in {local.runs_folder(home)}"
        raise UnavailableError(f"runs that still wait to be uploaded ({give_up}):{lines}")
    return synced


def _tracker_of(home: Path, run: RunRecord) -> MlflowTracker:
    """Where a run waits to be uploaded. Its record holds no login: that is in the recipe or the environment, with the same address."""
    tracking = run.recipe_config.get("tracking") or {}
    given = [uri for uri in (tracking.get("uri"), os.environ.get("MLFLOW_TRACKING_URI")) if uri]
    uri = next((uri for uri in given if run.tracking.uri in (None, without_login(uri))), run.tracking.uri)
    own = f"sqlite:///{home / 'mlflow.db'}"
    return MlflowTracker(home, None if uri == own else uri, tracking.get("experiment") or run.recipe)


def _upload(tracker: MlflowTracker, home: Path, run: RunRecord) -> TrackingState:
    state = tracker.uploaded(run)
    if state is not None:
        return state
    tracker.begin(run)
    for node in run.nodes:
        if node.status is not Status.PENDING:
            tracker.node(run, node)
    return tracker.end(run, local.run_folder(home, run.run_id))


# What is written


def data_sets(run: RunRecord) -> list[DatasetInput]:
    """The recipe's data sets as MLflow knows them; the digest is of the rows, and of the recipe's words for a set that no step reads."""
    from mlflow.entities import Dataset, DatasetInput, InputTag

    inputs = []
    for role, spec in (run.recipe_config.get("data") or {}).items():
        if spec:
            kind = str(spec["source"]).partition(":")[0] if ":" in str(spec["source"]) else "local"
            name = re.sub(r"^\w+:", "", str(spec["source"])).rstrip("/").rpartition("/")[2] or role
            digest = digest_of(run.data.get(role) or spec)[:16]
            dataset = Dataset(name[:500], digest, kind, json.dumps({"uri": spec["source"], **spec}, sort_keys=True))
            inputs.append(DatasetInput(dataset, [InputTag("mlflow.data.context", role)]))
    return inputs


def _write_model_files(run: RunRecord, node: NodeRecord, folder: Path, run_id: str, model_id: str) -> None:
    """MLmodel with the signature, as MLflow's page reads it, and the provenance."""
    from mlflow.models import Model

    artifact = node.artifact
    assert artifact is not None
    flavor = {"format": artifact.format.value, "digest": artifact.digest, "recipe": run.recipe, "node": node.id}
    model = Model(run_id=run_id, model_id=model_id, flavors={"ioptim": flavor}, signature=_signature(artifact.inputs, artifact.outputs))
    model.save(str(folder / "MLmodel"))
    specs = {"inputs": artifact.inputs, "outputs": artifact.outputs}
    write_json(folder / "signature.json", {role: [spec.model_dump(mode="json") for spec in specs[role]] for role in specs})
    write_json(folder / "provenance.json", provenance(run, node))


def _signature(inputs: Sequence[TensorSpec], outputs: Sequence[TensorSpec]) -> ModelSignature | None:
    """MLflow's signature of tensors; an axis that varies is -1. None where the specs are not known or not NumPy types."""
    import numpy as np
    from mlflow.models import ModelSignature
    from mlflow.types import Schema
    from mlflow.types import TensorSpec as Spec

    def schema(specs: Sequence[TensorSpec]) -> Schema:
        return Schema([Spec(np.dtype(s.dtype), tuple(a if isinstance(a, int) else -1 for a in s.shape), s.name) for s in specs])

    try:
        return ModelSignature(inputs=schema(inputs), outputs=schema(outputs)) if inputs and outputs else None
    except TypeError:  # bfloat16 and its like: signature.json has it
        return None


# MLflow's limits and places


def _cut(values: Mapping[str, str], limit: int) -> dict[str, str]:
    """Values no longer than MLflow takes; what is cut ends in the number of characters left out (run.json has all of it)."""
    room = limit - 40
    return {_key(key): text if len(text) <= limit else f"{text[:room]}… {len(text) - room} characters more" for key, text in values.items()}


def _key(name: str) -> str:
    """MLflow takes letters, digits and ._-/ and blanks in the name of a parameter, metric or tag."""
    return re.sub(r"[^\w./ -]", "-", name)[:KEY_LIMIT]


def _model_name(text: str) -> str:
    """MLflow takes no slash, colon, dot, percent or quote in the name of a logged model."""
    return re.sub(r"[^\w-]", "-", text)


def _milliseconds(iso: str) -> int:
    return int(datetime.fromisoformat(iso).timestamp() * 1000) if iso else 0


def _errors() -> tuple[type[Exception], ...]:
    """What MLflow lets through when its store cannot be reached or refuses."""
    found: list[type[Exception]] = [OSError, sqlite3.Error]
    try:
        import requests
        from mlflow.exceptions import MlflowException
        from sqlalchemy.exc import SQLAlchemyError
    except ImportError:
        return tuple(found)
    return (*found, MlflowException, requests.RequestException, SQLAlchemyError)


def without_login(text: str) -> str:
    """Without the user and password that an address in the text may carry: what is written down or shown is read by others."""
    return re.sub(r"//[^/\s]*@", "//", text)


def _away(uri: str) -> str:
    """Why a server cannot be reached; empty when it can. Knocks at its port before MLflow, which would try for minutes, is let near it."""
    try:
        parts = urlsplit(uri)
        if parts.scheme in ("http", "https"):
            port = parts.port or (443 if parts.scheme == "https" else 80)
            socket.create_connection((parts.hostname or "", port), timeout=CONNECT_S).close()
    except OSError as error:
        return f"the MLflow server at {without_login(uri)} cannot be reached: {error.strerror or error}"
    except ValueError:  # its text would quote a password with a slash in it
        return "the address of the MLflow server cannot be read: expected http://HOST:PORT, and %2F for a slash in a login"
    return ""


@contextlib.contextmanager
def _locked(path: Path) -> Iterator[None]:
    """Hold a file's lock; the kernel frees it however this process ends."""
    path.parent.mkdir(parents=True, exist_ok=True)
    with path.open("w") as file:
        fcntl.flock(file, fcntl.LOCK_EX)
        yield


@cache
def _commit_without_waiting_for_the_disk() -> None:
    """With write-ahead logging a power cut may then lose the last commits (the run's own folder has all of it), and never damages the file.

    A cached run of nine nodes writes some forty commits, 10 ms each on a busy disk.
    """
    from sqlalchemy import event
    from sqlalchemy.engine import Engine

    @event.listens_for(Engine, "connect")
    def connected(connection: Any, _: Any) -> None:
        if isinstance(connection, sqlite3.Connection):
            connection.execute("PRAGMA synchronous=NORMAL")


def _let_readers_beside_a_writer(database: Path) -> None:
    """Write-ahead logging: four writers at once took 15 s without it and 2 s with it. Kept in the file once set."""
    with contextlib.closing(sqlite3.connect(database, timeout=30)) as connection:
        connection.execute("PRAGMA journal_mode=WAL")
