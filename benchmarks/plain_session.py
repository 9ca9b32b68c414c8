"""One model in a process of its own, timed with its library alone: nothing of ioptim is imported here.

    python plain_session.py '{"engine": "onnxruntime", "model": FILE, "tokenizer": FILE, "rows": FILE.tsv, "threads": 2}'

`engine` is `onnxruntime`, `openvino`, `torch` or `torch.compile`; for the last two `model` is a checkpoint folder. Each runs with its
library's defaults but for the number of threads. Then one JSON request per line on standard input (`{"block": n}`, `{"batches": n}` or
`{"accuracy": true}`), one JSON answer per line on standard output.
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
"""What is timed, which answers with the logits, and what prepares its feeds beforehand."""


class PlainSession:
    """A model and rows of natural length: one by one, or 32 in the order of the file, padded to the longest of them."""

    def __init__(self, argument: Mapping[str, Any]) -> None:
        self.run, prepare = ENGINES[argument.get("engine", "onnxruntime")](argument)
        lines = [line.rsplit("\t", 1) for line in Path(argument["rows"]).read_text().splitlines()[1:]]
        tokenizer = Tokenizer.from_file(argument["tokenizer"])
        tokenizer.no_padding()
        tokens = [tokenizer.encode(text) for text, _ in lines]
        self.labels = [int(label) for _, label in lines]
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

    def accuracy(self, _: Any = None) -> float:
        answers = [int(np.asarray(self.run(feed)).argmax()) for feed in self.feeds]
        return float(np.mean(np.equal(answers, self.labels)))


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
    from transformers import AutoModelForSequenceClassification

    torch.set_num_threads(argument["threads"])
    module = AutoModelForSequenceClassification.from_pretrained(argument["model"]).eval()
    called = torch.compile(module, dynamic=True) if argument["engine"] == "torch.compile" else module

    def run(feed: Feed) -> Any:
        with torch.inference_mode():
            return called(**feed).logits

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
