"""Reading a run configuration from YAML, with `--set a.b=c` overrides and helpful errors."""

from __future__ import annotations

import difflib
import re
from collections.abc import Hashable, Sequence
from pathlib import Path
from typing import Any, TypeVar, get_args

import yaml
from pydantic import BaseModel, ValidationError
from pydantic_core import ErrorDetails

from pretrain.config.errors import ConfigError
from pretrain.config.schema import RunConfig
from pretrain.config.validate import problems_of

AnySection = TypeVar("AnySection", bound=BaseModel)


class _Loader(yaml.SafeLoader):
    """SafeLoader that refuses duplicate keys; 1e-4 is a number and 24:00:00 a text, unlike in YAML 1.1."""

    def construct_mapping(self, node: yaml.MappingNode, deep: bool = False) -> dict[Hashable, Any]:
        seen: set[Hashable] = set()
        for key_node, _ in node.value:
            key = self.construct_object(key_node, deep=deep)
            if isinstance(key, Hashable) and key in seen:
                raise yaml.constructor.ConstructorError(
                    None, None, f"the key {key!r} is given twice", key_node.start_mark
                )
            if isinstance(key, Hashable):  # of others the base class tells
                seen.add(key)
        return super().construct_mapping(node, deep)


_Loader.add_implicit_resolver(
    "tag:yaml.org,2002:float",
    re.compile(r"^[-+]?(\d+\.?\d*|\.\d+)[eE][-+]?\d+$"),
    list("-+0123456789."),
)
_TIME = ("tag:yaml.org,2002:str", re.compile(r"^[-+]?[0-9][0-9_]*(:[0-5]?[0-9])+(\.[0-9_]*)?$"))
for _first in "-+0123456789":
    _Loader.yaml_implicit_resolvers[_first].insert(0, _TIME)  # asked before the numbers


def load_config(path: Path, overrides: Sequence[str] = (), world_size: int | None = None) -> RunConfig:
    """Read, override and validate a run configuration.

    Args:
        path: The YAML file.
        overrides: `section.key=value` texts; the value is read as YAML.
        world_size: Number of ranks, where known; adds the checks that need it.

    Raises:
        ConfigError: With every problem found in the file.
    """
    config = parse_section(RunConfig, read_yaml(path, overrides), source=str(path))
    problems = problems_of(config, world_size)
    if problems:
        raise ConfigError(problems, source=str(path))
    return config


def read_yaml(path: Path, overrides: Sequence[str] = (), option: str = "--set") -> dict[str, Any]:
    """The mapping in a YAML file with the overrides applied; not yet validated.

    Args:
        path: The file.
        overrides: As in `load_config`.
        option: That the user gave them with.

    Raises:
        ConfigError: The file or an override cannot be read.
    """
    try:
        data = yaml.load(Path(path).read_text(encoding="utf-8"), Loader=_Loader)  # noqa: S506 (a SafeLoader)
    except OSError as error:
        raise ConfigError(f"cannot read the config: {error.strerror or error}", source=str(path)) from error
    except (yaml.YAMLError, UnicodeDecodeError) as error:
        raise ConfigError(f"is not valid YAML: {error}", source=str(path)) from error
    if not isinstance(data, dict):
        raise ConfigError("the top level must be a mapping of sections", source=str(path))
    for text in overrides:
        try:
            _apply_override(data, text)
        except ValueError as error:
            raise ConfigError(f"{option} {text!r}: {error}") from error
    return data


def parse_section(section: type[AnySection], data: dict[str, Any], source: str) -> AnySection:
    """Validate `data` as `section`; every problem in one ConfigError, unknown keys with the nearest match."""
    try:
        return section.model_validate(data)
    except ValidationError as error:
        raise ConfigError([_describe(section, e) for e in error.errors()], source=source) from None


def dump_yaml(config: BaseModel) -> str:
    """The resolved configuration as YAML that `load_config` reads back to an equal object."""
    return yaml.safe_dump(config.model_dump(mode="json"), sort_keys=False)


def _apply_override(data: dict[str, Any], text: str) -> None:
    key, equals, value = text.partition("=")
    if not equals or not key.strip():
        raise ValueError("write key=value, for example batch.micro_batch_size=4 or nodes=2")
    try:
        parsed = yaml.load(value, Loader=_Loader)  # noqa: S506 (a SafeLoader)
    except yaml.YAMLError as error:
        raise ValueError(f"the value is not valid YAML: {error}") from error
    *parents, last = key.strip().split(".")
    node: Any = data
    for depth, name in enumerate(parents):
        child = _child(node, name)
        if child is None:
            child = node[name] = {}
        if not isinstance(child, dict | list):
            raise ValueError(f"{'.'.join(parents[: depth + 1])} is a value, not a section")
        node = child
    if isinstance(node, list):
        _child(node, last)
        node[int(last)] = parsed
    else:
        node[last] = parsed


def _child(node: Any, name: str) -> Any:
    if isinstance(node, dict):
        return node.get(name)
    if not name.isdigit() or int(name) >= len(node):
        raise ValueError(f"{name!r} is not an index of a list of {len(node)} entries")
    return node[int(name)]


def _describe(section: type[BaseModel], error: ErrorDetails) -> str:
    # pydantic puts the tag of a discriminated union ("gpt", "bert") into the location; users never wrote it.
    loc = [
        part
        for i, part in enumerate(error["loc"])
        if not (i == 1 and error["loc"][0] == "model" and part in ("gpt", "bert"))
    ]
    name = ".".join(str(part) for part in loc) or "config"
    if error["type"] == "extra_forbidden":
        known = _keys_at(section, error["loc"][:-1])
        near = difflib.get_close_matches(str(loc[-1]), known, n=1)
        hint = f"did you mean {near[0]!r}?" if near else f"known keys: {', '.join(known)}"
        return f"{name}: unknown key; {hint}"
    if error["type"] == "missing":
        return f"{name}: missing"
    if error["type"] in ("union_tag_not_found", "union_tag_invalid"):
        return f"{name}.kind: must be 'gpt' or 'bert'"
    message = error["msg"].removeprefix("Value error, ")
    return f"{name}: {message[0].lower()}{message[1:]} (got {error['input']!r})"


def _keys_at(section: type[BaseModel], loc: Sequence[str | int]) -> list[str]:
    """Field names of the section that a location points to; tags of unions and list indices are steps too."""
    candidates = [section]
    for part in loc:
        fields = [
            c.model_fields[part] for c in candidates if isinstance(part, str) and part in c.model_fields
        ]
        if fields:
            candidates = [found for field in fields for found in _sections_in(field.annotation)]
        elif isinstance(part, str):
            candidates = [c for c in candidates if part in get_args(c.model_fields["kind"].annotation)]
    return sorted({name for candidate in candidates for name in candidate.model_fields})


def _sections_in(annotation: Any) -> list[type[BaseModel]]:
    if isinstance(annotation, type) and issubclass(annotation, BaseModel):
        return [annotation]
    return [found for part in get_args(annotation) for found in _sections_in(part)]
