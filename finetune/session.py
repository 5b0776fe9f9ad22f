"""Putting a finetuning job together on this rank."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from data_tools.publish import json_file, write_file, write_json
from finetune.batches import ExampleStream
from finetune.config import FinetuneConfig, with_model
from finetune.distillation import add_teacher, read_teacher
from finetune.evaluation import Evaluation, Labelled, evaluate
from finetune.finetuned import require_libraries
from finetune.optimizer import build_finetune_optimizer
from finetune.report import write_report
from finetune.rows import listed
from finetune.selection import Selection
from finetune.source import BEST, LABELS, Source, find_model, read_architecture
from finetune.start import Start, build_model, check_head, keeps_head
from finetune.task_config import SftTask
from finetune.tasks import open_task
from finetune.tasks.sft import packed
from finetune.tasks.task import Encoder, Task
from finetune.text import TextCodec, open_text_codec, read_tokenizer
from pretrain.checkpoint import CheckpointError, find_newest, load_checkpoint
from pretrain.checkpoint.manifest import list_checkpoints, step_directory, wanted_by
from pretrain.config import exit_codes
from pretrain.config.derive import data_parallel_size
from pretrain.data.steps import RankPlan
from pretrain.job import Job
from pretrain.loop import run
from pretrain.parallel.collectives import broadcast_from_main
from pretrain.parallel.topology import Topology, initialize_topology, leave_process_group
from pretrain.parallel.zero import Engine
from pretrain.run_directory import Claim, claim_run_directory
from pretrain.stop import StopSignals

RESULTS = "results.json"


@dataclass(frozen=True, slots=True)
class TaskData:
    """A task with its tokenised training and validation data."""

    task: Task
    labels: tuple[str, ...]
    train: Labelled
    validation: Labelled


def finetune(config: FinetuneConfig, signals: StopSignals) -> int:
    """Run a finetuning job on this rank; every rank calls it. Returns the exit code.

    Raises:
        ConfigError, DataError, CheckpointError: Naming what to change.
    """
    require_libraries()
    with wanted_by("pretrained"):
        source = find_model(Path(config.pretrained))
    architecture, tokenizer = read_architecture(source), read_tokenizer(source)
    config = with_model(config, architecture.model)
    known = architecture.labels if keeps_head(config, architecture) else None
    data = load_data(config, open_text_codec(source, architecture.model.vocab_size), known)
    check_head(config, architecture, data.labels)
    teacher = read_teacher(config, tokenizer, data.labels)
    topology = initialize_topology(config.parallel.tensor_model_parallel_size)
    _require_same_models(source, teacher)
    with claim_run_directory(config, topology) as claim:
        if _is_finished(config, topology):
            if topology.is_main:
                print(f"already complete: {Path(config.run_dir) / RESULTS} has the results", flush=True)
            code = 0
        else:
            start = Start(source, architecture, tokenizer, teacher)
            code = _train(_job(config, start, data, topology, claim, signals), data)
    leave_process_group()
    return code


def load_data(config: FinetuneConfig, codec: TextCodec, known: tuple[str, ...] | None = None) -> TaskData:
    """Read and tokenise both files.

    Args:
        config: Names files and columns.
        codec: The tokenizer of the checkpoint.
        known: Labels of a head that is kept; where the data has the same ones, their order is this one.

    Raises:
        DataError: A bad row or an unknown label, with file and line.
    """
    task = open_task(config.task, config.data)
    paths = [Path(config.data.train), Path(config.data.validation)]
    train, validation = (task.read(path) for path in paths)
    labels = task.infer_labels(paths[0], train)
    if known is not None and set(known) == set(labels):
        labels = known
    encoder = Encoder(codec, config.batch.seq_length, labels)
    examples = task.encode(train, encoder)
    if isinstance(config.task, SftTask) and config.task.packing:
        examples = packed(examples, config.batch.seq_length)
    evaluated = Labelled(validation, task.encode(validation, encoder))
    return TaskData(task, labels, Labelled(train, examples), evaluated)


def _job(
    config: FinetuneConfig,
    start: Start,
    data: TaskData,
    topology: Topology,
    claim: Claim,
    signals: StopSignals,
) -> Job:
    model = build_model(config, start, data.task, data.labels, data.train.examples, topology)
    if start.teacher is not None:
        add_teacher(model, start.teacher, data.task, config, topology)
    assert config.model is not None
    optimizer = build_finetune_optimizer(model, config.optimizer, config.model.num_layers)
    run_dir = Path(config.run_dir)
    files = dict(start.tokenizer)
    if data.labels:
        files[LABELS] = json_file(list(data.labels))
    _require_same_labels(run_dir, data.labels)
    if topology.is_main:
        if data.labels:
            write_file(run_dir / LABELS, files[LABELS])
        print(_summary(config, start, data), flush=True)

    def scores(engine: Engine, stop_now: Callable[[], bool]) -> dict[str, float] | None:
        evaluation = _evaluation(engine, data, stop_now)
        return None if evaluation is None else evaluation.scores

    return Job(
        config=config,
        topology=topology,
        engine=Engine(config, model, optimizer, topology),
        stream=ExampleStream(data.train.examples, _rank_plan(config, topology), config.seed),
        claim=claim,
        signals=signals,
        evaluate=scores,
        selection=Selection(config.selection) if config.selection else None,
        extra_files=files,
    )


def _require_same_models(source: Path, teacher: Source | None) -> None:
    """A run that is still training may have got a newer checkpoint while the ranks looked for it."""
    found = [str(source)] + ([] if teacher is None else [str(teacher.directory)])
    mains = broadcast_from_main(found)
    if found != mains:
        raise CheckpointError(
            f"this rank found the models {listed(found)}, rank 0 {listed(mains)}: is one of them still in "
            "training? Name a step directory"
        )


def _require_same_labels(run_dir: Path, labels: tuple[str, ...]) -> None:
    """Refuse to go on with other labels, or another order; on all ranks, before anything is written."""
    path = run_dir / LABELS
    if not list_checkpoints(run_dir) or not path.exists():
        return
    before = json.loads(path.read_text(encoding="utf-8"))
    if before != list(labels):
        raise CheckpointError(
            f"cannot continue this run: {path} has the labels {listed(before)}, data.train has "
            f"{listed(labels)}; restore data.train or choose another run_dir"
        )


def _evaluation(engine: Engine, data: TaskData, stop_now: Callable[[], bool]) -> Evaluation | None:
    size = engine.config.batch.micro_batch_size
    return evaluate(engine, data.task, data.labels, data.validation, size, stop_now)


def _train(job: Job, data: TaskData) -> int:
    code = run(job)
    if code != exit_codes.OK:
        return code
    best_step = None
    if isinstance(job.selection, Selection) and job.selection.best_step is not None:
        best_step = job.selection.best_step
        load_checkpoint(job.engine, step_directory(job.run_dir / BEST, best_step))
        job.selection.settle(job)
    evaluation = _evaluation(job.engine, data, lambda: False)
    if job.topology.is_main and evaluation is not None:
        assert isinstance(job.config, FinetuneConfig)
        _write_results(job.config, data, evaluation, best_step)
    return code


def _is_finished(config: FinetuneConfig, topology: Topology) -> bool:
    """Results of the whole run are there, on every rank alike; a longer `train_steps` goes on training."""
    finished = False
    if topology.is_main:
        path = Path(config.run_dir) / RESULTS
        newest = find_newest(Path(config.run_dir)).directory
        finished = newest is not None and path.exists() and _steps_of(path) >= config.training.train_steps
    return bool(broadcast_from_main(finished))


def _steps_of(path: Path) -> int:
    return int(json.loads(path.read_text(encoding="utf-8"))["train_steps"])


def _rank_plan(config: FinetuneConfig, topology: Topology) -> RankPlan:
    batch = config.batch
    size = data_parallel_size(config, topology.world_size)
    return RankPlan(batch.global_batch_size, batch.micro_batch_size, topology.data_parallel_rank, size)


def _write_results(
    config: FinetuneConfig, data: TaskData, evaluation: Evaluation, best_step: int | None
) -> None:
    """results.json, last because it marks the run as complete, and the report beside it."""
    run_dir, rows = Path(config.run_dir), data.validation.rows
    write_report(run_dir / "evaluation", data.task, data.labels, rows, evaluation)
    told = {**evaluation.scores, **data.task.baseline(data.train.rows, rows)}
    results: dict[str, Any] = {
        **told,
        "n": len(rows),
        "labels": list(data.labels),
        "from_scratch": config.from_scratch,
        "seed": config.seed,
        "train_steps": config.training.train_steps,
        "best_step": best_step,
    }
    write_json(run_dir / RESULTS, results)
    listed = ", ".join(f"{name.replace('_', ' ')} {value:.4f}" for name, value in told.items())
    where = "" if best_step is None else f" with the weights of step {best_step}"
    print(f"{listed} on {len(rows)} validation rows{where}; see {run_dir / RESULTS}", flush=True)


def _summary(config: FinetuneConfig, start: Start, data: TaskData) -> str:
    begun = "random weights" if config.from_scratch else str(start.checkpoint)
    if keeps_head(config, start.architecture):
        begun += " with its head"
    into = f" into {len(data.labels)} labels" if data.labels else ""
    long = data.train.examples.truncated + data.validation.examples.truncated
    more = f"; {long} rows longer than {config.batch.seq_length} tokens" if long else ""
    return (
        f"{config.task.kind.replace('_', ' ')}{into} from {begun}: {len(data.train.rows)} training and "
        f"{len(data.validation.rows)} validation rows{more}"
    )
