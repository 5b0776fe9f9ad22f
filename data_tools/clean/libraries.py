"""Import of the optional libraries of cleaning."""

from __future__ import annotations

import importlib
from typing import Any

from data_tools.errors import DataError


def optional(module: str, step: str) -> Any:
    """Import a library of the extra `clean`.

    Raises:
        DataError: it is not installed; names the step that needs it and the command that installs it.
    """
    try:
        return importlib.import_module(module)
    except ImportError as error:
        raise DataError(
            f"the cleaning step {step} needs {module}: pip install 'headwater[clean]' ({error})"
        ) from error
