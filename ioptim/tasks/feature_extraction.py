"""Texts as vectors, judged by retrieval."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from enum import StrEnum
from typing import TYPE_CHECKING, Literal

from pydantic import Field

from ioptim.core.artifact import ModelArtifact
from ioptim.core.metrics import Metric
from ioptim.core.task import Table
from ioptim.errors import StepError
from ioptim.tasks._outputs import output_of
from ioptim.tasks._text import TextTask

if TYPE_CHECKING:
    import numpy as np

    from ioptim.core.task import Outputs

_CUTOFF = 10
_QUERIES_AT_ONCE = 1024


class Pooling(StrEnum):
    """How the vectors of a text's tokens become one."""

    MEAN = "mean"
    CLS = "cls"


class FeatureExtraction(TextTask):
    """Sentence embedding. Each validation row is a query and the one passage that answers it; the corpus is every passage.

    A row is two examples: its query, then its passage. The vectors are pooled and normalized here, outside the model, so every
    runtime is judged by the same arithmetic (float64). A model that already gives one vector per text (batch, hidden) is taken as it is.

    Equal similarity counts against the model: one that maps every text to the same vector scores zero, not one.
    """

    task: Literal["feature-extraction"] = "feature-extraction"
    pooling: Pooling = Field(Pooling.MEAN, description="mean of the tokens' vectors, or the first token's (cls)")
    normalize: bool = Field(True, description="compare by cosine; by dot product when false")

    metrics = (
        Metric(
            name="ndcg_at_10",
            higher_is_better=True,
            continuous=True,
            description="1 / log2(1 + rank of the query's own passage), 0 beyond rank 10",
        ),
        Metric(name="recall_at_1", higher_is_better=True, description="1 where the query's own passage comes first"),
    )
    columns = {"query": "the text searched with", "passage": "the text that answers it"}
    calibration_columns = {"text": "a text of the kind the model will see; or `query` and `passage`"}
    auto_class = "AutoModel"
    output = "last_hidden_state"

    def check_table(self, table: Table, role: str) -> list[str]:
        """Calibration takes `text`, `query`, `passage` or several of them; validation needs a pair in every row and two passages."""
        if role != "validation" and (names := _text_columns(table)):
            return self.check_texts(table, names)
        objections = super().check_table(table, role)
        if not objections and role == "validation" and len(set(table.columns["passage"])) < 2:
            objections = [f"{table.origin}: retrieval needs different passages to choose from; all {len(table)} rows have the same one"]
        return objections

    def texts(self, table: Table) -> list[str]:
        """Row by row: query, passage; for calibration whichever of text, query and passage there are."""
        columns = [table.columns[name] for name in _text_columns(table)]
        return [text for row in zip(*columns, strict=True) for text in row]

    def score(self, outputs: Sequence[Outputs], table: Table, model: ModelArtifact) -> dict[str, list[float]]:
        """One value per row; NaN where the query's or its passage's vector is not finite."""
        import numpy as np

        if len(outputs) != 2 * len(table):
            raise StepError(f"{len(table)} rows of query and passage need {2 * len(table)} outputs; there are {len(outputs)}")
        texts = [text for pair in zip(table.columns["query"], table.columns["passage"], strict=True) for text in pair]
        vectors = self._embed(outputs, texts, model)
        # The same passage may answer several queries: it is in the corpus once, or it would compete with itself.
        first = {text: i for i, text in reversed(list(enumerate(table.columns["passage"])))}
        place = {text: i for i, text in enumerate(first)}
        corpus = vectors[1::2][list(first.values())]
        rank = _ranks(vectors[0::2], corpus, np.array([place[text] for text in table.columns["passage"]]))
        gain = np.where(rank <= _CUTOFF, 1 / np.log2(rank + 1), 0.0)
        missing = np.isnan(rank)
        return {
            "ndcg_at_10": np.where(missing, np.nan, gain).tolist(),
            "recall_at_1": np.where(missing, np.nan, rank == 1).tolist(),
        }

    def _embed(self, outputs: Sequence[Outputs], texts: Sequence[str], model: ModelArtifact) -> np.ndarray:
        """(examples, hidden) float64."""
        import numpy as np

        arrays = [self._vector_source(output) for output in outputs]
        pooled = all(array.ndim == 2 for array in arrays)
        lengths = [1] * len(texts) if pooled else self.lengths(texts, model)
        vectors = np.stack([self._pool(array, length) for array, length in zip(arrays, lengths, strict=True)])
        if self.normalize:
            norm = np.linalg.norm(vectors, axis=1, keepdims=True)
            vectors = vectors / np.where(norm == 0, 1, norm)
        return vectors

    def _vector_source(self, output: Outputs) -> np.ndarray:
        array = output["sentence_embedding"] if "sentence_embedding" in output else output_of(output, self.output)
        if array.ndim not in (2, 3) or array.shape[0] != 1:
            shapes = "(1, tokens, hidden) or (1, hidden)"
            raise StepError(f"expected {self.output} of shape {shapes} for one text; the model gives {tuple(array.shape)}")
        return array

    def _pool(self, array: np.ndarray, length: int) -> np.ndarray:
        array = array.astype("float64")
        if array.ndim == 2:
            return array[0]  # type: ignore[no-any-return]
        return array[0, 0] if self.pooling is Pooling.CLS else array[0, :length].mean(axis=0)  # type: ignore[no-any-return]


def _text_columns(table: Table) -> list[str]:
    """A validation table may carry other columns; a pair goes before a lone text."""
    columns: Mapping[str, Sequence[object]] = table.columns
    pair = [name for name in ("query", "passage") if name in columns]
    return pair if pair else [name for name in ("text",) if name in columns]


def _ranks(queries: np.ndarray, corpus: np.ndarray, relevant: np.ndarray) -> np.ndarray:
    """Rank (from 1) of each query's own passage: how many passages are not strictly less similar. NaN where it has none."""
    import numpy as np

    ranks = np.empty(len(queries))
    for start in range(0, len(queries), _QUERIES_AT_ONCE):
        rows = slice(start, start + _QUERIES_AT_ONCE)
        similarity = queries[rows] @ corpus.T  # (queries, passages)
        own = np.take_along_axis(similarity, relevant[rows, None], axis=1)
        ranks[rows] = np.where(np.isfinite(own[:, 0]), (~(similarity < own)).sum(axis=1), np.nan)
    return ranks
