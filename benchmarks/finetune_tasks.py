"""What pretraining is worth: tasks on real documentation, from a pretrained BERT and from random weights.

    python -m benchmarks.finetune_tasks --out runs/finetune-tasks

pretrains a BERT of 1 M parameters on the manual pages and Python documentation of this machine, finetunes it
and the same network from random weights with the same settings and three seeds each, and prints a table:
about half an hour on two cores. What is done is not done again; `--pretrained` takes another BERT.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from itertools import product
from pathlib import Path
from statistics import mean, stdev
from typing import Any

import yaml

from benchmarks.finetuning.data import build
from benchmarks.machine import describe

HEADWATER = (sys.executable, "-m", "launch.cli")
SEEDS = (1, 2, 3)
STARTS = ("pretrained", "random")
LABELLED = 256
"""Rows whose labels teachers and students without one have; a taught student has the texts of all rows."""
STUDENTS = ("distilled", "alone")
"""One layer from random weights, with the teacher of the same seed, and without."""
STUDENT_STEPS = 300
SCORES = {
    "classification": ("accuracy", "majority_class_accuracy"),
    "tagging": ("f1", None),
    "question_answering": ("f1", None),
}
STEPS = {"classification": 100, "tagging": 120, "question_answering": 1000}
LENGTHS = {"classification": 64, "tagging": 96, "question_answering": 128}
PRETRAINING = {
    "model.max_position_embeddings": 160,
    "batch.seq_length": 128,
    "batch.micro_batch_size": 16,
    "batch.global_batch_size": 32,
    "training.train_steps": 1800,
    "training.log_interval": 100,
    "training.eval_interval": 600,
    "checkpoint.save_interval": 600,
}
"""What differs from configs/demo/bert.yaml: longer sequences, and twice as many tokens."""


def main(argv: Sequence[str] | None = None) -> int:
    """Run what is not done yet and print the table; returns the exit code."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--out", type=Path, required=True, help="directory for data and runs")
    parser.add_argument("--pretrained", type=Path, help="a run or checkpoint instead of the own pretraining")
    parser.add_argument("--task", action="append", choices=list(SCORES), help="default: all; repeatable")
    parser.add_argument("--parallel", type=int, default=2, help="finetuning runs side by side; default: 2")
    parser.add_argument("--only-data", action="store_true", help="stop when the corpus is prepared")
    args = parser.parse_args(argv)
    data = args.out / "data"
    prepare(data)
    if args.only_data:
        return 0
    pretrained = args.pretrained or pretrain(args.out, data)
    tasks = args.task or list(SCORES)
    for task in tasks:
        starts = product(SEEDS, STARTS)
        side_by_side(
            args.parallel, [settings(args.out, data, pretrained, task, (start, n)) for n, start in starts]
        )
        print(report(args.out, [task]), flush=True)
    if "classification" in tasks:
        side_by_side(args.parallel, [teacher(args.out, data, pretrained, n) for n in SEEDS])
        students = product(SEEDS, STUDENTS)
        side_by_side(args.parallel, [student(args.out, data, pretrained, name, n) for n, name in students])
        print(report_students(args.out))
    print("\n" + report(args.out, tasks))
    return 0


def prepare(data: Path) -> None:
    """The rows of the tasks, a tokenizer and token shards."""
    if not (data / "counts.json").exists():
        data.mkdir(parents=True, exist_ok=True)
        counts = build(data)
        (data / "counts.json").write_text(json.dumps(counts, indent=2) + "\n", encoding="utf-8")
    source = ("--input", str(data / "corpus.jsonl"))
    tokenizer, corpus = data / "tokenizer.model", data / "corpus"
    if not tokenizer.exists():
        sizes = ("--vocab-size", "4096", "--max-train-mb", "8")
        headwater("data", "tokenizer", *source, *sizes, "--out", str(tokenizer))
    if not corpus.exists():
        options = ("--tokenizer", str(tokenizer), "--sentences", "--validation-fraction", "0.02")
        headwater("data", "prepare", *source, *options, "--workers", "1", "--out", str(corpus))


def pretrain(out: Path, data: Path) -> Path:
    """Our own BERT; goes on where an earlier attempt ended."""
    settings = PRETRAINING | {"run_dir": out / "bert", "data.corpora.0.path": data / "corpus"}
    headwater("launch", "local", "--nproc", "2", "--config", "configs/demo/bert.yaml", *_set(settings))
    return out / "bert"


def side_by_side(count: int, configs: Sequence[dict[str, Any]]) -> None:
    """Run some configs, `count` at a time."""
    with ThreadPoolExecutor(count) as pool:
        for _ in pool.map(run, configs):
            pass


def few_rows(out: Path, data: Path) -> Path:
    """File of the rows whose labels teachers have."""
    few = out / f"classification-{LABELLED}.jsonl"
    if not few.exists():
        rows = rows_of(data, "classification", "train").read_text(encoding="utf-8").splitlines(keepends=True)
        few.write_text("".join(rows[:LABELLED]), encoding="utf-8")
    return few


def teacher(out: Path, data: Path, pretrained: Path, seed: int) -> dict[str, Any]:
    """Config of the whole pretrained network, trained on few labels."""
    config = settings(out, data, pretrained, "classification", (f"teacher-{LABELLED}", seed))
    return config | {"data": config["data"] | {"train": str(few_rows(out, data))}}


def student(out: Path, data: Path, pretrained: Path, name: str, seed: int) -> dict[str, Any]:
    """Config of a classifier of half the layers from random weights, with a teacher or without.

    Alone it has the teacher's rows; with the teacher it has the texts of all rows, and no label counts.
    """
    config = teacher(out, data, pretrained, seed)
    taught_by = config["run_dir"]
    large = yaml.safe_load((Path(taught_by) / "config.yaml").read_text(encoding="utf-8"))["model"]
    config |= {
        "run_dir": str(_run_dir(out, "classification", f"{name}-{LABELLED}", seed)),
        "from_scratch": True,
        "model": large | {"num_layers": large["num_layers"] // 2},
        "training": config["training"] | {"train_steps": STUDENT_STEPS},
    }
    if name == "distilled":
        config["data"] = config["data"] | {"train": str(rows_of(data, "classification", "train"))}
        config["distillation"] = {"teacher": taught_by, "logits_weight": 1.0}
    return config


def settings(out: Path, data: Path, pretrained: Path, task: str, which: tuple[str, int]) -> dict[str, Any]:
    """Config of a run; `which` is how it starts and its seed."""
    start, seed = which
    run_dir = _run_dir(out, task, start, seed)
    return {
        "run_dir": str(run_dir),
        "seed": seed,
        "pretrained": str(pretrained),
        "from_scratch": start == "random",
        "task": {"kind": task} | ({"stride": 32} if task == "question_answering" else {}),
        "data": {split: str(rows_of(data, task, split)) for split in ("train", "validation")},
        "batch": {"micro_batch_size": 16, "global_batch_size": 32, "seq_length": LENGTHS[task]},
        "optimizer": {"lr": 1e-3, "weight_decay": 0.01, "beta2": 0.999},
        "schedule": {"kind": "linear", "lr_warmup_steps": STEPS[task] // 10},
        "precision": "fp32",
        "checkpoint": {"save_interval": 10_000},
        "training": {"train_steps": STEPS[task], "log_interval": 50},
    }


def run(config: dict[str, Any]) -> None:
    """Finetune, unless the results are there."""
    run_dir = Path(config["run_dir"])
    if (run_dir / "results.json").exists():
        return
    run_dir.mkdir(parents=True, exist_ok=True)
    path = run_dir.with_suffix(".yaml")
    path.write_text(yaml.safe_dump(config, sort_keys=False), encoding="utf-8")
    headwater("finetune", "--config", str(path))


def rows_of(data: Path, task: str, split: str) -> Path:
    """File of a task."""
    if task == "classification":
        return data / "python" / "classification" / f"{split}.jsonl"
    return data / f"{task}-{split}.jsonl"


def report(out: Path, tasks: Sequence[str]) -> str:
    """The table, with the machine that it was made on."""
    rows = []
    for task in tasks:
        score, baseline = SCORES[task]
        results = {
            start: [json.loads((_run_dir(out, task, start, s) / "results.json").read_text()) for s in SEEDS]
            for start in STARTS
        }
        found = {start: [100 * result[score] for result in results[start]] for start in STARTS}
        margins = [a - b for a, b in zip(found["pretrained"], found["random"], strict=True)]
        first = results["pretrained"][0]
        rows.append(
            [
                task.replace("_", " "),
                score + (f" (always the largest class: {100 * first[baseline]:.1f})" if baseline else ""),
                str(first["n"]),
                *(_spread(found[start]) for start in STARTS),
                f"{mean(margins):+.1f} ({min(margins):+.1f} to {max(margins):+.1f})",
            ]
        )
    header = ["task", "score, %", "validation rows", "pretrained", "random weights", "margin (least, most)"]
    lines = [header, ["---"] * len(header), *rows]
    told = "\n".join(f"| {' | '.join(line)} |" for line in lines)
    return f"{told}\n\n3 seeds each, mean ± standard deviation. {describe()}"


def report_students(out: Path) -> str:
    """The table of the teachers and students."""
    lines = [f"| {LABELLED} labels | accuracy, % |", "|---|---|"]
    for name in ("teacher", *STUDENTS):
        runs = [_run_dir(out, "classification", f"{name}-{LABELLED}", seed) for seed in SEEDS]
        found = [100 * json.loads((run / "results.json").read_text())["accuracy"] for run in runs]
        lines.append(f"| {name} | {_spread(found)} |")
    return "\n" + "\n".join(lines)


def _spread(values: Sequence[float]) -> str:
    return f"{mean(values):.1f} ± {stdev(values):.1f}"


def _run_dir(out: Path, task: str, start: str, seed: int) -> Path:
    return out / "runs" / f"{task}-{start}-{seed}"


def _set(settings: dict[str, Any]) -> list[str]:
    return [word for key, value in settings.items() for word in ("--set", f"{key}={value}")]


def headwater(*words: str) -> None:
    """Run a command of ours; its failure ends the benchmark."""
    print("$ headwater", *words, flush=True)
    subprocess.run([*HEADWATER, *words], check=True, env=os.environ | {"OMP_NUM_THREADS": "1"})


if __name__ == "__main__":
    sys.exit(main())
