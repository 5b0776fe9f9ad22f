"""Run a plan on this machine: start the ranks, pass signals on, end them together."""

from __future__ import annotations

import ctypes
import os
import queue
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field, replace

from launch import attempts
from launch.machine import free_port
from launch.output import LogFile, Tee, tail
from launch.plan import LaunchPlan, RankPlan
from pretrain.config.exit_codes import OK, STOPPED, WRONG_INPUT, worth_restarting

PEER_GRACE_SECONDS = 5.0
"""After one rank failed the others get this long to notice and say why they end, then they are killed."""

# A closed terminal is a request to save and stop, like SIGTERM.
FORWARDED = {
    signal.SIGTERM: signal.SIGTERM,
    signal.SIGINT: signal.SIGINT,
    signal.SIGUSR1: signal.SIGUSR1,
    signal.SIGUSR2: signal.SIGUSR2,
    signal.SIGHUP: signal.SIGTERM,
}
PR_SET_PDEATHSIG = 1


@dataclass(frozen=True, slots=True)
class RankExited:
    """A rank ended; `code` as subprocess has it, negative for a signal."""

    rank: int
    code: int


@dataclass(frozen=True, slots=True)
class SignalReceived:
    """The launcher was signalled."""

    number: signal.Signals


Event = RankExited | SignalReceived
Events = queue.SimpleQueue[Event]


@dataclass(slots=True)
class Outcome:
    """What the supervision saw."""

    codes: dict[int, int] = field(default_factory=dict)
    """Exit code by rank, in the order in which they ended."""
    failed: int | None = None
    """The rank that failed first."""
    signals: list[signal.Signals] = field(default_factory=list)
    """Signals passed on to the ranks."""


def run(plan: LaunchPlan, max_restarts: int = 0) -> int:
    """Run all ranks of a plan here, and again after a crash or a hang; returns the exit code for the shell.

    Args:
        plan: What to run.
        max_restarts: How often the ranks are started again where that may help.
    """
    for restart in range(1, max_restarts + 2):
        code, signalled = _run_once(plan)
        if signalled or restart > max_restarts or not worth_restarting(code):
            return code
        _say(f"exit code {code}; starting it again from its last checkpoint ({restart} of {max_restarts})")
        plan = replace(plan, master_port=free_port())
    raise AssertionError("the last start returns")


def _run_once(plan: LaunchPlan) -> tuple[int, bool]:
    """Run all ranks of a plan here; the exit code for the shell, and whether the launcher was signalled.

    Rank 0 writes to the terminal; every rank's output is appended to its log in `<run_dir>/logs`. 0 means
    that all ranks finished, 75 that they saved and stopped on a signal, 2 that a rank refused its input,
    128 + n that the run ended by signal n; any other number is the exit code of the rank that failed first.
    """
    attempt = attempts.begin_attempt(plan)
    began = time.monotonic()
    with _signals_as_events() as events:
        ranks = _Ranks(plan, attempt)
        try:
            outcome = _supervise(ranks, events)
        finally:
            ranks.close()
    seconds = time.monotonic() - began
    code = _exit_code(outcome)
    _report(plan, outcome, seconds)
    attempt.record_end(code, seconds)
    return code, bool(outcome.signals)


class _Ranks:
    """The running processes of a plan."""

    def __init__(self, plan: LaunchPlan, attempt: attempts.Attempt) -> None:
        self._processes: list[subprocess.Popen[bytes]] = []
        self._logs: list[LogFile] = []
        self._tees: list[Tee] = []
        die_with_launcher = _death_signal_setter()
        try:
            for rank in plan.ranks:
                log = LogFile(plan.log_path(rank.rank))
                self._logs.append(log)
                log.write_line(attempts.header(attempt, plan, rank.rank).encode())
                self._processes.append(_spawn(rank, log, die_with_launcher))
        except BaseException:
            self.kill()
            raise
        first = self._processes[0]
        for pipe, terminal in ((first.stdout, sys.stdout.buffer), (first.stderr, sys.stderr.buffer)):
            assert pipe is not None
            self._tees.append(Tee(pipe, terminal, self._logs[0]))

    def watch(self, events: Events) -> None:
        """Copy rank 0's output and report every exit as an event."""
        for tee in self._tees:
            tee.start()
        for rank, process in enumerate(self._processes):
            threading.Thread(
                target=lambda rank=rank, process=process: events.put(RankExited(rank, process.wait())),
                daemon=True,
            ).start()

    def __len__(self) -> int:
        return len(self._processes)

    def send(self, number: signal.Signals) -> None:
        """Signal every rank that still runs."""
        for process in self._processes:
            process.send_signal(number)

    def kill(self) -> None:
        """Kill every rank with all that it started."""
        for process in self._processes:
            # The group may outlive its leader, so this does not ask whether the rank still runs.
            with suppress(ProcessLookupError):
                os.killpg(process.pid, signal.SIGKILL)

    def close(self) -> None:
        """Leave nothing behind: processes, threads, files."""
        self.kill()
        for tee in self._tees:
            if tee.is_alive():
                tee.join(timeout=PEER_GRACE_SECONDS)
        for log in self._logs:
            log.close()


def _spawn(rank: RankPlan, log: LogFile, die_with_launcher: Callable[[], None]) -> subprocess.Popen[bytes]:
    shown = rank.rank == 0
    # The variable tells the rank that its log is written here.
    env = {**os.environ, **rank.env, "HEADWATER_LAUNCHER": "local"}
    if shown and sys.stderr.isatty():
        env["HEADWATER_TTY"] = "1"  # rank 0 writes into a pipe; this lets it draw the live line all the same
    return subprocess.Popen(
        rank.argv,
        env=env,
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE if shown else log.fileno(),
        stderr=subprocess.PIPE if shown else subprocess.STDOUT,
        start_new_session=True,  # Ctrl-C reaches the ranks once, through the launcher
        preexec_fn=die_with_launcher,
    )


def _death_signal_setter() -> Callable[[], None]:
    """A function for the child between fork and exec: die when the launcher dies.

    Without it `kill -9` of the launcher leaves ranks that go on writing the run directory.
    """
    libc = ctypes.CDLL(None)
    launcher = os.getpid()

    def set_death_signal() -> None:
        libc.prctl(PR_SET_PDEATHSIG, signal.SIGKILL)
        if os.getppid() != launcher:  # it died before the request was in place
            os._exit(1)

    return set_death_signal


@contextmanager
def _signals_as_events() -> Iterator[Events]:
    """Turn the forwarded signals into events while the block runs."""
    events: Events = queue.SimpleQueue()  # its put() may be called from a signal handler
    previous = {}
    for number in FORWARDED:
        if signal.getsignal(number) == signal.SIG_IGN:
            continue  # nohup: stays ignored
        previous[number] = signal.signal(number, lambda n, _: events.put(SignalReceived(signal.Signals(n))))
    try:
        yield events
    finally:
        for number, handler in previous.items():
            signal.signal(number, handler)


def _supervise(ranks: _Ranks, events: Events) -> Outcome:
    outcome = Outcome()
    ranks.watch(events)
    kill_at: float | None = None
    while len(outcome.codes) < len(ranks):
        try:
            event = events.get(timeout=None if kill_at is None else max(0.0, kill_at - time.monotonic()))
        except queue.Empty:
            ranks.kill()
            kill_at = None
            continue
        if isinstance(event, RankExited):
            outcome.codes[event.rank] = event.code
            if outcome.failed is None and event.code not in (OK, STOPPED):
                outcome.failed = event.rank
                kill_at = time.monotonic() + PEER_GRACE_SECONDS
            continue
        if event.number == signal.SIGINT and signal.SIGINT in outcome.signals:
            ranks.kill()  # a second Ctrl-C: now, without saving
        else:
            ranks.send(FORWARDED[event.number])
        outcome.signals.append(event.number)
    return outcome


def _exit_code(outcome: Outcome) -> int:
    if outcome.failed is not None:
        code = outcome.codes[outcome.failed]
        if code >= 0:
            return code
        return 128 + (outcome.signals[-1] if outcome.signals else -code)
    return STOPPED if STOPPED in outcome.codes.values() else OK


def _report(plan: LaunchPlan, outcome: Outcome, seconds: float) -> None:
    """Say on stderr how the run ended, unless it simply finished."""
    if outcome.failed is None:
        if STOPPED in outcome.codes.values():
            _say("stopped; run the same command again to go on")
        return
    rank, code = outcome.failed, outcome.codes[outcome.failed]
    if outcome.signals and (code < 0 or code > 128):
        _say(f"ended at once by {outcome.signals[-1].name}; what was saved before stays")
        return
    if code == WRONG_INPUT and outcome.codes.get(0) == WRONG_INPUT:
        return  # rank 0 has told the user
    how = f"killed by {signal.Signals(-code).name}" if code < 0 else f"failed with exit code {code}"
    if code == -signal.SIGKILL:
        how += " (was the machine out of memory?)"
    _say(f"rank {rank} of {plan.world_size} {how} after {seconds:.0f} s; its log is {plan.log_path(rank)}")
    if rank != 0:
        print("".join(f"  | {line}\n" for line in tail(plan.log_path(rank))), end="", file=sys.stderr)
    ended = [
        str(other)
        for other in range(plan.world_size)
        if outcome.codes[other] == -signal.SIGKILL and other != rank
    ]
    if ended:
        _say(f"killed the ranks that were left waiting for it: {', '.join(ended)}")


def _say(text: str) -> None:
    print(f"headwater: {text}", file=sys.stderr)
