"""Stands in for a training rank: does per rank what the variable FAKE_RANK_<n> or FAKE_RANK says."""

from __future__ import annotations

import os
import signal
import sys
import time


def main() -> int:
    rank = os.environ["RANK"]
    behaviour, _, argument = os.environ.get(
        f"FAKE_RANK_{rank}", os.environ.get("FAKE_RANK", "exit:0")
    ).partition(":")
    print(f"rank {rank} begins")
    print(f"rank {rank} on stderr", file=sys.stderr)
    sys.stdout.flush()
    if behaviour == "exit":
        return int(argument)
    if behaviour == "environment":
        names = (
            "RANK",
            "WORLD_SIZE",
            "LOCAL_RANK",
            "LOCAL_WORLD_SIZE",
            "MASTER_ADDR",
            "MASTER_PORT",
            "OMP_NUM_THREADS",
        )
        print(" ".join(f"{name}={os.environ[name]}" for name in names))
        print("argv", *sys.argv[1:])
    if behaviour == "lost":  # with the task that would have told how it ended
        os.kill(os.getppid(), signal.SIGKILL)
    if behaviour == "suicide":
        os.kill(os.getpid(), signal.SIGKILL)
    if behaviour == "save-on":
        received = []
        signal.signal(signal.Signals[argument], lambda number, _: received.append(number))
        print(f"rank {rank} ready", flush=True)
        while not received:
            time.sleep(0.02)
        print(f"rank {rank} saved on {signal.Signals(received[0]).name}")
        return 75
    if behaviour == "hang":
        for number in (signal.SIGTERM, signal.SIGINT):
            signal.signal(number, lambda number, _: os.write(1, b"ignores signal %d\n" % number))
        print(f"rank {rank} ready, pid {os.getpid()}", flush=True)
        time.sleep(60)
    if behaviour == "progress":
        sys.stdout.write("step 1\rstep 2\rstep 3\ndone\n")
    return 0


if __name__ == "__main__":
    sys.exit(main())
