"""Whether the nodes of a job can run it together: compares what `launch.node_facts` found on each."""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from launch.node_facts import PREFIX


@dataclass(frozen=True, slots=True, kw_only=True)
class Wanted:
    """What every node must have."""

    gpus: int = 0
    min_memory_gb: float = 0.0
    min_disk_gb: float = 0.0
    """In the run directory."""
    run_dir: str = ""
    scratch_paths: tuple[str, ...] = field(default=())
    min_scratch_gb: float = 0.0
    max_clock_skew_seconds: float = 30.0


@dataclass(frozen=True, slots=True)
class NodeFacts:
    """One node's line, and when it was read here."""

    facts: Mapping[str, Any]
    received: float

    @property
    def host(self) -> str:
        """SLURM's name of the node."""
        return str(self.facts["host"])


def read_line(line: str, received: float) -> list[NodeFacts]:
    """The facts in a line of a step's output, none in most; srun may run the lines of two nodes together."""
    found = []
    for text in line.split(PREFIX)[1:]:
        try:
            facts, _ = json.JSONDecoder().raw_decode(text)
        except ValueError:
            continue  # cut by other output: the node counts as silent
        found.append(NodeFacts(facts, received))
    return found


def bad_nodes(
    hosts: Sequence[str], answers: Sequence[NodeFacts], wanted: Wanted, timeout: float
) -> dict[str, str]:
    """The nodes that must not take part, in the order of `hosts`, each with all that is wrong with it.

    Args:
        hosts: The nodes of the job; the first one is where ranks meet.
        answers: What those that answered said.
        wanted: What every node must have.
        timeout: Seconds that they had.
    """
    by_host = {answer.host: answer for answer in answers}
    common = _common_versions(hosts, by_host)
    bad = {}
    for host in hosts:
        if host not in by_host:
            bad[host] = (
                f"no answer within {timeout:.0f} s (switched off, unreachable, or Python does not start)"
            )
        elif problems := _problems(by_host[host], common, wanted):
            bad[host] = "; ".join(problems)
    return bad


def _common_versions(hosts: Sequence[str], by_host: Mapping[str, NodeFacts]) -> dict[str, str | None]:
    """Each package's version on most nodes; in a tie, that of the earlier node."""
    listed = [by_host[host].facts["versions"] for host in hosts if host in by_host]
    names = sorted({name for versions in listed for name in versions})
    # Counter.most_common keeps the order of first appearance among equals.
    return {name: Counter(versions.get(name) for versions in listed).most_common(1)[0][0] for name in names}


def _problems(answer: NodeFacts, common: Mapping[str, str | None], wanted: Wanted) -> list[str]:
    facts = answer.facts
    problems = [text for text in (facts["run_dir"], facts["reach"]) if text]
    for name, version in common.items():
        if (here := facts["versions"].get(name)) != version:
            problems.append(f"{name} {here or 'is not installed'}, other nodes have {version or 'none'}")
    if facts["gpus"] < wanted.gpus:
        problems.append(f"{facts['gpus']} GPUs, {wanted.gpus} are wanted")
    if facts["memory_gb"] < wanted.min_memory_gb:
        problems.append(f"{facts['memory_gb']:g} GB of memory free, {wanted.min_memory_gb:g} are wanted")
    needs = {wanted.run_dir: wanted.min_disk_gb} | dict.fromkeys(wanted.scratch_paths, wanted.min_scratch_gb)
    for path, need in needs.items():
        free = facts["disk_gb"].get(path)
        if free is None and path != wanted.run_dir:
            problems.append(f"{path} is not there")
        elif free is not None and free < need:
            problems.append(f"{free:g} GB free at {path}, {need:g} are wanted")
    skew = answer.received - facts["time"]
    if abs(skew) > wanted.max_clock_skew_seconds:
        problems.append(f"its clock is {abs(skew):.0f} s {'behind' if skew > 0 else 'ahead'}")
    return problems
