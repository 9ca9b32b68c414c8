"""Fewer channels of convolutions and features of linear layers, in any torch module: which belong together, which go, the cut.

What must lose the same channels together (both ends of a residual, the normalization between) is found by Torch-Pruning's dependency
graph (Fang et al., DepGraph, arXiv:2301.12900). Importance, choice and the check of the result are ours.
"""

from __future__ import annotations

import copy
import math
import warnings
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, Literal

from pydantic import Field

from ioptim.core.base import Frozen
from ioptim.core.registry import did_you_mean
from ioptim.errors import StepError
from ioptim.steps.prune.importance import Importance, Rows, gated, measure, reduced

if TYPE_CHECKING:
    import torch

RECALIBRATED = 64
"""Rows of a batch by which normalizations are measured anew."""
TOLERANCE = 1e-4
"""Of an output after a cut, against the same module with the channels silenced, as a fraction of its largest value."""


class Channels(Frozen):
    """How many channels go, and where."""

    pruning_ratio: float | dict[str, float] = Field(
        description="share of the channels to remove, or shares by name of a module and all in it (`{block1: 0.5}`; the rest stays whole)"
    )
    scope: Literal["layer", "global"] = Field(
        "layer",
        description="the share is of each layer, or of all channels together: first go those that matter least for what they cost"
        " (`taylor`) or least in their layer",
    )
    round_to: int | None = Field(
        None, ge=1, description="channels kept are a multiple of this; what the target's vectors hold when left out"
    )
    exclude: tuple[str, ...] = Field((), description="names of modules that stay as they are, with all in them")
    recalibrate: bool = Field(
        True, description="measure means and variances of batch normalizations anew on the training rows; nothing else is adapted"
    )

    def ratio_of(self, layer: str) -> float:
        """The share for the layer of this name: of the longest name given that it is, or is in."""
        if not isinstance(self.pruning_ratio, dict):
            return self.pruning_ratio
        fitting = [name for name in self.pruning_ratio if _within(layer, name)]
        return self.pruning_ratio[max(fitting, key=len)] if fitting else 0.0

    def wrong(self) -> list[str]:
        """Shares that are none."""
        shares = self.pruning_ratio if isinstance(self.pruning_ratio, dict) else {"": self.pruning_ratio}
        found = [f"{f' of {name}' if name else ''} is {share:g}" for name, share in shares.items() if not 0 < share < 1]
        if self.scope == "global" and isinstance(self.pruning_ratio, dict):
            return ["shares by name are of each layer; with `scope: global` give one number"]
        return [f"pruning_ratio{text}; a share of channels lies between 0 and 1, and 1 would leave none" for text in found]


def vector_width(flags: Sequence[str], gpu: bool) -> int:
    """Channels that one vector instruction of the target works on at once, and so a remainder costs as much as a whole.

    AVX-512 adds 16 int32 sums (or floats) at once and ONNX Runtime and oneDNN block channels by 16; AVX2 by 8, NEON by 8. Tensor cores
    want multiples of 16 in int8.
    """
    return 16 if gpu or any(flag.startswith("avx512") for flag in flags) else 8


@dataclass(frozen=True)
class Group:
    """Layers that lose the same channels together."""

    name: str
    """The first of `layers`."""
    layers: tuple[str, ...]
    """Convolutions and linear layers that make the channels."""
    width: int
    parts: int
    """Equal runs of channels that must keep as many each: groups of a grouped convolution or a group normalization."""
    normalized: bool
    """Whether a normalization over channels is among them: without some, what stays changes as well."""
    readers: Mapping[str, tuple[Sequence[int], Sequence[int]]] = field(repr=False)
    """Layers that read the channels: places of their inputs, and for each the channel it comes from."""
    root: Any = field(repr=False)


class Graph:
    """A module, and what in it belongs together.

    Raises:
        StepError: it cannot be traced (says which module), or a name of `exclude` is none of its modules.
    """

    def __init__(self, module: Any, trial: Mapping[str, torch.Tensor], wanted: Channels) -> None:
        self.module, self.trial = module, trial
        self.modules = dict(module.named_modules())
        self.names = {id(child): name for name, child in self.modules.items()}
        self._require_known([*wanted.exclude, *(wanted.pruning_ratio if isinstance(wanted.pruning_ratio, dict) else ())])
        module.requires_grad_(True)
        self.graph, ends = self._traced()
        kept = [child for name, child in self.modules.items() if any(_within(name, other) for other in wanted.exclude)]
        self.place = {name: place for place, name in enumerate(self.modules)}
        self.groups = tuple(sorted(self._groups(kept, ends), key=lambda group: self.place[group.name]))

    def _require_known(self, names: Sequence[str]) -> None:
        for name in names:
            if name not in self.modules:
                hint = did_you_mean(name, self.modules) or "."
                raise StepError(f"channels name {name!r}, which is no module of {type(self.module).__name__}{hint}")

    def _traced(self) -> tuple[Any, set[Any]]:
        """The dependency graph, and what made the module's outputs."""
        import torch
        import torch_pruning

        ends: set[Any] = set()

        def forward(module: Any, feeds: Mapping[str, torch.Tensor]) -> list[torch.Tensor]:
            found = _tensors(module(**feeds))
            ends.update(value.grad_fn for value in found)
            return [value for value in found if value.grad_fn is not None]

        with torch.enable_grad(), _running(self.module) as running, _breaks(self.module) as broken, warnings.catch_warnings():
            warnings.simplefilter("ignore")  # of operators that it takes for elementwise; the outputs are checked
            try:
                graph = torch_pruning.DependencyGraph().build_dependency(self.module, dict(self.trial), forward, verbose=False)
            except (RuntimeError, TypeError, ValueError, IndexError, KeyError, AttributeError, NotImplementedError) as error:
                failed = f"{self._called(running[-1] if running else '')} failed: {_one_line(error)}"
                raise StepError(f"the graph of {type(self.module).__name__} cannot be traced: {failed}") from error
        known = {id(one) for one in graph.module2node}
        lost = [name for name, child in self.modules.items() if _is_layer(child) and name in broken.called and id(child) not in known]
        if lost:
            text = "hands on a result without a gradient (detach, numpy or no_grad in its forward)"
            raise StepError(
                f"the graph of {type(self.module).__name__} cannot be traced: {self._called(broken.first or lost[0])} {text},"
                f" so {', '.join(lost[:4])} cannot be pruned"
            )
        return graph, ends

    def _called(self, name: str) -> str:
        return f"{name or 'the module itself'} ({type(self.modules[name]).__name__})"

    def _groups(self, kept: Sequence[Any], ends: set[Any]) -> Iterator[Group]:
        """Every group but those whose channels are the outputs, for instance the classes."""
        import torch

        roots = (torch.nn.modules.conv._ConvNd, torch.nn.Linear)
        for items in self.graph.get_all_groups(ignored_layers=list(kept), root_module_types=roots):
            made = [item for item in items if self.graph.is_out_channel_pruning_fn(item.dep.handler)]
            if any(item.dep.target.grad_fn in ends for item in made):
                continue
            targets = [item.dep.target.module for item in made]
            names = sorted((self.names[id(one)] for one in targets if _is_layer(one)), key=self.place.__getitem__)
            width = len(items[0].idxs)
            yield Group(
                name=names[0],
                layers=tuple(names),
                width=width,
                parts=math.lcm(1, *(_parts(item.dep.target.module) for item in items)),
                normalized=any(isinstance(one, torch.nn.LayerNorm | torch.nn.GroupNorm) for one in targets),
                readers={
                    self.names[id(item.dep.target.module)]: (item.idxs, item.root_idxs)
                    for item in items
                    if _is_layer(item.dep.target.module) and item not in made
                },
                root=targets[0],
            )

    def values(self, kind: Importance, rows: Rows) -> dict[str, torch.Tensor]:
        """Importance of every channel, by group. (width,) each. `magnitude`: L2 norm of all weights of the group that go with it."""
        import torch
        import torch_pruning

        if kind is Importance.MAGNITUDE:
            score = torch_pruning.importance.GroupMagnitudeImportance(p=2, normalizer=None)
            return {group.name: score(self._items(group, range(group.width))) for group in self.groups}
        readers = {name: self.modules[name] for group in self.groups for name in group.readers}
        measured = measure(kind, self.module, readers, rows)
        found = {}
        for group in self.groups:
            samples = torch.zeros(len(rows.feeds) if kind is Importance.TAYLOR else 1, group.width)
            for name, (places, channels) in group.readers.items():
                samples.index_add_(1, torch.tensor(channels), measured[name][:, list(places)])
            found[group.name] = reduced(kind, samples)
        return found

    def costs(self, multiply_adds: Mapping[str, float]) -> dict[str, float]:
        """Multiply-adds that go with one channel, by group, from those of each layer: where it is made, and its part where it is read."""
        found = {}
        for group in self.groups:
            read = (multiply_adds[name] * len(places) / self._inputs(name) for name, (places, _) in group.readers.items())
            found[group.name] = (sum(multiply_adds[name] for name in group.layers) + sum(read)) / group.width
        return found

    def _inputs(self, name: str) -> int:
        layer = self.modules[name]
        return int(getattr(layer, "in_channels", None) or layer.in_features)

    def recalibrate(self, batches: Sequence[Mapping[str, torch.Tensor]]) -> tuple[int, int]:
        """Measure the means and variances of every batch normalization anew: of how many, on how many rows. Nothing else changes.

        What a normalization is fed with has changed with the channels before it, so that its statistics are of another model.
        """
        import torch

        norms = [child for child in self.modules.values() if isinstance(child, torch.nn.modules.batchnorm._BatchNorm)]
        norms = [norm for norm in norms if norm.track_running_stats]
        chunks = list(joined(batches)) if norms else []
        if not chunks:
            return 0, 0
        kept = [norm.momentum for norm in norms]
        for norm in norms:
            norm.reset_running_stats()
            norm.momentum = None  # the mean over all batches, each as good as the others
            norm.train()
        with torch.no_grad():
            for feeds in chunks:
                self.module(**feeds)
        for norm, momentum in zip(norms, kept, strict=True):
            norm.momentum = momentum
            norm.eval()
        return len(norms), sum(len(next(iter(feeds.values()))) for feeds in chunks)

    def _items(self, group: Group, channels: Sequence[int]) -> Any:
        return self.graph.get_pruning_group(group.root, self.graph.get_pruner_of_module(group.root).prune_out_channels, list(channels))

    def cut(self, removed: Mapping[str, Sequence[int]]) -> None:
        """Take the channels out, group by group, and check after each that the module answers as if they had been silent.

        Raises:
            StepError: it does not: its code holds a width of its own, or mixes channels in a way that the graph does not show.
        """
        import torch

        whole = copy.deepcopy(self.module)
        whole_modules = dict(whole.named_modules())
        closed: dict[str, list[int]] = {}
        comparable = True
        for group in self.groups:
            if not (gone := removed.get(group.name)):
                continue
            comparable &= not group.normalized
            for name, (places, channels) in group.readers.items():
                out = set(gone)
                closed.setdefault(name, []).extend(place for place, channel in zip(places, channels, strict=True) if channel in out)
            self._items(group, gone).prune()
            with torch.no_grad(), gated({name: whole_modules[name] for name in closed}, closed):
                wanted = _tensors(whole(**self.trial))
            self._require_same(group, wanted, comparable)

    def _require_same(self, group: Group, wanted: Sequence[torch.Tensor], comparable: bool) -> None:
        import torch

        without, advice = f"without channels of {group.name}", f"add {group.name} to `channels.exclude`"
        with torch.no_grad(), _running(self.module) as running:
            try:
                given = _tensors(self.module(**self.trial))
            except (RuntimeError, ValueError, IndexError, TypeError) as error:
                failed = f"{self._called(running[-1] if running else '')} fails: {_one_line(error)}"
                raise StepError(f"{without}, {failed}. It has a width that the graph does not show; {advice}") from error
        for old, new in zip(wanted, given, strict=True):
            if old.shape != new.shape:
                raise StepError(f"{without}, an output has the shape {list(new.shape)}, not {list(old.shape)}; {advice}")
            difference = float((old - new).abs().max() / old.abs().max().clamp_min(1e-12))
            if comparable and not difference <= TOLERANCE:
                text = f"an output differs by {difference:.2g} of its largest value from one with them silent"
                raise StepError(f"{without}, {text}: something mixes channels unseen by the graph (attention, a view); {advice}")


def chosen(
    groups: Sequence[Group], values: Mapping[str, torch.Tensor], wanted: Channels, costs: Mapping[str, float], comparable: bool
) -> dict[str, list[int]]:
    """Channels to remove, by group; the same number from each of its parts.

    Args:
        costs: multiply-adds of a row that go with one channel, by group.
        comparable: whether values of two groups are in one unit. Then, with `scope: global`, the channels go first that matter least
            for what they cost; else those that matter least beside their group's mean.

    Raises:
        StepError: a layer would be left without channels, or none would go anywhere.
    """
    import torch

    shares = _shares(groups, values, wanted, costs, comparable)
    found = {}
    for group in groups:
        kept = _kept(group, shares[group.name], wanted)
        if kept == group.width:
            continue
        each, size = kept // group.parts, group.width // group.parts
        strength = values[group.name].view(group.parts, size).sum(0)
        gone = strength.topk(size - each, largest=False).indices.sort().values
        found[group.name] = (torch.arange(group.parts)[:, None] * size + gone).flatten().tolist()
    if not found:
        text = ", ".join(f"{group.name} {group.width}" for group in groups[:6]) or "none that is not an output"
        raise StepError(
            f"channels: nothing would be removed with pruning_ratio {wanted.pruning_ratio} and round_to {wanted.round_to}; layers that can"
            f" lose channels, with their widths: {text}. Raise the ratio or lower round_to"
        )
    return found


def _shares(
    groups: Sequence[Group], values: Mapping[str, torch.Tensor], wanted: Channels, costs: Mapping[str, float], comparable: bool
) -> dict[str, float]:
    """The share to remove from each group."""
    import torch

    if wanted.scope == "layer":
        return {group.name: max(wanted.ratio_of(name) for name in group.layers) for group in groups}
    units = {group.name: costs[group.name] if comparable else float(values[group.name].mean()) for group in groups}
    scaled = {name: values[name] / max(unit, 1e-12) for name, unit in units.items()}
    together = torch.cat(list(scaled.values()))
    count = round(wanted.ratio_of("") * len(together))
    limit = together.kthvalue(count).values if count else -torch.inf
    return {name: float((value <= limit).float().mean()) for name, value in scaled.items()}


def _kept(group: Group, share: float, wanted: Channels) -> int:
    """Channels that stay: the multiple next to what was asked for, at least one of it, at most all; all where nothing was asked to go."""
    if not share:
        return group.width
    asked = (1 - share) * group.width
    if asked < 0.5 and wanted.scope == "layer":
        raise StepError(
            f"channels: pruning_ratio {share:g} leaves {group.name} {asked:.2g} of its {group.width} channels, which is none;"
            f" lower the ratio, or add {group.name} to `channels.exclude`"
        )
    multiple = math.lcm(wanted.round_to or 1, group.parts)
    return min(group.width, max(1, math.floor(asked / multiple + 0.5)) * multiple)


def joined(batches: Sequence[Mapping[str, torch.Tensor]]) -> Iterator[dict[str, torch.Tensor]]:
    """Rows of one size as nearly equal batches of at most `RECALIBRATED`: a variance is of a batch, and the mean is over batches. A row
    that is alone of its size has none."""
    import torch

    alike: dict[Any, list[Mapping[str, torch.Tensor]]] = {}
    for row in batches:
        alike.setdefault(tuple((name, value.shape) for name, value in row.items()), []).append(row)
    for rows in alike.values():
        count = math.ceil(len(rows) / RECALIBRATED)
        for part in (rows[i::count] for i in range(count)):
            if len(part) > 1:
                yield {name: torch.cat([row[name] for row in part]) for name in part[0]}


def _is_layer(child: Any) -> bool:
    import torch

    return isinstance(child, torch.nn.modules.conv._ConvNd | torch.nn.Linear)


def _parts(child: Any) -> int:
    """Equal runs that this module divides its channels into. A depthwise convolution follows channel by channel."""
    import torch

    if isinstance(child, torch.nn.GroupNorm):
        return child.num_groups
    if isinstance(child, torch.nn.modules.conv._ConvNd) and child.groups > 1:
        return 1 if child.groups == child.out_channels == child.in_channels else child.groups
    return 1


def _tensors(result: Any) -> list[torch.Tensor]:
    """Everything floating that a forward pass returned, in order."""
    import torch

    if isinstance(result, torch.Tensor):
        return [result] if result.is_floating_point() else []
    parts = result.values() if isinstance(result, Mapping) else result if isinstance(result, list | tuple) else ()
    return [value for part in parts for value in _tensors(part)]


@contextmanager
def _running(module: Any) -> Iterator[list[str]]:
    """Names of the modules that are running, the innermost last; after an error, of those that it came through."""
    stack: list[str] = []
    hooks = []
    for name, child in module.named_modules():
        def enter(_: Any, __: Any, name: str = name) -> None:
            stack.append(name)

        def leave(_: Any, __: Any, ___: Any) -> None:
            stack.pop()

        hooks += [child.register_forward_pre_hook(enter), child.register_forward_hook(leave)]
    try:
        yield stack
    finally:
        for hook in hooks:
            hook.remove()


@dataclass
class _Broken:
    """`first`: the innermost module that ended a gradient, and the first to do so. `called`: every module that ran."""

    first: str | None = None
    called: set[str] = field(default_factory=set)


@contextmanager
def _breaks(module: Any) -> Iterator[_Broken]:
    """See `_Broken`."""
    found = _Broken()
    hooks = []
    for name, child in module.named_modules():

        def after(child: Any, inputs: Any, result: Any, name: str = name) -> None:
            found.called.add(name)
            arrived = any(value.requires_grad for value in _tensors(list(inputs))) or any(True for _ in child.parameters())
            if arrived and found.first is None and any(not value.requires_grad for value in _tensors(result)):
                found.first = name

        hooks.append(child.register_forward_hook(after))
    try:
        yield found
    finally:
        for hook in hooks:
            hook.remove()


def _within(name: str, other: str) -> bool:
    return name == other or name.startswith(f"{other}.")


def _one_line(error: BaseException) -> str:
    return " ".join(str(error).split())[:300]
