"""Exit codes of training jobs: what a launcher or a batch script may rely on (docs/reliability.md)."""

from __future__ import annotations

OK = 0
"""Complete."""
CRASH = 1
"""An error of the program or the machine, with a traceback in the rank's log."""
WRONG_INPUT = 2
"""The config, the data or a checkpoint is not usable; the message says what to change."""
DIVERGED = 3
"""Loss or gradient stay bad also after rolling back; nothing was saved over the good checkpoints."""
STORAGE = 74
"""A checkpoint or a log could not be written, the disk is full (EX_IOERR); earlier checkpoints are whole."""
STOPPED = 75
"""Asked to stop by a signal or the time limit, and saved (EX_TEMPFAIL): the same command goes on."""
HUNG = 76
"""The watchdog ended a job that no longer moved; its report names the silent rank."""
REPLACED = 77
"""A newer attempt has taken the run over; this one was no longer allowed to write."""

NOT_WORTH_RESTARTING = frozenset({OK, WRONG_INPUT, DIVERGED, STORAGE, STOPPED, REPLACED})


def worth_restarting(code: int) -> bool:
    """Whether starting the same job again by itself may help: after a crash, a hang, a killed rank.

    STOPPED is not among them: whoever stopped the job decides when it goes on.

    Args:
        code: of a process, as the shell (128 + n) or as subprocess (-n) has it for signal n.
    """
    return code not in NOT_WORTH_RESTARTING
