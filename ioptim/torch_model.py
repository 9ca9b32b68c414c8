"""A sealed torch artifact as a module in memory, and how to run one by named arrays.

The artifact's `facts["loader"]` say how the module is built; the weights are always those of its safetensors entry:

    {"kind": "transformers", "auto_class": "AutoModel", "remote_code": false}
    {"kind": "factory", "factory": "module:function", "code": "code"}

An optional `dtype` ("bfloat16") in them is that of the module's parameters; float32 when left out. With `shapes` they name the file
that says which layers are narrower than that code or configuration builds them (`ioptim.torch_shapes`).
"""

from __future__ import annotations

import importlib
import inspect
import shutil
import sys
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ioptim import torch_shapes
from ioptim.core.artifact import Format, ModelArtifact, TensorSpec
from ioptim.errors import StepError, UnavailableError

if TYPE_CHECKING:
    import numpy as np
    import torch

CONFIG = "config.json"

_NO_WEIGHTS = ("position_ids", "inv_freq", "masked_bias")
"""Buffers that older checkpoints hold and that modules now compute themselves."""


def load_module(model: ModelArtifact, *, attention: str | None = "eager") -> torch.nn.Module:
    """Rebuild the module in evaluation mode on the CPU, every parameter from the artifact's weights.

    Args:
        attention: transformers' `attn_implementation`. `eager` spells attention out in plain operators, which exporters and
            fusions know; None is what a user of the library gets (`sdpa` where the model has it). A factory ignores it.

    Raises:
        StepError: the weights do not fit the module (names the keys), the factory failed, or a safetensors file is broken.
        UnavailableError: transformers or safetensors is not installed.
    """
    import torch

    loader = model.facts.get("loader")
    if model.format is not Format.TORCH or not isinstance(loader, Mapping):
        raise StepError(f"{model.path} holds a {model.format} model; a module needs a torch artifact with a `loader` fact")
    kinds = {"transformers": _from_transformers, "factory": _from_factory}
    load = kinds.get(loader.get("kind", ""))
    if load is None:
        raise StepError(f"{model.path} has an unknown loader: {loader.get('kind')!r}, not {' or '.join(kinds)}")
    module = load(model, loader, attention)
    dtype: torch.dtype = getattr(torch, loader.get("dtype", "float32"))
    return module.to(dtype).eval()


def save_module(
    module: torch.nn.Module, model: ModelArtifact, folder: Path, changed: torch_shapes.Numbers | None = None
) -> tuple[dict[str, Any], tuple[str, ...]]:
    """Write a module that `load_module(model)` gave, however it was changed, so that `load_module` gives it back from `folder`.

    Args:
        changed: numbers that differ from those of the module as it was loaded (`torch_shapes.difference`); what was noted of `model`
            stays noted. None keeps the shapes of `model`.

    Returns:
        The artifact's `loader` and the assets written; the weights are in `model.entry`.
    """
    loader, assets = dict(model.facts["loader"]), []
    if loader["kind"] == "transformers":
        save_checkpoint(module, folder, model.entry)
        assets.append(CONFIG)
        for name in model.files if loader.get("remote_code") else ():
            if name.endswith(".py"):
                shutil.copyfile(model.path / name, folder / name)
                assets.append(name)
    else:
        from safetensors.torch import save_model

        code = loader.get("code", "code")
        if (model.path / code).is_dir():
            shutil.copytree(model.path / code, folder / code)
        save_model(module, str(folder / model.entry), {"format": "pt"})
    known = torch_shapes.read(model.path / loader["shapes"]) if "shapes" in loader else {}
    if known or changed:
        paths = {*known, *(changed or {})}
        torch_shapes.write({path: known.get(path, {}) | (changed or {}).get(path, {}) for path in paths}, folder / torch_shapes.FILE)
        loader["shapes"] = torch_shapes.FILE
        assets.append(torch_shapes.FILE)
    return loader, tuple(assets)


def input_names(module: torch.nn.Module) -> list[str]:
    """Names of the parameters that `forward` takes, in its order; `*args` and `**kwargs` are not among them."""
    named = (inspect.Parameter.POSITIONAL_OR_KEYWORD, inspect.Parameter.KEYWORD_ONLY)
    return [p.name for p in inspect.signature(module.forward).parameters.values() if p.kind in named]


def call(module: torch.nn.Module, feeds: Mapping[str, np.ndarray], outputs: Sequence[TensorSpec] = ()) -> dict[str, torch.Tensor]:
    """One forward pass without gradients, on the module's device; the results stay there.

    Feeds go in by parameter name, floating ones in the module's dtype. See `named_outputs` for the names of the results.

    Raises:
        StepError: the module failed on these feeds (says their shapes), or does not return `outputs`.
    """
    import torch

    with torch.inference_mode():
        tensors = to_tensors(module, feeds)
        try:
            result = module(**tensors)
        except (RuntimeError, TypeError, ValueError, IndexError, KeyError, AttributeError) as error:
            shapes = ", ".join(f"{name} {list(array.shape)} {array.dtype}" for name, array in feeds.items())
            raise StepError(f"{type(module).__name__} failed on {shapes}: {_one_line(error)}") from error
    return named_outputs(result, outputs)


def to_tensors(module: torch.nn.Module, feeds: Mapping[str, np.ndarray]) -> dict[str, torch.Tensor]:
    """Host arrays as tensors where the module's parameters are, floating ones in their dtype."""
    import numpy as np
    import torch

    parameter = next((p for p in module.parameters() if p.is_floating_point()), torch.empty(0))
    tensors = {}
    for name, array in feeds.items():
        tensor = torch.from_numpy(np.require(array, requirements=["C", "W"]))
        tensors[name] = tensor.to(parameter.device, parameter.dtype if tensor.is_floating_point() else None)
    return tensors


def named_outputs(result: Any, outputs: Sequence[TensorSpec] = ()) -> dict[str, torch.Tensor]:
    """What a forward pass returned, by name.

    A mapping (transformers' ModelOutput) is read by key, a tensor or a tuple by order; anything in it that is no tensor is
    left out. Without `outputs` all tensors are returned, those without a name as `output`, or `output_0`, `output_1`, ...

    Raises:
        StepError: one of `outputs` is not there.
    """
    import torch

    wanted = [spec.name for spec in outputs]
    if isinstance(result, Mapping):
        found = {str(key): value for key, value in result.items() if isinstance(value, torch.Tensor)}
    else:
        values = [result] if isinstance(result, torch.Tensor) else list(result) if isinstance(result, list | tuple) else []
        tensors = [value for value in values if isinstance(value, torch.Tensor)]
        names = wanted or (["output"] if len(tensors) == 1 else [f"output_{i}" for i in range(len(tensors))])
        found = dict(zip(names, tensors, strict=False))
    missing = [name for name in wanted if name not in found]
    if missing or not found:
        asked = f"the output {', '.join(missing)}" if missing else "any tensor"
        raise StepError(f"the module does not return {asked}; it returns {', '.join(found) or type(result).__name__}")
    return {name: found[name] for name in wanted} if wanted else found


# transformers checkpoints


@dataclass(frozen=True)
class Loaded:
    """A transformers module, and the names by which it and its file differ without harm.

    `unused` are tensors of a head that the module does not have, `missing` those of a pooler that the file lacks and nobody reads.
    """

    module: torch.nn.Module
    unused: tuple[str, ...]
    missing: tuple[str, ...]


def load_checkpoint(model: ModelArtifact, loader: Mapping[str, Any], attention: str | None = "eager") -> Loaded:
    """As `load_module`, for the loader `transformers` alone; also says what of the file was not used."""
    try:
        import transformers
    except ImportError as error:
        raise UnavailableError(f"{model.path} is a transformers checkpoint, which needs: pip install 'ioptim[torch]'") from error
    options: dict[str, Any] = {"attn_implementation": attention} if attention else {}
    try:
        module, info = getattr(transformers, loader["auto_class"]).from_pretrained(
            model.path,
            local_files_only=True,
            use_safetensors=True,
            trust_remote_code=bool(loader.get("remote_code", False)),
            dtype=loader.get("dtype", "float32"),
            output_loading_info=True,
            ignore_mismatched_sizes=True,  # not ignored: read from the info, which names them all
            **options,
        )
    except _broken_weights() as error:
        raise StepError(f"{model.model_path} cannot be read: {_one_line(error)}. Copy or download it again") from error
    except (OSError, ValueError, RuntimeError, KeyError, TypeError, ImportError, AttributeError) as error:
        raise StepError(f"{loader['auto_class']} cannot load {model.path}: {_one_line(error)}") from error
    if "shapes" in loader:
        torch_shapes.reshape(module, torch_shapes.read(model.path / loader["shapes"]), model.model_path)
        info = {**info, "mismatched_keys": ()}  # reshaped to what the file has
    _require_match(model, loader, module, info)
    return Loaded(module.eval(), tuple(sorted(info["unexpected_keys"])), tuple(sorted(info["missing_keys"])))


def save_checkpoint(module: Any, folder: Path, entry: str) -> None:
    """Write a transformers module's weights (`entry`) and its config.json into a folder, and nothing else that the library writes."""
    import tempfile

    with tempfile.TemporaryDirectory(dir=folder.parent) as aside:
        module.save_pretrained(aside)
        for name in ("config.json", entry):
            Path(aside, name).replace(folder / name)


def _from_transformers(model: ModelArtifact, loader: Mapping[str, Any], attention: str | None) -> torch.nn.Module:
    return load_checkpoint(model, loader, attention).module


def _require_match(model: ModelArtifact, loader: Mapping[str, Any], module: Any, info: Mapping[str, Any]) -> None:
    """Every parameter must come from the file, and what the module knows by name must be used.

    Allowed are tensors of a head that this module does not have, and a pooler that is not there and whose output nobody reads.
    """
    headless = loader["auto_class"] == "AutoModel" and all(spec.name != "pooler_output" for spec in model.outputs)
    different = [f"{name} {list(found)} instead of {list(wanted)}" for name, found, wanted in info["mismatched_keys"]]
    missing = [name for name in info["missing_keys"] if not (headless and "pooler." in name)]
    unexpected = [name for name in info["unexpected_keys"] if _belongs(module, name)]
    if different or missing or unexpected:
        what = f"{CONFIG} and {model.entry} do not match for {type(module).__name__}"
        keys = _keys(missing, unexpected, different)
        raise StepError(f"{model.path}: {what}: {keys}. Use the two files of one checkpoint, trained for this task")


def _belongs(module: Any, name: str) -> bool:
    """Whether an unused tensor is of a part that the module has, such as a layer too many: then the configuration is wrong."""
    name = name.removeprefix(f"{module.base_model_prefix}.")
    base = module.base_model if module.base_model_prefix else module
    parts = {child for child, _ in (*module.named_children(), *base.named_children())}
    return name.split(".")[0] in parts and not name.endswith(_NO_WEIGHTS)


# A user's own module


def build(code: Path, factory: str) -> torch.nn.Module:
    """The module that `module:function` of the folder `code` makes, with the weights it makes it with.

    Raises:
        StepError: the factory failed, or made something else than a module.
    """
    import torch

    module_name, _, function_name = factory.partition(":")
    with _importable(code):
        try:
            module = getattr(importlib.import_module(module_name), function_name)()
        # User's code: whatever it raises is the answer to being called.
        except Exception as error:
            raise StepError(f"the factory {factory} failed: {type(error).__name__}: {_one_line(error)}") from error
    if not isinstance(module, torch.nn.Module):
        raise StepError(f"the factory {factory} must return a torch.nn.Module; it returned {type(module).__name__}")
    return module


def _from_factory(model: ModelArtifact, loader: Mapping[str, Any], _attention: str | None) -> torch.nn.Module:
    from safetensors.torch import load_model

    module = build(model.path / loader.get("code", "code"), str(loader["factory"]))
    try:
        if "shapes" in loader:
            torch_shapes.reshape(module, torch_shapes.read(model.path / loader["shapes"]), model.model_path)
        missing, unexpected = load_model(module, model.model_path, strict=False)
    except _broken_weights() as error:
        raise StepError(f"{model.model_path} cannot be read: {_one_line(error)}. Copy or download it again") from error
    except RuntimeError as error:
        raise StepError(f"{model.entry} does not fit the module of {loader['factory']}: {_one_line(error)}") from error
    if missing or unexpected:
        raise StepError(f"{model.entry} does not fit the module of {loader['factory']}: {_keys(missing, unexpected)}")
    return module


@contextmanager
def _importable(code: Path) -> Iterator[None]:
    """Put an artifact's code first on the path, and drop modules of the same names that came from elsewhere.

    No bytecode is written: a sealed directory must not change.
    """
    own = {path.stem for path in code.iterdir()} - set(sys.stdlib_module_names) if code.is_dir() else set()
    for name in [name for name in sys.modules if name.partition(".")[0] in own]:
        del sys.modules[name]
    before = sys.dont_write_bytecode
    sys.dont_write_bytecode = True
    sys.path.insert(0, str(code))
    importlib.invalidate_caches()
    try:
        yield
    finally:
        sys.path.remove(str(code))
        sys.dont_write_bytecode = before


def _broken_weights() -> type[Exception]:
    from safetensors import SafetensorError

    return SafetensorError


def _keys(missing: Iterable[str], unexpected: Iterable[str], different: Iterable[str] = (), limit: int = 4) -> str:
    """What is wrong with which tensors, a few of each kind by name."""
    kinds = {"the file lacks": missing, "the module has no place for": unexpected, "other shapes": different}
    texts = []
    for kind, names in ((kind, sorted(names)) for kind, names in kinds.items()):
        more = f" and {len(names) - limit} more" if len(names) > limit else ""
        texts += [f"{kind} {', '.join(names[:limit])}{more}"] if names else []
    return "; ".join(texts)


def _one_line(error: BaseException, limit: int = 600) -> str:
    return " ".join(str(error).split())[:limit]
