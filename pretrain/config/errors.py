"""The error of a wrong configuration."""

from __future__ import annotations

from collections.abc import Sequence

from pretrain.config.exit_codes import WRONG_INPUT


class ConfigError(Exception):
    """A configuration that cannot run; carries every problem found, not just the first.

    Attributes:
        problems: One sentence each, naming the key and what to do.
        source: The file; empty where it is not in one.
        exit_code: What the command line exits with.
    """

    exit_code = WRONG_INPUT

    def __init__(self, problems: str | Sequence[str], source: str = "") -> None:
        self.problems = [problems] if isinstance(problems, str) else list(problems)
        self.source = source
        head = f"{source}: " if source else ""
        if len(self.problems) == 1:
            text = head + self.problems[0]
        else:
            text = f"{head}{len(self.problems)} problems:\n" + "\n".join(f"  - {p}" for p in self.problems)
        super().__init__(text)
