"""The cluster part of `headwater check`: node counts, device memory, time limit against measured steps."""

from __future__ import annotations

import math
from pathlib import Path

from launch.cluster import ClusterConfig, SlurmClusterConfig, time_limit_seconds
from launch.estimate import rank_memory, readable_bytes
from launch.findings import Finding
from launch.lead_time import lead_seconds, measured_lead_seconds, save_seconds, step_seconds
from launch.manage import last_step
from launch.slurm import usable_node_counts
from pretrain.config import ConfigError, JobConfig, RunConfig

GIB = 1 << 30


def smallest_world_size(cluster: ClusterConfig) -> int:
    """Ranks of the smallest attempt: where a rank holds most."""
    nodes = cluster.min_nodes if isinstance(cluster, SlurmClusterConfig) else 1
    return nodes * cluster.ranks_per_node


def cluster_findings(config: JobConfig, cluster: ClusterConfig) -> list[Finding]:
    """What a run meets on a cluster, apart from what `headwater check` looks at anyway."""
    findings = []
    if isinstance(config, RunConfig) and cluster.device_memory_gb:
        findings.append(_device_finding(config, cluster))
    if not isinstance(cluster, SlurmClusterConfig):
        return findings
    try:
        counts = usable_node_counts(config, cluster)
    except ConfigError as error:
        return [*findings, *(Finding("error", "nodes", problem) for problem in error.problems)]
    return [_nodes_finding(cluster, counts), *findings, _time_finding(config, cluster)]


def _nodes_finding(cluster: SlurmClusterConfig, counts: tuple[int, ...]) -> Finding:
    text = f"runs on {', '.join(map(str, counts))} of {cluster.nodes} nodes, the batch is the same on each"
    idle = cluster.max_nodes - counts[-1]
    if idle:
        return Finding("warning", "nodes", f"{text}; with {cluster.max_nodes}, {idle} would be idle")
    return Finding("ok", "nodes", text)


def _device_finding(config: RunConfig, cluster: ClusterConfig) -> Finding:
    ranks = smallest_world_size(cluster)
    need, have = rank_memory(config, ranks).total, cluster.device_memory_gb * GIB
    text = f"about {readable_bytes(need)} on {ranks} ranks, a device has {readable_bytes(have)}"
    if need > have:
        return Finding("error", "device", f"{text}; use more ranks, a higher zero_stage or recompute: full")
    return Finding("warning" if need > 0.9 * have else "ok", "device", text)


def _time_finding(config: JobConfig, cluster: SlurmClusterConfig) -> Finding:
    run_dir, limit = Path(config.run_dir), time_limit_seconds(cluster.time_limit)
    auto = cluster.signal_lead_seconds == "auto"
    lead = lead_seconds(run_dir, limit) if auto else int(cluster.signal_lead_seconds)
    measured = measured_lead_seconds(run_dir)
    if measured is None:
        text = f"an attempt has {limit - lead} s of {limit}; how many it takes is known after the first steps"
        return Finding("ok", "time", text)
    step, save = max(step_seconds(run_dir)), max(save_seconds(run_dir), default=0.0)
    done = last_step(run_dir)
    left = config.training.train_steps - (int(done["step"]) if done else 0)
    attempts = math.ceil(left * step / max(1, limit - lead))
    text = (
        f"{left} steps of at most {step:.3g} s: {attempts} attempt{'s' if attempts != 1 else ''} of {limit} s"
    )
    text += f"; saves take {save:.3g} s, the lead is {lead} s"
    if step + save > lead:
        return Finding(
            "error", "time", f"{text}, too short for a step and a save; raise it or the time limit"
        )
    return Finding("warning" if measured > lead else "ok", "time", text)
