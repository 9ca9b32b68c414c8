"""Whether a rewritten ONNX graph still computes the same: both on random inputs, side by side."""

from __future__ import annotations

import itertools
import zlib
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

from ioptim.core.step import Level, Note
from ioptim.errors import StepError
from ioptim.runtimes._onnx_session import run, spec_of

if TYPE_CHECKING:
    import numpy as np

SIZES = ((2, 19), (1, 13))
"""Batch and tokens of the random inputs: no numbers of classes."""

FUSION_TOLERANCE = 1e-3
"""Largest difference of a fused model's outputs from the unfused ones, as a fraction of their largest value."""

HALF_TOLERANCE = 1e-2
"""The same where weights are multiplied in 16 bits, of which one rounding is 1e-3 in float16. A wrong mask makes 0.1."""

PADDING_TOLERANCE = 0.02
"""The same for texts with padding that is not computed and without any. Measured 2e-7 in int8 and 3e-7 in float; another order of sums may
round one activation elsewhere, which is a 255th of its range. A wrong place makes 0.2."""
PADDING_DRAWS = 3
"""Of random inputs for a dynamic scheme, of which one must agree at each size. Where tokens are all 0 or 1 the one activation that is
rounded elsewhere is that of half the tokens (0.036 in a student of four layers, nothing in its other draws). In texts of full length, which
are what is compared then, a wrong place does not depend on what is drawn."""


def fused_difference(plain: Any, fused: Any, mask: str | None) -> tuple[dict[str, float], list[Note]]:
    """Largest difference of the fused session's outputs from the plain one's, relative to the largest value.

    `mask` names the input that says which tokens count, where the fused session computes only those.

    Raises:
        StepError: the fused session fails on what the plain one takes.
    """
    worst = 0.0
    for sizes, full in itertools.product(SIZES, (False, True) if mask else (False,)):
        feeds = {value.name: random_feed(value, sizes, full=full and value.name == mask) for value in plain.get_inputs()}
        try:
            wanted = _outputs(plain, feeds)
        except StepError as error:
            text = f"the fused model was not compared with the unfused, which does not take random inputs: {error}"
            return {}, [Note(text=text, level=Level.WARNING)]
        worst = _larger(worst, wanted, _outputs(fused, feeds), feeds.get(mask or ""))
    return {"fusion_max_difference": worst}, []


def require_near(difference: float, *, half: bool) -> None:
    """Raise a `StepError` where fusions made this difference, which is more than rounding makes, in 16 bits where it is `half`."""
    tolerance = HALF_TOLERANCE if half else FUSION_TOLERANCE
    if not difference <= tolerance:
        raise StepError(
            f"the fused model's outputs differ from the unfused by {difference:.2g} of their largest value, at most"
            f" {tolerance} is accepted; set `fusions: false`"
        )


def padding_difference(plain: Any, packed: Any, mask: str, *, dynamic: bool) -> float:
    """Largest difference between texts without padding (`plain`) and with padding after them (`packed`), relative to the largest value.

    The texts of a batch are of one length, so that a dynamic scheme finds the same ranges in both. Where none is `dynamic` both also get
    the same batches, with holes in the mask; in dynamic int8 they would differ, for padding that is computed widens the ranges.

    Raises:
        StepError: it is more than `PADDING_TOLERANCE`: without padding the graph computes something else, or padding is not without effect
            in this model; or the model does not take random inputs.
    """
    import numpy as np

    def apart(batch: int, tokens: int, draw: int) -> float:
        alone = {value.name: random_feed(value, (batch, tokens), draw, full=value.name == mask) for value in plain.get_inputs()}
        padded = {name: np.pad(array, ((0, 0), (0, tokens))) for name, array in alone.items()}
        wanted, given = _outputs(plain, alone), _outputs(packed, padded)
        found = _larger(0.0, wanted, [b[tuple(map(slice, a.shape))] for a, b in zip(wanted, given, strict=True)])
        if not dynamic:
            holes = {value.name: random_feed(value, (batch, tokens), draw) for value in plain.get_inputs()}
            found = _larger(found, _outputs(plain, holes), _outputs(packed, holes), holes[mask])
        return found

    worst = 0.0
    for sizes in SIZES:
        for draw in range(PADDING_DRAWS if dynamic else 1):
            found = apart(*sizes, draw)
            if found <= PADDING_TOLERANCE:
                break
        worst = float(np.maximum(worst, found))
    if not worst <= PADDING_TOLERANCE:
        raise StepError(f"outputs differ by {worst:.2g} of their largest value, at most {PADDING_TOLERANCE} is accepted")
    return worst


def random_feed(value: Any, sizes: tuple[int, int], draw: int = 0, *, full: bool = False) -> np.ndarray:
    """What any transformer takes: zeros and ones for integers, the first column ones, so that no mask is empty; ones where it is `full`.

    Every input has its own draws, and masks have holes: one that is taken for a number of tokens shows.
    """
    import numpy as np

    drawn = np.random.default_rng((zlib.crc32(value.name.encode()), draw))
    spec = spec_of(value)
    shape = [axis if isinstance(axis, int) else sizes[0] if i == 0 else sizes[1] for i, axis in enumerate(spec.shape)]
    if spec.dtype.startswith("float"):
        return drawn.standard_normal(shape).astype(spec.dtype)
    values = np.ones(shape, np.int64) if full else drawn.integers(0, 2, shape)
    values[..., :1] = 1
    return values.astype(spec.dtype)


def _outputs(session: Any, feeds: Mapping[str, np.ndarray]) -> list[np.ndarray]:
    names = [value.name for value in session.get_outputs()]
    return run(session, names, {value.name: feeds[value.name] for value in session.get_inputs()})


def _larger(worst: float, wanted: Sequence[np.ndarray], given: Sequence[np.ndarray], mask: np.ndarray | None = None) -> float:
    """`worst`, or how far these are apart relative to the largest value where that is more; a NaN stays one. Of outputs by token, those of
    the tokens that count by `mask`."""
    import numpy as np

    for a, b in zip(wanted, given, strict=True):
        if mask is not None and a.shape[:2] == mask.shape:
            a, b = a[mask != 0], b[mask != 0]
        worst = float(np.maximum(worst, np.abs(a - b).max() / max(np.abs(a).max(), 1e-6)))
    return worst
