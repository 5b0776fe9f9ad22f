"""Reading a cleaning configuration from YAML, with every problem in one error."""

from __future__ import annotations

import difflib
from collections.abc import Sequence
from pathlib import Path
from typing import Any, get_args

import yaml
from pydantic import BaseModel, ValidationError
from pydantic_core import ErrorDetails

from data_tools.clean.config import CleanConfig
from data_tools.errors import DataError


def load_clean_config(path: Path) -> CleanConfig:
    """Read and check a cleaning configuration; paths in it are relative to its own folder.

    Raises:
        DataError: with every problem found; an unknown key comes with the nearest one.
    """
    try:
        data = yaml.safe_load(path.read_text(encoding="utf-8"))
    except OSError as error:
        raise DataError(f"cannot read the cleaning config {path}: {error.strerror or error}") from error
    except (yaml.YAMLError, UnicodeDecodeError) as error:
        raise DataError(f"{path} is not valid YAML: {error}") from error
    if data is None:
        raise DataError(f"{path} is empty: name at least one cleaning step (configs/data has examples)")
    if not isinstance(data, dict):
        raise DataError(f"{path}: the top level must be a mapping of steps")
    try:
        config = CleanConfig.model_validate(data)
    except ValidationError as error:
        problems = [_describe(problem) for problem in error.errors()]
        if len(problems) == 1:
            raise DataError(f"{path}: {problems[0]}") from None
        lines = "".join(f"\n  - {problem}" for problem in problems)
        raise DataError(f"{path}: {len(problems)} problems:{lines}") from None
    return _absolute(config, path.parent)


def _absolute(config: CleanConfig, folder: Path) -> CleanConfig:
    update: dict[str, BaseModel] = {}
    if config.decontamination is not None:
        files = [str(folder.absolute() / name) for name in config.decontamination.files]
        update["decontamination"] = config.decontamination.model_copy(update={"files": files})
    if config.quality is not None and config.quality.c4 is not None and config.quality.c4.bad_words:
        c4 = config.quality.c4
        c4 = c4.model_copy(update={"bad_words": str(folder.absolute() / str(c4.bad_words))})
        update["quality"] = config.quality.model_copy(update={"c4": c4})
    return config.model_copy(update=update)


def _describe(problem: ErrorDetails) -> str:
    location = problem["loc"]
    name = ".".join(str(part) for part in location)
    if problem["type"] == "extra_forbidden":
        known = _keys_at(location[:-1])
        near = difflib.get_close_matches(str(location[-1]), known, n=1)
        hint = f'did you mean "{near[0]}"?' if near else f"known keys: {', '.join(known)}"
        return f"{name}: unknown key; {hint}"
    if problem["type"] == "missing":
        return f"{name}: missing"
    hint = ""
    if problem["type"] == "string_type" and isinstance(problem["input"], bool):
        hint = '; YAML reads no, off, yes and on as true or false: quote it, as in "no"'
    return f"{name}: {problem['msg'][0].lower()}{problem['msg'][1:]} (got {problem['input']!r}){hint}"


def _keys_at(location: Sequence[str | int]) -> list[str]:
    section: type[BaseModel] = CleanConfig
    for part in location:
        section = _section_in(section.model_fields[str(part)].annotation)
    return sorted(section.model_fields)


def _section_in(annotation: Any) -> type[BaseModel]:
    parts = [annotation, *get_args(annotation)]
    return next(part for part in parts if isinstance(part, type) and issubclass(part, BaseModel))
