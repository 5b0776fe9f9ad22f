"""What the launcher told this process; readable before torch is imported."""

from __future__ import annotations

import os


def world_size_from_environment() -> int:
    """Ranks that the launcher started (WORLD_SIZE); 1 when started by hand."""
    return int(os.environ.get("WORLD_SIZE", "1"))
