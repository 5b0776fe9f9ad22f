"""`headwater evaluate --lm-eval`: scores of a GPT on tasks of EleutherAI's lm-eval harness.

The checkpoint is exported to a temporary directory, which proves that transformers computes the same with it;
lm-eval's own `hf` model then reads it there, as it would read any model of the Hub. So scores compare with
published ones, and nothing of the harness is written anew here.
"""

from __future__ import annotations

import difflib
import os
import tempfile
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from data_tools.errors import DataError
from data_tools.publish import write_json
from finetune.export_hf import export
from finetune.report import METRICS
from finetune.source import find_model, read_architecture
from finetune.text import reads_integers, tokenizer_files
from pretrain.config import ConfigError

KEPT = ("results", "groups", "group_subtasks", "versions", "n-shot", "n-samples", "higher_is_better")
"""Of what lm-eval returns. The rest tells of this machine and of a directory that is gone."""


def run_harness(
    checkpoint: Path,
    tasks: Sequence[str],
    task_directory: Path | None,
    limit: int | None,
    out: Path | None,
    batch_size: int,
) -> list[str]:
    """Score a GPT on tasks of lm-eval.

    Args:
        checkpoint: Run or checkpoint directory.
        tasks: Names or patterns of tasks, groups and tags that lm-eval knows.
        task_directory: Of YAML files that describe further tasks; they come before lm-eval's own.
        limit: Rows of each task; None takes all.
        out: Gets metrics.json.
        batch_size: Of requests.

    Returns:
        What there is to tell, line by line: lm-eval's own table first.

    Raises:
        CheckpointError: No usable checkpoint.
        ConfigError: Not a GPT that reads text, no such directory, or a task that lm-eval does not know.
        DataError: A task or its data set cannot be loaded.
        ModuleNotFoundError: lm-eval, or what its `hf` model needs, is not installed.
    """
    # What is missing is named before anything is read.
    import lm_eval.models.huggingface  # noqa: F401

    source = require_text_gpt(checkpoint)
    if out is not None:
        _make_directory(out)
    manager, loaded = load_tasks(tasks, task_directory)
    results, told = _scored(source, (manager, loaded), limit, batch_size)
    lines = [*_tables(results), *told[:-1], f"lm-eval {lm_eval.__version__}, {source}"]
    if out is not None:
        origin = {"limit": limit, "checkpoint": str(source), "lm_eval_version": lm_eval.__version__}
        _write(out / METRICS, results, origin)
        lines.append(f"written: {out / METRICS}")
    return lines


def _scored(
    source: Path, tasks: tuple[Any, list[Any]], limit: int | None, batch_size: int
) -> tuple[dict[str, Any], list[str]]:
    """What lm-eval returns for the exported model, and what the export told."""
    import lm_eval
    import torch

    manager, loaded = tasks
    with tempfile.TemporaryDirectory(prefix="headwater-lm-eval-") as directory:
        exported = Path(directory) / "model"
        told = export(source, exported)
        try:
            with _no_rank():
                results = lm_eval.simple_evaluate(
                    model="hf",
                    model_args={"pretrained": str(exported), "dtype": "float32"},
                    tasks=loaded,
                    task_manager=manager,
                    batch_size=batch_size,
                    device="cuda" if torch.cuda.is_available() else "cpu",
                    limit=limit,
                    log_samples=False,
                )
        except (AssertionError, ValueError) as error:
            raise DataError(f"--lm-eval: lm-eval cannot score {source} on these tasks: {error}") from error
    return results, told


def _make_directory(out: Path) -> None:
    try:
        out.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise ConfigError(f"--out {out}: cannot be made: {error.strerror}") from error


def _write(path: Path, results: dict[str, Any], origin: dict[str, Any]) -> None:
    kept = {name: results[name] for name in KEPT if name in results} | origin
    write_json(path, kept, default=str)


def _tables(results: dict[str, Any]) -> list[str]:
    """lm-eval's tables of tasks and groups, line by line."""
    from lm_eval.utils import make_table

    lines = [*make_table(results).strip().splitlines()]
    if results.get("groups"):
        lines += ["", *make_table(results, "groups").strip().splitlines()]
    return lines


def require_text_gpt(checkpoint: Path) -> Path:
    """The checkpoint's directory, if it is that of a GPT with a tokenizer.

    Raises:
        CheckpointError: No usable checkpoint.
        ConfigError: A BERT, or a model that reads integers.
    """
    directory = find_model(checkpoint)
    kind = read_architecture(directory).model.kind
    if kind != "gpt":
        raise ConfigError(f"{directory} is a {kind}; lm-eval scores what a gpt writes, so give it a gpt")
    if reads_integers(tokenizer_files(directory)):
        raise ConfigError(f"{directory}: the model reads integers, lm-eval's tasks are texts")
    return directory


def load_tasks(names: Sequence[str], directory: Path | None) -> tuple[Any, list[Any]]:
    """Find tasks by name and load them with their data sets, before time is spent on the model.

    Returns:
        lm-eval's manager, and its tasks and groups.

    Raises:
        ConfigError: No such directory, or no such task.
        DataError: lm-eval cannot load a task or its data set.
    """
    from lm_eval.tasks import TaskManager

    if directory is not None and not directory.is_dir():
        raise ConfigError(f"--lm-eval-path: {directory} is not a directory")
    manager = TaskManager(include_path=None if directory is None else str(directory))
    found: list[Any] = []
    for name in find_names(names, manager.all_tasks):
        try:
            found += (
                manager.load([name])["tasks"].values() if name in manager.all_tags else [_load(manager, name)]
            )
        except Exception as error:  # of the YAML, of a file, of the Hub: lm-eval and datasets raise all kinds
            first = (str(error).splitlines() or [""])[0]
            raise DataError(
                f"--lm-eval {name}: lm-eval cannot load the task or its data set "
                f"({type(error).__name__}: {first}); those of the Hub need a network, or an earlier copy"
            ) from error
    try:
        manager.load(found)  # again, all at once: they are there already
    except ValueError as error:
        raise ConfigError(f"--lm-eval: {error}; give a group or its tasks, not both") from None
    return manager, found


@contextmanager
def _no_rank() -> Iterator[None]:
    """Hide LOCAL_RANK, which our process groups of one rank leave and lm-eval would take for a launcher's."""
    before = os.environ.pop("LOCAL_RANK", None)
    try:
        yield
    finally:
        if before is not None:
            os.environ["LOCAL_RANK"] = before


def _load(manager: Any, name: str) -> Any:
    """A task, or a group with its tasks."""
    loaded = manager.load([name])
    return loaded["groups"].get(name) or loaded["tasks"][name]


def find_names(wanted: Sequence[str], known: Sequence[str]) -> list[str]:
    """The known names that patterns such as `arc_*` stand for, each once.

    Raises:
        ConfigError: Nothing matches a pattern; names what is near.
    """
    from fnmatch import filter as matching

    found: list[str] = []
    for pattern in wanted:
        names = sorted(matching(known, pattern))
        if not names:
            near = difflib.get_close_matches(pattern, known, n=3)
            hint = f"did you mean {' or '.join(near)}?" if near else "`lm-eval ls tasks` lists them"
            raise ConfigError(f"--lm-eval {pattern}: lm-eval knows no such task; {hint}")
        found += names
    return list(dict.fromkeys(found))
