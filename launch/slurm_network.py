"""The all-reduce of the preflight: the good nodes reduce together once, within a time limit."""

from __future__ import annotations

import json
import math
import time
from collections.abc import Mapping, Sequence
from contextlib import suppress
from typing import Any

from launch.slurm_nodes import step_lines
from launch.slurm_step import END_SECONDS, Job, Signals, Step, say
from pretrain.config.environment import cpu_is_meant
from pretrain.config.run_files import RANK_LINE

PEER_SECONDS = 5.0
"""After one rank has told an error of its own, others with one get this long."""

Answers = Mapping[int, Mapping[str, Any]]
"""What each rank said last, by rank."""


def network_problems(job: Job, hosts: Sequence[str], port: int, signals: Signals) -> dict[str, str]:
    """The nodes that keep an all-reduce over `hosts` from succeeding, each with what is known of it.

    With GPUs every rank takes part, as in training; without, one for each node.
    """
    per_node = job.ranks_per_node if job.wanted.gpus else 1
    words = ["-m", "pretrain.network_check", "--seconds", f"{job.all_reduce_seconds / 2:g}"]
    if job.wanted.gpus and not cpu_is_meant():
        words.append("--gpu")  # otherwise all of them would train on the CPU
    env = {"MASTER_ADDR": hosts[0], "MASTER_PORT": str(port)}
    world_size, answers = len(hosts) * per_node, dict[int, dict[str, Any]]()
    known_at = math.inf
    with Step(job.questions(hosts, per_node, words), env, captured=True) as step:
        for text in step_lines(step, job.all_reduce_seconds, signals):
            for answer in read_answers(text):
                answers[answer["rank"]] = answer
                if answer.get("problem") and not answer["waited"]:
                    known_at = min(known_at, time.monotonic())
            if time.monotonic() > known_at + PEER_SECONDS:
                break  # the others only wait for that one
            if sum(answer["state"] == "done" for answer in answers.values()) == world_size:
                step.wait(END_SECONDS)
                break
    took = max((answer.get("seconds", 0.0) for answer in answers.values()), default=0.0)
    found = blame(hosts, per_node, answers, job.all_reduce_seconds)
    if not found:
        say(f"all-reduce over {len(hosts)} nodes, {world_size} ranks: right after {took:.2g} s")
    return found


def read_answers(line: str) -> list[dict[str, Any]]:
    """The answers in a line of the step's output; srun may run the lines of two ranks together."""
    found = []
    for text in line.split(RANK_LINE)[1:]:
        with suppress(ValueError):  # cut by other output
            found.append(json.JSONDecoder().raw_decode(text)[0])
    return found


def blame(hosts: Sequence[str], per_node: int, answers: Answers, seconds: float) -> dict[str, str]:
    """The nodes that it failed on: those with an error of their own; else the silent ones; else who waited.

    Args:
        hosts: In the order of the ranks.
        per_node: Ranks on each.
        answers: What the ranks said.
        seconds: What they had.
    """
    ranks = range(len(hosts) * per_node)
    silent = [rank for rank in ranks if rank not in answers]
    failed = [rank for rank in ranks if rank not in silent and _problem(answers[rank])]
    own = [rank for rank in failed if not answers[rank].get("waited", True)]
    found: dict[str, str] = {}
    for rank in own or silent or failed:
        text = "is silent" if rank in silent else str(_problem(answers[rank]))
        found.setdefault(hosts[rank // per_node], f"all-reduce within {seconds:g} s: rank {rank}: {text}")
    return found


def _problem(answer: Mapping[str, Any]) -> str | None:
    if answer["state"] == "ready":
        return "did not end; is the network interface right (NCCL_SOCKET_IFNAME, GLOO_SOCKET_IFNAME)?"
    return None if answer["problem"] is None else str(answer["problem"])
