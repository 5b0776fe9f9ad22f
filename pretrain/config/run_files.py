"""What launchers and ranks both know without torch: files of a run directory, lines of output."""

from __future__ import annotations

OWNER = "attempt.json"
"""The attempt that owns the run (`pretrain.run_directory`)."""
HEARTBEATS = "heartbeats"
"""Each rank's signs of life (`pretrain.watchdog`)."""
BEAT_SECONDS = 5.0
"""Between two of them."""
STOP_FILE = "stop"
"""Asks the ranks to save and stop where no signal reaches them; rank 0 removes it (`pretrain.stop`)."""
RANK_LINE = "HEADWATER-RANK "
"""Begins what a rank of `pretrain.network_check` prints for the launcher."""
