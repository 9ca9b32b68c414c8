"""One ONNX file in a process of its own, timed with the onnxruntime library alone: nothing of ioptim is imported here.

    python plain_session.py MODEL.onnx TOKENIZER.json ROWS.tsv THREADS

Then one JSON request per line on standard input (`{"block": n}` or `{"accuracy": true}`), one JSON answer per line on standard output.
"""

from __future__ import annotations

import json
import sys
import time
from pathlib import Path
from typing import Any

import numpy as np
import onnxruntime
from tokenizers import Tokenizer

TIMED_ROWS = 64


class PlainSession:
    """A session with ONNX Runtime's defaults but for the number of threads, and rows of natural length at batch 1."""

    def __init__(self, argument: dict[str, Any]) -> None:
        options = onnxruntime.SessionOptions()
        options.intra_op_num_threads = argument["threads"]
        options.log_severity_level = 3  # a graph optimized for this machine says so in a warning
        self.session = onnxruntime.InferenceSession(argument["model"], options, providers=["CPUExecutionProvider"])
        lines = [line.rsplit("\t", 1) for line in Path(argument["rows"]).read_text().splitlines()[1:]]
        tokenizer = Tokenizer.from_file(argument["tokenizer"])
        self.feeds = [self._feed(tokenizer.encode(text)) for text, _ in lines]
        self.labels = [int(label) for _, label in lines]

    def _feed(self, tokens: Any) -> dict[str, np.ndarray]:
        columns = {"input_ids": tokens.ids, "attention_mask": tokens.attention_mask, "token_type_ids": tokens.type_ids}
        wanted = [value.name for value in self.session.get_inputs()]
        return {name: np.array([columns[name]], dtype=np.int64) for name in wanted}

    def block(self, n: int) -> list[float]:
        """Seconds of each of n calls over the first rows, always from the first on."""
        run, clock = self.session.run, time.perf_counter
        seconds = []
        for i in range(n):
            feed = self.feeds[i % TIMED_ROWS]
            begin = clock()
            run(None, feed)
            seconds.append(clock() - begin)
        return seconds

    def accuracy(self, _: Any = None) -> float:
        answers = [int(self.session.run(None, feed)[0].argmax()) for feed in self.feeds]
        return float(np.mean(np.equal(answers, self.labels)))


def main() -> None:
    model, tokenizer, rows, threads = sys.argv[1:]
    session = PlainSession({"model": model, "tokenizer": tokenizer, "rows": rows, "threads": int(threads)})
    for line in sys.stdin:
        ((method, argument),) = json.loads(line).items()
        print(json.dumps(getattr(session, method)(argument)), flush=True)


if __name__ == "__main__":
    main()
