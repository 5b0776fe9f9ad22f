"""The token stream: order and mixing computed, blocks read from shards, samples, objectives, prefetch.

numpy only; the training step turns arrays into tensors.
"""

from pretrain.data.settings import StreamConfig
from pretrain.data.stream import Stream, eval_batches, open_stream

__all__ = ["Stream", "StreamConfig", "eval_batches", "open_stream"]
