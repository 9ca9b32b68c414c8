"""Weights stored as a pickle: refused unless the recipe allows them, and then only tensors are read."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from ioptim.errors import StepError

SUFFIXES = (".bin", ".pt", ".pth", ".pkl", ".pickle", ".ckpt")


def pickles_in(folder: Path) -> list[Path]:
    """Files of a folder that look like pickled weights."""
    return sorted(p for p in folder.iterdir() if p.is_file() and p.suffix in SUFFIXES and p.name != "training_args.bin")


def refusal(path: Path, out: Path) -> str:
    """Why a pickle is not loaded, and the command that turns it into safetensors."""
    code = (
        "import torch, safetensors.torch as s; "
        f"t = torch.load('{path}', map_location='cpu', weights_only=True); "
        f"s.save_file({{k: v.contiguous().clone() for k, v in t.items()}}, '{out}', {{'format': 'pt'}})"
    )
    return (
        f"{path} is a pickle, which can run any code when it is loaded. Convert it, with tensors only: python -c \"{code}\""
        " or accept it with `allow_pickle: true`"
    )


def convert(paths: Sequence[Path], out: Path) -> None:
    """Write the tensors of pickled state dicts as one safetensors file.

    torch's `weights_only` reader is used even here: what it refuses holds more than tensors, and no recipe needs that.

    Raises:
        StepError: not a state dict, or more than tensors in it.
    """
    import pickle

    import torch
    from safetensors.torch import save_file

    tensors: dict[str, torch.Tensor] = {}
    for path in paths:
        try:
            state = torch.load(path, map_location="cpu", weights_only=True)
        except (pickle.UnpicklingError, RuntimeError, EOFError, ValueError) as error:
            text = str(error).partition("\n")[0]
            raise StepError(f"{path} cannot be read as a state dict of tensors: {text}. Save `model.state_dict()` instead") from error
        state = state.get("state_dict", state) if isinstance(state, dict) else state
        if not isinstance(state, dict) or not all(isinstance(v, torch.Tensor) for v in state.values()):
            raise StepError(f"{path} is not a state dict: it holds {type(state).__name__}. Save `model.state_dict()` instead")
        tensors.update(state)
    # A clone each: tensors that share storage are refused by the format.
    save_file({name: tensor.detach().contiguous().clone() for name, tensor in tensors.items()}, out, {"format": "pt"})
