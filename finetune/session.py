"""Putting a finetuning job together on this rank."""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from torch import nn

from finetune.batches import Examples, ExampleStream, encode_examples, evaluation_steps
from finetune.classification import BertForClassification
from finetune.config import FinetuneConfig, with_model
from finetune.labelled_text import infer_labels, label_ids, read_rows
from finetune.source import LABELS, read_architecture
from finetune.text import TextCodec, open_text_codec, tokenizer_files
from pretrain.checkpoint import find_checkpoint, find_newest, load_parameters, read_parameters
from pretrain.checkpoint.files import write_json
from pretrain.config.derive import data_parallel_size
from pretrain.config.model import BertModelConfig
from pretrain.data.steps import RankPlan
from pretrain.job import Job
from pretrain.loop import run
from pretrain.optimizer import build_optimizer
from pretrain.parallel.collectives import broadcast_from_main
from pretrain.parallel.rng import seed_initialization
from pretrain.parallel.topology import Topology, initialize_topology, leave_process_group
from pretrain.parallel.zero import Engine
from pretrain.run_directory import Claim, claim_run_directory
from pretrain.step import evaluate, evaluate_unless
from pretrain.stop import StopSignals

RESULTS = "results.json"


@dataclass(frozen=True, slots=True)
class TaskData:
    """Tokenised training and validation data."""

    labels: tuple[str, ...]
    train: Examples
    validation: Examples


def finetune(config: FinetuneConfig, signals: StopSignals) -> int:
    """Run a finetuning job on this rank; every rank calls it. Returns the exit code.

    Raises:
        ConfigError, DataError, CheckpointError: Naming what to change.
    """
    source = find_checkpoint(Path(config.pretrained))
    config = with_model(config, read_architecture(source).model)
    data = load_data(config, open_text_codec(source))
    topology = initialize_topology(config.parallel.tensor_model_parallel_size)
    with claim_run_directory(config, topology) as claim:
        if _is_finished(config, topology):
            if topology.is_main:
                print(f"already complete: {Path(config.run_dir) / RESULTS} has the results", flush=True)
            code = 0
        else:
            code = _train(config, source, data, topology, claim, signals)
    leave_process_group()
    return code


def load_data(config: FinetuneConfig, codec: TextCodec) -> TaskData:
    """Read and tokenise both files.

    Raises:
        DataError: A bad row or an unknown label, with file and line.
    """
    columns = config.data.text, config.data.label
    paths = [Path(config.data.train), Path(config.data.validation)]
    train, validation = (read_rows(path, *columns) for path in paths)
    labels = infer_labels(paths[0], train)
    examples = [
        encode_examples(
            codec, [row.text for row in rows], label_ids(path, rows, labels), config.batch.seq_length
        )
        for path, rows in zip(paths, (train, validation), strict=True)
    ]
    return TaskData(labels, *examples)


def build_classifier(
    config: FinetuneConfig, source: Path, num_labels: int, topology: Topology
) -> BertForClassification:
    """The model with pretrained weights and a fresh head, or with random weights throughout."""
    assert isinstance(config.model, BertModelConfig)  # with_model has filled it in
    seed_initialization(config.seed)
    model = BertForClassification(
        config.model,
        num_labels,
        config.task.dropout,
        precision=config.precision,
        tensor_model_parallel_size=config.parallel.tensor_model_parallel_size,
        recompute=config.training.recompute,
    )
    if not config.from_scratch:
        load_parameters(model, read_parameters(source), topology, allow_missing=("head.",))
    return model


def _train(
    config: FinetuneConfig,
    source: Path,
    data: TaskData,
    topology: Topology,
    claim: Claim,
    signals: StopSignals,
) -> int:
    plan = _rank_plan(config, topology)
    steps = evaluation_steps(data.validation, plan)
    model: nn.Module = build_classifier(config, source, len(data.labels), topology)
    engine = Engine(config, model, build_optimizer(model, config.optimizer), topology)
    run_dir = Path(config.run_dir)
    if topology.is_main:
        write_json(run_dir / LABELS, list(data.labels))
        print(_summary(config, source, data), flush=True)
    job = Job(
        config=config,
        topology=topology,
        engine=engine,
        stream=ExampleStream(data.train, plan, config.seed),
        claim=claim,
        signals=signals,
        evaluate=lambda e, stop_now: evaluate_unless(stop_now, e, steps),
        extra_files={LABELS: run_dir / LABELS, **tokenizer_files(source)},
    )
    code = run(job)
    if code == 0:
        results = _results(config, data, evaluate(engine, steps))
        if topology.is_main:
            write_json(run_dir / RESULTS, results)
            print(
                f"accuracy {results['accuracy']:.4f} on {results['n']} validation rows (always the most "
                f"frequent label: {results['majority_class_accuracy']:.4f}); see {run_dir / RESULTS}",
                flush=True,
            )
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


def _results(config: FinetuneConfig, data: TaskData, metrics: dict[str, float]) -> dict[str, Any]:
    most_frequent = np.bincount(data.train.labels).argmax()
    return {
        "accuracy": metrics["accuracy"],
        "loss": metrics["loss"],
        "majority_class_accuracy": float((data.validation.labels == most_frequent).mean()),
        "n": len(data.validation),
        "labels": list(data.labels),
        "from_scratch": config.from_scratch,
        "seed": config.seed,
        "train_steps": config.training.train_steps,
    }


def _summary(config: FinetuneConfig, source: Path, data: TaskData) -> str:
    start = "random weights" if config.from_scratch else str(source)
    cut = data.train.truncated + data.validation.truncated
    shortened = f"; {cut} texts cut to {config.batch.seq_length} tokens" if cut else ""
    return (
        f"classification into {len(data.labels)} labels from {start}: {len(data.train)} training and "
        f"{len(data.validation)} validation rows{shortened}"
    )
