"""JSON that every reader takes: Python writes NaN and Infinity, which JSON has not."""

from __future__ import annotations

import json
import math
from collections.abc import Callable, Mapping
from typing import Any


def to_json(
    value: Any,
    *,
    indent: int | None = None,
    ensure_ascii: bool = False,
    default: Callable[[Any], Any] | None = None,
) -> str:
    """A value as JSON, with null for NaN and infinities, as pandas writes them.

    Args:
        value: What `json.dumps` takes.
        indent: As there.
        ensure_ascii: As there.
        default: As there.
    """
    try:
        return json.dumps(value, indent=indent, ensure_ascii=ensure_ascii, allow_nan=False, default=default)
    except ValueError:
        return json.dumps(
            _finite(value), indent=indent, ensure_ascii=ensure_ascii, allow_nan=False, default=default
        )


def _finite(value: Any) -> Any:
    """The value with None in place of numbers that are none."""
    if isinstance(value, float):
        return value if math.isfinite(value) else None
    if isinstance(value, Mapping):
        return {name: _finite(one) for name, one in value.items()}
    if isinstance(value, (list, tuple)):
        return [_finite(one) for one in value]
    return value
