"""Where the bytes of shards come from: local files, range requests, a cache on disk, commands.

All of them give the same bytes, so neither the order of samples nor the state depends on the choice.
"""

from pretrain.data.access.errors import AccessError
from pretrain.data.access.opening import open_source, open_tables
from pretrain.data.access.source import Source

__all__ = ["AccessError", "Source", "open_source", "open_tables"]
