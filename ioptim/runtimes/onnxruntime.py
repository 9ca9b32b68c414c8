"""ONNX Runtime on the CPU, or on an NVIDIA GPU through its CUDA or TensorRT execution provider."""

from __future__ import annotations

import platform
import shutil
import tempfile
from collections import Counter
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from importlib import metadata
from pathlib import Path
from typing import Any, Literal

from pydantic import Field

from ioptim.core.artifact import Format, ModelArtifact
from ioptim.core.runtime import Runtime, Session, Target
from ioptim.core.step import Level, Note, Outcome, Written
from ioptim.core.target import Hardware
from ioptim.errors import StepError, UnavailableError
from ioptim.onnx_graph import (
    LOSING_FUSIONS,
    PROTOBUF_LIMIT_BYTES,
    attention_blocks,
    count_ops,
    fuse_transformer,
    keep_apart,
    load_graph,
    save_graph,
)
from ioptim.onnx_padding import ATTENTION, TOO_LITTLE, is_masked, remove_padding
from ioptim.runtimes import _onnx_report as report
from ioptim.runtimes._device import gpu_index, gpu_objections, is_gpu, threads_of
from ioptim.runtimes._double import write_double
from ioptim.runtimes._onnx_compare import fused_difference, padding_difference, require_near
from ioptim.runtimes._onnx_profile import ProfiledOnnxSession
from ioptim.runtimes._onnx_session import OnnxSession, create, library, nodes_by_provider

ENTRY = "model.onnx"

PROVIDERS = {"cpu": "CPUExecutionProvider", "cuda": "CUDAExecutionProvider", "tensorrt": "TensorrtExecutionProvider"}

LEVELS = {"off": "ORT_DISABLE_ALL", "basic": "ORT_ENABLE_BASIC", "extended": "ORT_ENABLE_EXTENDED", "all": "ORT_ENABLE_ALL"}

WIDENING = ("ConstantFolding", "FuseFp16InitializerToFp32NodeTransformer")
"""ONNX Runtime's own optimizers that store a weight as float32 where the graph has it in 16 bits behind a Cast."""

WIDEST = "avx512f"
"""By which ONNX Runtime lays out the weights of convolutions in blocks of 16 in place of 8 (MlasNchwcGetBlockSize)."""

_SHAPE_OPS = (
    "Cast Concat Constant ConstantOfShape Equal Expand Gather Identity If Max Min Range ReduceProd Reshape Shape Size Slice"
    " Squeeze Add Sub Mul Div Mod Unsqueeze Where"
)
SHAPE_OPS = frozenset(_SHAPE_OPS.split())
"""Operators that ONNX Runtime keeps on the CPU on purpose, beside a GPU, when they compute shapes (a few integers)."""


def _distribution() -> str:
    """The GPU build is another distribution that installs the same module."""
    names = {"onnxruntime", "onnxruntime-gpu"}
    there = {name for name in names if any(True for _ in metadata.distributions(name=name))}
    return "onnxruntime-gpu" if there == {"onnxruntime-gpu"} else "onnxruntime"


@dataclass(frozen=True)
class _Packed:
    """A session that leaves out padding and the input that is its mask, neither where there is none; and what to tell of it."""

    session: Any = None
    mask: str | None = None
    figures: Mapping[str, float] = field(default_factory=dict)
    notes: tuple[Note, ...] = ()


class OnnxRuntime(Runtime):
    """Optimize the graph once, save it, and run it as it was saved.

    `compile` first runs the transformer fusions on a graph that is a float transformer spelled out in plain operators, and compares
    the fused model's outputs with the unfused ones. Attention, gelu and embeddings fuse; on a GPU also skip connections with layer
    normalization, which a CPU computes slower when fused. Where one token of the last layer is read, a CPU computes only that one, and
    in batches of texts of different lengths it leaves out the padding (`remove_padding`).
    Then ONNX Runtime's own optimizations up to `graph_optimization` are applied and the result saved.
    That file is for the CPU's instruction set and is loaded without optimizing again (measured: same speed), but for weights that are
    stored in 16 bits and computed in float32: they stay small in the file, and are widened as it is loaded.
    """

    runtime: Literal["onnxruntime"] = "onnxruntime"
    libraries = ("onnx", _distribution(), "numpy")
    extra = "cpu"
    accepts = frozenset({Format.ONNX})
    compiled = Format.ONNX

    graph_optimization: Literal["off", "basic", "extended", "all"] = Field(
        "all", description="how far ONNX Runtime's own graph optimizations go"
    )
    fusions: bool = Field(True, description="fuse attention, gelu and embeddings of a float transformer")
    on_unfused: Literal["note", "error"] = Field("note", description="what to do where `fusions` leaves attention unfused")
    execution_provider: Literal["auto", "cpu", "cuda", "tensorrt"] = Field(
        "auto", description="what executes the nodes; auto is cpu on the CPU and cuda on a GPU"
    )
    on_cpu_fallback: Literal["count", "error"] = Field(
        "error", description="what to do where a GPU's provider leaves nodes other than shape computations to the CPU"
    )
    execution_mode: Literal["sequential", "parallel"] = Field(
        "sequential", description="one node after the other, or independent branches at once"
    )
    inter_op_threads: int = Field(1, ge=1, description="branches at once in parallel mode; each uses the target's threads")
    remove_padding: bool = Field(
        True, description="in batches with much padding compute the other tokens alone, where attention is fused, on the CPU"
    )
    allow_spinning: bool = Field(
        True, description="threads wait busily for the next node: faster alone on the machine, slower beside other work"
    )

    def check(self, target: Target, hardware: Hardware) -> list[str]:
        objections = gpu_objections(target, hardware)
        provider = self.execution_provider
        if provider != "auto" and (provider == "cpu") == is_gpu(target):
            objections.append(
                f"execution_provider {provider} does not run on the device {target.device}; leave it out, or write `device: "
                f"{'cpu' if provider == 'cpu' else 'gpu'}`"
            )
        if is_gpu(target) and _distribution() == "onnxruntime" and not objections:
            objections.append("onnxruntime on a GPU needs its GPU build: pip uninstall -y onnxruntime && pip install 'ioptim[gpu]'")
        return objections

    def compile(self, model: ModelArtifact, target: Target, out: Path) -> Outcome:
        load_graph(model.model_path, weights=False)
        before = count_ops(model.model_path)
        provider = self._provider(target)
        if provider == "tensorrt":
            return self._copied(model, target, out, before)
        with tempfile.TemporaryDirectory(dir=out) as scratch:
            session, figures, notes = self._optimized(model, before, target, out, Path(scratch))
        facts = self._placement(session, target)
        if self._left_out(target) and not (out / f"{ENTRY}.data").is_file():
            keep_apart(out / ENTRY)
        after = count_ops(out / ENTRY)
        names = {value.name for value in session.get_inputs()}
        written = Written(
            format=Format.ONNX,
            entry=ENTRY,
            inputs=tuple(spec for spec in model.inputs if spec.name in names),
            facts={
                **self._facts(),
                "graph_optimization": self.graph_optimization,
                **({"widened_at_load": True} if report.half_weights(out / ENTRY)[0] else {}),
            },
        )
        return Outcome(
            written=written,
            metrics={**report.metrics(before, after, out / ENTRY), **figures},
            tables=(report.table(before, after),),
            notes=(*notes, *report.int8_notes(before, out / ENTRY)),
            facts={**written.facts, **facts},
        )

    def open(self, model: ModelArtifact, target: Target) -> Session:
        session, facts = self._opened(model, target)
        return OnnxSession(session, model, facts)

    def open_profiled(self, model: ModelArtifact, target: Target, trace: Path) -> ProfiledOnnxSession:
        """The same session with ONNX Runtime's profiler on. On a GPU its times are of the launches, not of the kernels."""
        optimized = trace.with_name("optimized.onnx")

        def profiling(options: Any) -> None:
            options.enable_profiling = True
            options.profile_file_prefix = str(trace.with_suffix(""))
            options.optimized_model_filepath = str(optimized)
            # Weights aside: the graph that really runs is read for its names and shapes alone.
            options.add_session_config_entry("session.optimized_model_external_initializers_file_name", f"{optimized.name}.data")
            options.add_session_config_entry("session.optimized_model_external_initializers_min_size_in_bytes", "1024")

        session, _ = self._opened(model, target, profiling)
        return ProfiledOnnxSession(session, optimized, trace)

    def _opened(self, model: ModelArtifact, target: Target, change: Callable[[Any], None] | None = None) -> tuple[Any, dict[str, Any]]:
        """A session as the model was compiled for, `change` applied to its options; and what really executes."""
        here = model.facts.get("runtime") == self.runtime
        if here:
            _require_its_cpu(model)
        if not model.model_path.is_file():
            raise StepError(f"there is no file {model.model_path}")
        optimized = model.facts.get("graph_optimization") if here else None
        level = optimized or self.graph_optimization
        if optimized and not model.facts.get("widened_at_load"):
            level = "off"
        options = self._options(target, level)
        if change:
            change(options)
        session = create(model.model_path, options, self._providers(target), self._left_out(target))
        facts = {
            "runtime": self.runtime,
            "version": library().__version__,
            "graph_optimization": optimized or level,
            "inter_op_threads": self.inter_op_threads if self.execution_mode == "parallel" else 1,
            "execution_mode": self.execution_mode,
            "allow_spinning": self.allow_spinning,
            **self._placement(session, target),
        }
        return session, facts

    def self_check(self, target: Target) -> list[float]:
        import tempfile

        import numpy as np

        with tempfile.TemporaryDirectory() as folder:
            model = write_double(Path(folder))
            (out := Path(folder) / "compiled").mkdir()
            written = self.compile(model, target, out).written
            assert written is not None
            session = self.open(model.model_copy(update={"path": out, "facts": written.facts}), target)
            values = session.run({"x": np.array([[1, 2, 3]], np.float32)})["y"]
            session.close()
        return [float(value) for value in values[0]]

    # Fusions

    def _optimized(
        self, model: ModelArtifact, before: report.Counts, target: Target, out: Path, scratch: Path
    ) -> tuple[Any, dict[str, float], list[Note]]:
        """Write the optimized graph to `out`: its session, what rewriting it changed in figures, and notes.

        Raises:
            StepError: the rewritten graph computes something else than the model that arrived.
        """
        fused, notes = self._fuse(model, before, target, scratch)
        packed = self._without_padding(model, fused, target, out, scratch)
        if fused == model.model_path:
            return packed.session or self._written(model, fused, target, out), {**packed.figures}, [*notes, *packed.notes]
        try:
            session = packed.session or self._written(model, fused, target, out)
            plain = create(model.model_path, self._options(target, "basic"), self._providers(target))
            figures, compared = fused_difference(plain, session, packed.mask)
        except StepError as error:
            if self.on_unfused == "error":
                raise
            text = f"nothing is fused, for the fused graph does not run: {error}"
            return self._written(model, model.model_path, target, out), {}, [Note(text=text, level=Level.WARNING)]
        require_near(figures.get("fusion_max_difference", 0.0), half=report.half_weights(model.model_path)[1])
        return session, {**figures, **packed.figures}, [*notes, *compared, *packed.notes]

    def _written(self, model: ModelArtifact, source: Path, target: Target, out: Path) -> Any:
        """A session on `source`; what ONNX Runtime made of it is in `out`, weights that a Cast widens as small as they came."""
        options = self._options(target, self.graph_optimization)
        options.optimized_model_filepath = str(out / ENTRY)
        if model.size_bytes > PROTOBUF_LIMIT_BYTES * 3 // 4:
            options.add_session_config_entry("session.optimized_model_external_initializers_file_name", f"{ENTRY}.data")
            options.add_session_config_entry("session.optimized_model_external_initializers_min_size_in_bytes", "1024")
        widening = WIDENING if report.half_weights(source)[0] else ()
        return create(source, options, self._providers(target), (*self._left_out(target), *widening))

    def _without_padding(self, model: ModelArtifact, fused: Path, target: Target, out: Path, scratch: Path) -> _Packed:
        """A session that leaves out padding, where that is possible and changes nothing."""
        operators = count_ops(fused)
        if is_gpu(target) or not self.remove_padding or not ATTENTION.keys() & operators.keys():
            return _Packed()
        graph = load_graph(fused)
        removed = remove_padding(graph)
        if removed is None:
            text = "padding is computed too: without it inputs must be of free batch and length, one of them the mask, and outputs float32"
            return _Packed(notes=(Note(text=text),) if is_masked(graph) else ())
        save_graph(graph, path := scratch / "packed.onnx")
        try:
            session = self._written(model, path, target, out)
            plain = create(fused, self._options(target, "basic"), self._providers(target))
            difference = padding_difference(plain, session, removed.mask, dynamic="DynamicQuantizeLinear" in operators)
        except StepError as error:
            text = f"padding is computed too: a graph that leaves it out did not pass the comparison ({error})"
            return _Packed(notes=(Note(text=text, level=Level.WARNING),))
        text = f"{removed.nodes} nodes leave out padding where it is more than {TOO_LITTLE:.0%} of a batch"
        if removed.outputs:
            text += f"; {', '.join(removed.outputs)} is 0 there"
        figures = {"packed_nodes": float(removed.nodes), "padding_max_difference": difference}
        return _Packed(session, removed.mask, figures, (Note(text=text),))

    def _fuse(self, model: ModelArtifact, before: report.Counts, target: Target, scratch: Path) -> tuple[Path, list[Note]]:
        """The fused graph in `scratch`, or the model's own where there is nothing to fuse; and what the user should know."""
        source = model.model_path
        if not self.fusions or not ("Softmax" in before or report.is_fused(before)):
            return source, []
        if not report.is_unfused_transformer(before):
            if report.is_fused(before):
                return source, [Note(text="the graph was fused before it was compiled; taken as it is")]
            return source, [Note(text="the graph is quantized and was not fused before; attention stays in single operators")]
        fused = scratch / "fused.onnx"
        try:
            found = fuse_transformer(source, fused, cpu=not is_gpu(target))
        except (AssertionError, KeyError, ValueError, IndexError, AttributeError, TypeError, RuntimeError) as error:
            raise StepError(f"the fusions failed on {source}: {type(error).__name__}: {error}; set `fusions: false`") from error
        attention = sum(found.counts.get(op, 0) for op in ("Attention", "MultiHeadAttention"))
        notes = [Note(text=f"fused: {found}")] if found else []
        if attention < (blocks := attention_blocks(source)):
            text = f"{blocks - attention} of {blocks} attention blocks were not recognized and stay in single operators"
            if self.on_unfused == "error":
                raise StepError(f"{text} (on_unfused: error); fused were {found if found else 'none'}")
            notes.append(Note(text=text, level=Level.WARNING))
        return (fused if found else source), notes

    # Sessions

    def _provider(self, target: Target) -> str:
        return ("cuda" if is_gpu(target) else "cpu") if self.execution_provider == "auto" else self.execution_provider

    def _providers(self, target: Target) -> list[Any]:
        """The provider asked for, and the CPU's for what computes shapes."""
        if not is_gpu(target):
            return [PROVIDERS["cpu"]]
        wanted = PROVIDERS[self._provider(target)]
        available = library().get_available_providers()
        if wanted not in available:
            raise UnavailableError(
                f"{wanted} is not in the installed onnxruntime (it has {', '.join(available)}); for a GPU:"
                " pip uninstall -y onnxruntime && pip install 'ioptim[gpu]'"
            )
        device = {"device_id": str(gpu_index(target))}
        both = [wanted, PROVIDERS["cuda"]] if wanted == PROVIDERS["tensorrt"] else [wanted]
        return [*((name, device) for name in both), PROVIDERS["cpu"]]

    def _left_out(self, target: Target) -> tuple[str, ...]:
        """ONNX Runtime's own optimizers that would lose time here."""
        return () if is_gpu(target) else LOSING_FUSIONS

    def _options(self, target: Target, level: str) -> Any:
        ort = library()
        options = ort.SessionOptions()
        options.log_severity_level = 3
        options.intra_op_num_threads = threads_of(target)
        options.inter_op_num_threads = self.inter_op_threads
        parallel = self.execution_mode == "parallel"
        options.execution_mode = ort.ExecutionMode.ORT_PARALLEL if parallel else ort.ExecutionMode.ORT_SEQUENTIAL
        options.graph_optimization_level = getattr(ort.GraphOptimizationLevel, LEVELS[level])
        options.add_session_config_entry("session.intra_op.allow_spinning", str(int(self.allow_spinning)))
        options.add_session_config_entry("session.record_ep_graph_assignment_info", "1")
        return options

    def _placement(self, session: Any, target: Target) -> dict[str, Any]:
        """Threads and execution providers read back from a session.

        Raises:
            StepError: a GPU was asked for and the session, or some of its nodes, run on the CPU.
        """
        providers = session.get_providers()
        wanted = PROVIDERS[self._provider(target)]
        found: dict[str, Any] = {
            "execution_provider": providers[0],
            "device": target.device,
            "intra_op_threads": session.get_session_options().intra_op_num_threads,
        }
        if providers[0] != wanted:
            raise StepError(
                f"{wanted} was asked for and ONNX Runtime fell back to {', '.join(providers)}: CUDA or cuDNN cannot be loaded, or"
                " their versions do not fit; `ioptim doctor` says what is missing"
            )
        if not is_gpu(target):
            return found
        nodes = nodes_by_provider(session)
        if nodes is None:
            if self.on_cpu_fallback == "error":
                text = f"ONNX Runtime {library().__version__} does not tell which nodes it left to the CPU; 1.24 does"
                raise UnavailableError(f"{text}: pip install -U onnxruntime-gpu, or accept it with `on_cpu_fallback: count`")
            return {**found, "nodes_by_provider": None}
        on_cpu = Counter({op: n for op, n in nodes.get(PROVIDERS["cpu"], Counter()).items() if op not in SHAPE_OPS})
        if on_cpu and self.on_cpu_fallback == "error":
            raise StepError(
                f"{on_cpu.total()} nodes have no {wanted} kernel and would run on the CPU: {report.listed(on_cpu)};"
                " accept that with `on_cpu_fallback: count`, or leave these operators in float"
            )
        counts = {name: ops.total() for name, ops in nodes.items()}
        return {**found, "nodes_by_provider": counts, "cpu_fallback": dict(on_cpu)}

    def _facts(self) -> dict[str, Any]:
        return {"runtime": self.runtime, "instruction_sets": _instruction_sets()}

    def _copied(self, model: ModelArtifact, target: Target, out: Path, before: report.Counts) -> Outcome:
        """TensorRT's provider builds its engine from plain ONNX when a session opens; what it builds cannot be saved as ONNX."""
        for name in model.files or (model.entry,):
            if name not in model.assets:
                (out / name).parent.mkdir(parents=True, exist_ok=True)
                shutil.copyfile(model.path / name, out / name)
        facts = {"runtime": self.runtime}
        written = Written(format=Format.ONNX, entry=model.entry, facts=facts)
        note = Note(text="left as it is: TensorRT's execution provider fuses and builds when the model is opened")
        return Outcome(written=written, metrics={"nodes_before": float(sum(before.values()))}, notes=(note,), facts=facts)


def _require_its_cpu(model: ModelArtifact) -> None:
    """Kernels need their instructions, and weights of convolutions lie in blocks as wide as the vectors of the CPU that compiled them."""
    compiled, mine = set(model.facts.get("instruction_sets", ())), set(_instruction_sets())
    text = f"{model.model_path} was compiled on a CPU"
    again = "run `compile` here; in place of a champion, promote a run that was made here"
    if lacking := sorted(compiled - mine):
        raise StepError(f"{text} with {', '.join(lacking)}, which this one does not have; {again}")
    if compiled and WIDEST in mine - compiled:
        raise StepError(f"{text} without {WIDEST}, which this one has: weights laid out for the one are wrong for the other; {again}")


def _instruction_sets() -> list[str]:
    """Those by which ONNX Runtime chooses its kernels and layouts."""
    wanted = ("avx", "avx2", "avx512f", "avx512_vnni", "avx_vnni", "amx_int8", "asimddp", "i8mm", "sve")
    cpuinfo = Path("/proc/cpuinfo")
    lines = cpuinfo.read_text().splitlines() if cpuinfo.is_file() else []
    flags = next((line.partition(":")[2].split() for line in lines if line.startswith(("flags", "Features"))), [])
    return [platform.machine(), *(flag for flag in wanted if flag in flags)]
