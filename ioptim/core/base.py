"""The base of every value that a recipe or a record holds."""

from __future__ import annotations

import hashlib
import json
from typing import Any

from pydantic import BaseModel, ConfigDict


class Frozen(BaseModel):
    """A value: immutable, strict about unknown keys, compared by content.

    A class is built when it is first used: a recipe needs few of those that exist.
    """

    model_config = ConfigDict(frozen=True, extra="forbid", use_attribute_docstrings=False, protected_namespaces=(), defer_build=True)


def canonical_json(value: Any) -> str:
    """One spelling per value: sorted keys, no white space, no NaN. What digests are taken of."""
    return json.dumps(value, sort_keys=True, separators=(",", ":"), allow_nan=False, ensure_ascii=True)


def digest_of(value: Any) -> str:
    """SHA-256 (hex) of a JSON-able value's canonical spelling."""
    return hashlib.sha256(canonical_json(value).encode()).hexdigest()
