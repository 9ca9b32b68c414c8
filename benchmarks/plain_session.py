"""One model in a process of its own, timed with its library alone: nothing of ioptim is imported here.

    python plain_session.py '{"engine": "onnxruntime", "model": FILE, "tokenizer": FILE, "rows": FILE, "threads": 2}'

`engine` is `onnxruntime`, `openvino`, `torch` or `torch.compile`; for the last two `model` is a checkpoint folder. Each runs with its
library's defaults but for the number of threads. Rows are texts with a label (`.tsv` with a header), or queries with the passage that
answers each (`.jsonl`). Then one JSON request per line on standard input (`{"block": n}`, `{"batches": n}` or `{"scores": true}`), one
JSON answer per line on standard output.
"""

from __future__ import annotations

import json
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from tokenizers import Tokenizer

TIMED_ROWS = 64
BATCH = 32

Feed = Mapping[str, Any]
Engine = tuple[Callable[[Feed], Any], Callable[[Mapping[str, np.ndarray]], Feed]]
"""What is timed, which answers with the logits or the tokens' vectors, and what prepares its feeds beforehand."""


class PlainSession:
    """A model and rows of natural length: one by one, or 32 in the order of the file, padded to the longest of them."""

    def __init__(self, argument: Mapping[str, Any]) -> None:
        self.run, prepare = ENGINES[argument.get("engine", "onnxruntime")](argument)
        texts, self.labels = read(Path(argument["rows"]))
        tokenizer = Tokenizer.from_file(argument["tokenizer"])
        tokenizer.no_padding()
        tokens = [tokenizer.encode(text) for text in texts]
        self.feeds = [prepare(_feed([one])) for one in tokens]
        starts = range(0, len(tokens) - BATCH + 1, BATCH)
        self.batched = [prepare(_feed(tokens[start : start + BATCH])) for start in starts]

    def block(self, n: int) -> list[float]:
        """Seconds of each of n calls over the first rows, always from the first on."""
        return self._timed(self.feeds[:TIMED_ROWS], n)

    def batches(self, n: int) -> list[float]:
        """Seconds of each of n calls with 32 rows, always from the first on."""
        return self._timed(self.batched, n)

    def _timed(self, feeds: Sequence[Feed], n: int) -> list[float]:
        run, clock = self.run, time.perf_counter
        seconds = []
        for i in range(n):
            feed = feeds[i % len(feeds)]
            begin = clock()
            run(feed)
            seconds.append(clock() - begin)
        return seconds

    def scores(self, _: Any = None) -> list[float]:
        """1 or 0 by row with a label, else nDCG@10 by query among all passages, by cosine of the mean of the tokens' vectors."""
        answers = [np.asarray(self.run(feed))[0] for feed in self.feeds]
        if self.labels is not None:
            return [float(answer.argmax() == label) for answer, label in zip(answers, self.labels, strict=True)]
        vectors = np.stack([answer.mean(axis=0, dtype=np.float64) for answer in answers])
        vectors /= np.linalg.norm(vectors, axis=1, keepdims=True)
        similar = vectors[0::2] @ vectors[1::2].T
        ranks = (similar >= np.diag(similar)[:, None]).sum(axis=1)  # the right passage is one of them
        return [float(score) for score in np.where(ranks <= 10, 1 / np.log2(1 + ranks), 0)]


def read(file: Path) -> tuple[list[str], list[int] | None]:
    """Texts and labels; of queries and passages, which alternate, no labels."""
    lines = file.read_text().splitlines()
    if file.suffix == ".jsonl":
        pairs = [json.loads(line) for line in lines]
        return [pair[key] for pair in pairs for key in ("query", "passage")], None
    labelled = [line.rsplit("\t", 1) for line in lines[1:]]
    return [text for text, _ in labelled], [int(label) for _, label in labelled]


def model_class(checkpoint: str) -> Any:
    """The class of transformers that the checkpoint was saved from."""
    import transformers

    return getattr(transformers, transformers.AutoConfig.from_pretrained(checkpoint).architectures[0])


def _feed(rows: Sequence[Any]) -> dict[str, np.ndarray]:
    """(rows, longest) each; what is padded is masked."""
    longest = max(len(row.ids) for row in rows)
    columns = {"input_ids": "ids", "attention_mask": "attention_mask", "token_type_ids": "type_ids"}
    padded = {name: [[*getattr(row, own), *[0] * (longest - len(row.ids))] for row in rows] for name, own in columns.items()}
    return {name: np.array(values, dtype=np.int64) for name, values in padded.items()}


def _onnxruntime(argument: Mapping[str, Any]) -> Engine:
    import onnxruntime

    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = argument["threads"]
    options.log_severity_level = 3  # a graph optimized for this machine says so in a warning
    session = onnxruntime.InferenceSession(argument["model"], options, providers=["CPUExecutionProvider"])
    wanted = [value.name for value in session.get_inputs()]
    return lambda feed: session.run(None, feed)[0], lambda feed: {name: feed[name] for name in wanted}


def _openvino(argument: Mapping[str, Any]) -> Engine:
    import openvino

    model = openvino.Core().compile_model(argument["model"], "CPU", {"INFERENCE_NUM_THREADS": argument["threads"]})
    wanted = [value.get_any_name() for value in model.inputs]
    return lambda feed: model(feed)[0], lambda feed: {name: feed[name] for name in wanted}


def _torch(argument: Mapping[str, Any]) -> Engine:
    import torch

    torch.set_num_threads(argument["threads"])
    module = model_class(argument["model"]).from_pretrained(argument["model"]).eval()
    called = torch.compile(module, dynamic=True) if argument["engine"] == "torch.compile" else module

    def run(feed: Feed) -> Any:
        with torch.inference_mode():
            return called(**feed)[0]

    return run, lambda feed: {name: torch.from_numpy(array) for name, array in feed.items()}


ENGINES: Mapping[str, Callable[[Mapping[str, Any]], Engine]] = {
    "onnxruntime": _onnxruntime,
    "openvino": _openvino,
    "torch": _torch,
    "torch.compile": _torch,
}


def main() -> None:
    session = PlainSession(json.loads(sys.argv[1]))
    for line in sys.stdin:
        ((method, argument),) = json.loads(line).items()
        print(json.dumps(getattr(session, method)(argument)), flush=True)


if __name__ == "__main__":
    main()
