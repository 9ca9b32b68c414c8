"""A transformers checkpoint in a folder: config.json, weights, tokenizer. What `package:`, `hf:` and a plain folder share."""

from __future__ import annotations

import importlib.util
import json
import re
import shutil
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

from ioptim.core.artifact import Format, ModelArtifact, hash_file
from ioptim.core.outline import Outline, width_in
from ioptim.core.source import ModelSpec
from ioptim.core.step import Level, Note, Outcome, Written
from ioptim.core.task import Task
from ioptim.errors import PlanError, StepError
from ioptim.sources._assets import TOKENIZER, assets_in, copy_assets
from ioptim.sources._paths import unreadable
from ioptim.sources._pickle import convert, pickles_in, refusal
from ioptim.sources._probe import probe
from ioptim.sources._safetensors import Header, NotSafetensorsError, merge, read_header
from ioptim.torch_model import Loaded, input_names, load_checkpoint

CHECKPOINT_LIBRARIES = ("torch", "safetensors", "transformers")
CONFIG = "config.json"
WEIGHTS = "model.safetensors"
INDEX = "model.safetensors.index.json"

_EMBEDDING = re.compile(r"(?:^|\.)(?:word_embeddings|embed_tokens|wte|tok_embeddings|shared)\.weight$")
_LAYER = re.compile(r"^(.*?\b(?:layers?|h))\.(\d+)\.")
_WIDTH_KEYS = ("embedding_size", "hidden_size", "d_model", "n_embd", "dim")
_DEPTH_KEYS = ("num_hidden_layers", "n_layers", "n_layer", "num_layers")


def holds_checkpoint(folder: Path) -> bool:
    """Whether a folder has a configuration and weights of any kind beside it."""
    return (folder / CONFIG).is_file() and ((folder / WEIGHTS).is_file() or (folder / INDEX).is_file() or bool(pickles_in(folder)))


@dataclass(frozen=True)
class Checkpoint:
    """One checkpoint folder, and what the recipe allows it."""

    folder: Path
    spec: ModelSpec

    # Checked without transformers or torch

    def check(self) -> list[str]:
        """Everything that is wrong with the files."""
        if not self.folder.is_dir():
            return [f"{self.folder} is not a folder; a checkpoint is a folder with {CONFIG} and {WEIGHTS}"]
        if objections := unreadable(self.folder / name for name in self._files if not self._index_problem):
            return objections
        config, objections = self._read_config()
        code = config.get("auto_map", {})
        if not isinstance(code, dict):
            kind = type(code).__name__
            objections.append(f"{self.folder / CONFIG}: auto_map must be a JSON object; it is {kind}. Correct it, or remove it")
        elif code and not self.spec.allow_remote_code:
            classes = ", ".join(str(value) for value in code.values())
            objections.append(
                f"{self.folder / CONFIG} asks to run Python code that the checkpoint carries (auto_map: {classes})."
                " Read that code, then accept it with `allow_remote_code: true`"
            )
        found = self._check_weights()
        if not found and not objections and not self._pickled:  # headers and configuration can be trusted
            found = self._mismatches(config)
        if importlib.util.find_spec("transformers") is None:
            found.append("a transformers checkpoint needs transformers; install it with: pip install 'ioptim[torch]'")
        return objections + found

    def identity(self) -> Mapping[str, str]:
        """SHA-256 of every file that is read: the same checkpoint from another place has the same identity."""
        if objections := self.check():
            raise PlanError("; ".join(objections))
        return {name: hash_file(self.folder / name) for name in self._files}

    def outline(self) -> Outline | None:
        """From the headers of safetensors files and the configuration; None where the weights are a pickle."""
        if self._pickled:
            return None
        config, _ = self._read_config()
        headers = [read_header(self.folder / name) for name in self._weight_names if name != INDEX]
        shapes = {name: shape for header in headers for name, shape in header.float_shapes.items()}
        return Outline(shapes, width_in(config))

    def _read_config(self) -> tuple[dict[str, Any], list[str]]:
        path = self.folder / CONFIG
        if not path.is_file():
            names = ", ".join(sorted(p.name for p in self.folder.iterdir())[:10]) or "nothing"
            return {}, [f"{self.folder} is not a transformers checkpoint: it has no {CONFIG}; it holds {names}"]
        try:
            config = json.loads(path.read_text(encoding="utf-8"))
        except (ValueError, RecursionError) as error:
            return {}, [f"{path} is not valid JSON: {error}"]
        if not isinstance(config, dict):
            return {}, [f"{path} must hold a JSON object; it holds {type(config).__name__}"]
        return config, []

    def _check_weights(self) -> list[str]:
        if self._index_problem:
            return [self._index_problem]
        if self._pickled:
            out = self.folder / WEIGHTS
            return [] if self.spec.allow_pickle else [refusal(path, out) for path in self._pickled[:1]]
        if not self._weight_names:
            names = ", ".join(sorted(p.name for p in self.folder.iterdir() if p.is_file())[:10])
            return [f"{self.folder} has no weights: expected {WEIGHTS} (or {INDEX} and its parts); it holds {names or 'no files'}"]
        objections = []
        for name in self._weight_names:
            path = self.folder / name
            if name == INDEX:
                continue
            if not path.is_file():
                objections.append(f"{self.folder / INDEX} names the part {name}, which is not there. Copy or download it again")
                continue
            try:
                read_header(path)
            except NotSafetensorsError as error:
                objections.append(str(error))
        return objections

    def _mismatches(self, config: Mapping[str, Any]) -> list[str]:
        """What the tensors' shapes say otherwise than the configuration; loading makes the whole comparison."""
        shapes = self._shapes()
        objections = []
        width = next((config[key] for key in _WIDTH_KEYS if isinstance(config.get(key), int)), None)
        for name, shape in shapes.items():
            wanted = (config.get("vocab_size"), width)
            if _EMBEDDING.search(name) and len(shape) == 2 and None not in wanted and shape != wanted:
                says = f"it says vocabulary {wanted[0]} and width {wanted[1]}, but {name} is {list(shape)}"
                objections.append(f"{self.folder / CONFIG} does not match the weights: {says}")
                break
        depth_key = next((key for key in _DEPTH_KEYS if isinstance(config.get(key), int)), None)
        found = [match for name in shapes if (match := _LAYER.match(name))]
        if depth_key and len({match[1] for match in found}) == 1:
            depth = max(int(match[2]) for match in found) + 1
            if depth != config[depth_key]:
                says = f"{depth_key} is {config[depth_key]}, but they hold {depth} layers"
                objections.append(f"{self.folder / CONFIG} does not match the weights: {says}")
        return objections

    def _shapes(self) -> dict[str, tuple[int, ...]]:
        shapes: dict[str, tuple[int, ...]] = {}
        for name in self._weight_names:
            if name != INDEX:
                shapes |= read_header(self.folder / name).shapes
        return shapes

    @cached_property
    def _files(self) -> tuple[str, ...]:
        """Everything that is read."""
        return tuple(sorted({*self._weight_names, *assets_in(self.folder), *self._code}))

    @cached_property
    def _weight_names(self) -> tuple[str, ...]:
        """The weight files, safetensors before pickles; an index comes first, then the parts it names."""
        if (self.folder / WEIGHTS).is_file():
            return (WEIGHTS,)
        if (self.folder / INDEX).is_file():
            return (INDEX, *self._parts)
        return tuple(path.name for path in self._pickled)

    @cached_property
    def _parts(self) -> tuple[str, ...]:
        """Files that the index names; empty when it cannot be read, which `_index_problem` reports."""
        try:
            parts = set(json.loads((self.folder / INDEX).read_text(encoding="utf-8"))["weight_map"].values())
        except (ValueError, KeyError, AttributeError, TypeError, RecursionError):
            return ()
        return tuple(sorted(parts)) if all(isinstance(part, str) for part in parts) else ()

    @cached_property
    def _index_problem(self) -> str:
        if INDEX not in self._weight_names:
            return ""
        if not self._parts:
            return f"{self.folder / INDEX} is not an index of safetensors parts: it has no weight_map of names to files"
        bad = next((part for part in self._parts if Path(part).name != part), None)
        return f"{self.folder / INDEX} names a part outside its folder: {bad}" if bad else ""

    @cached_property
    def _pickled(self) -> tuple[Path, ...]:
        if (self.folder / WEIGHTS).is_file() or (self.folder / INDEX).is_file():
            return ()
        found = pickles_in(self.folder)
        return tuple([p for p in found if p.name.startswith("pytorch_model")] or found)

    @cached_property
    def _code(self) -> tuple[str, ...]:
        return tuple(sorted(p.name for p in self.folder.glob("*.py"))) if self.spec.allow_remote_code else ()

    # Brought into the store

    def fetch(self, out: Path, task: Task, notes: Sequence[Note] = ()) -> Outcome:
        """Copy the checkpoint to `out/model`, load it for the task, and find its inputs and outputs by running it."""
        if not task.auto_class:
            raise StepError(f"the task {task.task} cannot be served by a transformers checkpoint ({self.spec.source})")
        if objections := self.check():
            raise StepError("; ".join(objections))
        folder = out / "model"
        folder.mkdir(parents=True)
        assets = copy_assets(self.folder, folder)
        self._copy_weights(folder)
        for name in self._code:
            shutil.copyfile(self.folder / name, folder / name)
        loader = {"kind": "transformers", "auto_class": task.auto_class, "remote_code": bool(self._code)}
        draft = ModelArtifact(path=folder, format=Format.TORCH, entry=WEIGHTS, facts={"loader": loader})
        try:
            loaded = load_checkpoint(draft, loader)
        except StepError as error:  # named by the user's own folder, not by the copy
            raise StepError(str(error).replace(str(folder), str(self.folder))) from error
        module: Any = loaded.module
        config = module.config.to_dict()
        inputs, outputs = probe(module, task, _input_names(module, config), draft, _image_shape(config))
        if inputs[0].name == "input_ids" and not set(TOKENIZER) & set(assets):
            raise StepError(f"{self.folder} has no tokenizer: expected tokenizer.json beside {CONFIG}")
        facts = {"loader": loader, **_facts(config, module, task)}
        written = Written(format=Format.TORCH, entry=WEIGHTS, inputs=inputs, outputs=outputs, assets=assets, facts=facts)
        all_notes = (*notes, *self._allowed(), *_differences(read_header(folder / WEIGHTS), loaded, task))
        return Outcome(written=written, metrics={"parameters": float(facts["parameters"])}, notes=all_notes)

    def _copy_weights(self, folder: Path) -> None:
        if self._pickled:
            convert(self._pickled, folder / WEIGHTS)
        elif self._weight_names == (WEIGHTS,):
            shutil.copyfile(self.folder / WEIGHTS, folder / WEIGHTS)
        else:
            merge([self.folder / name for name in self._weight_names if name != INDEX], folder / WEIGHTS)

    def _allowed(self) -> list[Note]:
        notes = []
        if self._pickled:
            names = ", ".join(path.name for path in self._pickled)
            notes.append(Note(level=Level.WARNING, text=f"allow_pickle: {names} was read (tensors only) and kept as safetensors"))
        if self._code:
            notes.append(Note(level=Level.WARNING, text=f"allow_remote_code: the checkpoint's own {', '.join(self._code)} was run"))
        return notes


def _input_names(module: Any, config: Mapping[str, Any]) -> list[str]:
    """Parameters of `forward`; without token types where the model knows only one (RoBERTa takes them and ignores them)."""
    return [name for name in input_names(module) if name != "token_type_ids" or config.get("type_vocab_size", 0) > 1]


def _facts(config: Mapping[str, Any], module: Any, task: Task) -> dict[str, Any]:
    facts = {"model_type": config.get("model_type"), "parameters": sum(parameter.numel() for parameter in module.parameters())}
    labels = config.get("id2label")
    if labels and task.output == "logits":
        facts["labels"] = {str(number): str(label) for number, label in labels.items()}
    return facts


def _differences(header: Header, loaded: Loaded, task: Task) -> list[Note]:
    """What the module has otherwise than the file; loading has refused whatever matters."""
    notes = []
    other = sorted(header.float_dtypes - {"F32"})
    if other:
        notes.append(Note(text=f"the weights are stored as {', '.join(other)} and run in float32"))
    if loaded.unused:
        notes.append(Note(text=f"{len(loaded.unused)} tensors of the checkpoint are not used for {task.task}: {_some(loaded.unused)}"))
    if loaded.missing:
        notes.append(Note(text=f"the checkpoint has no {_some(loaded.missing)}; {task.task} does not read them"))
    return notes


def _some(names: Sequence[str], limit: int = 4) -> str:
    return ", ".join(names[:limit]) + (f" and {len(names) - limit} more" if len(names) > limit else "")


def _image_shape(config: Mapping[str, Any]) -> tuple[int, int, int] | None:
    """Channels, height and width of a vision model that says so."""
    size, channels = config.get("image_size"), config.get("num_channels", 3)
    if isinstance(size, int):
        return channels, size, size
    return (channels, size[0], size[1]) if isinstance(size, list | tuple) and len(size) == 2 else None
