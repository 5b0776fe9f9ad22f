"""What a preflight check found, and the report that shows it."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

Level = Literal["ok", "warning", "error"]


@dataclass(frozen=True, slots=True)
class Finding:
    """One line of the report."""

    level: Level
    topic: str
    text: str


def report(title: str, findings: Sequence[Finding]) -> str:
    """The findings in their order, one line each, and a count at the end."""
    lines = [title]
    for finding in findings:
        lines.append(f"  {finding.level:<8} {finding.topic:<10} {finding.text}")
    counts = [(sum(f.level == level for f in findings), level) for level in ("error", "warning")]
    told = ", ".join(f"{count} {level}{'s' if count > 1 else ''}" for count, level in counts if count)
    lines.append(told or "no problems found")
    return "\n".join(lines)


def has_errors(findings: Sequence[Finding]) -> bool:
    """Whether the run cannot start."""
    return any(finding.level == "error" for finding in findings)
