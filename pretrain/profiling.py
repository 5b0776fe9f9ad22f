"""`training.profile_steps`: where the time of a few steps goes, by phase and by operation, and a trace.

Phases are `record_function` ranges named "phase: ..." in the loop, the step and the models; they cost
microseconds while nothing is profiled. Times are those of the main rank's host: on CPU all there is, on CUDA
the launches, and the trace has the kernels.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import Any

import torch
from torch.profiler import ProfilerActivity, profile

from pretrain.job import Job

WARM_UP_STEPS = 2
"""Steps of an attempt that are not profiled: they allocate, compile and fill caches."""
PHASE = "phase: "
PHASES = ("data", "forward", "loss", "backward", "update", "logging")
COLLECTIVES = ("gloo:", "nccl:")
_OPERATIONS = 10


class StepProfile:
    """Profiles `profile_steps` steps of this attempt, on the main rank."""

    def __init__(self, job: Job, say: Callable[[str], None]) -> None:
        self._steps = job.config.training.profile_steps if job.topology.is_main else 0
        self._directory = job.run_dir / "profile"
        self._say = say
        self._seen = 0
        self._profile: Any = None

    def step_begins(self, step: int) -> None:
        """To be called at the beginning of every step, with the number of steps done so far."""
        if not self._steps:
            return
        if self._seen == WARM_UP_STEPS + self._steps:
            self.finish(step)
        if self._seen == WARM_UP_STEPS:
            activities = [ProfilerActivity.CPU]
            if torch.cuda.is_available():
                activities.append(ProfilerActivity.CUDA)
            self._profile = profile(activities=activities)
            self._profile.start()
        self._seen += 1

    def finish(self, step: int) -> None:
        """End a profile that is running after `step` steps: write the trace, tell the table."""
        if self._profile is None:
            return
        self._profile.stop()
        steps = self._seen - WARM_UP_STEPS
        self._directory.mkdir(exist_ok=True)
        trace = self._directory / f"step-{step:08d}.json.gz"
        self._profile.export_chrome_trace(str(trace))
        lines = [f"profile of {steps} steps up to step {step}, host time of rank 0 for a step:"]
        lines += phase_table(spans(self._profile.events()), steps)
        lines += operation_table(self._profile.key_averages(), steps)
        self._say("\n".join([*lines, f"trace: {trace} (chrome://tracing, ui.perfetto.dev)"]))
        self._profile, self._steps = None, 0


def spans(events: Iterable[Any]) -> dict[str, list[tuple[float, float]]]:
    """(begin, end) in microseconds of every phase and of the collectives."""
    found: dict[str, list[tuple[float, float]]] = {name: [] for name in (*PHASES, "communication")}
    for event in events:
        name = event.name.removeprefix(PHASE)
        if event.name.startswith(COLLECTIVES):
            name = "communication"
        elif name == event.name or name not in found:
            continue
        found[name].append((event.time_range.start, event.time_range.end))
    return found


def phase_table(found: dict[str, list[tuple[float, float]]], steps: int) -> list[str]:
    """A line for each phase: milliseconds of a step and its share. The loss is a part of the forward pass."""
    everything = [span for name in PHASES for span in found[name]]
    if not everything:
        return ["  no phase was recorded"]
    begin, end = min(first for first, _ in everything), max(last for _, last in everything)
    seconds = {name: sum(last - first for first, last in found[name]) for name in PHASES}
    seconds["forward"] -= seconds["loss"]
    seconds["other"] = (end - begin) - sum(seconds.values())
    lines = [_line(name, taken, end - begin, steps) for name, taken in seconds.items()]
    lines.append(_line("whole step", end - begin, end - begin, steps))
    lines.append(_line("communication*", _covered(found["communication"]), end - begin, steps))
    return [*lines, "  * within the phases, overlapped or not"]


def operation_table(averages: Iterable[Any], steps: int) -> list[str]:
    """The operations that take longest by themselves."""
    operations = [row for row in averages if not row.key.startswith(PHASE)]
    operations.sort(key=lambda row: row.self_cpu_time_total, reverse=True)
    whole = sum(row.self_cpu_time_total for row in operations) or 1.0
    return [
        _line(row.key[:40], row.self_cpu_time_total, whole, steps) + f"  {row.count / steps:,.0f} calls"
        for row in operations[:_OPERATIONS]
    ]


def _line(name: str, microseconds: float, whole: float, steps: int) -> str:
    return f"  {name:<40} {microseconds / steps / 1e3:10.2f} ms {100 * microseconds / whole:6.1f} %"


def _covered(intervals: list[tuple[float, float]]) -> float:
    """Length of the union of intervals."""
    covered, reached = 0.0, float("-inf")
    for first, last in sorted(intervals):
        covered += max(0.0, last - max(first, reached))
        reached = max(reached, last)
    return covered
