"""Keys and values of the tokens so far, so that writing one more token reads one token."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

from torch import Tensor, nn

from pretrain.models.attention import SdpaCoreAttention


class KeyValueCache:
    """What one layer's attention has seen.

    Shapes: S new tokens, T all tokens so far, B sequences, G query groups on this rank, D head size.
    """

    def __init__(self, length: int) -> None:
        """Make room.

        Args:
            length: Most tokens that will ever be in it.
        """
        self._length, self._size = length, 0
        self._keys: Tensor | None = None
        self._values: Tensor | None = None

    def extend(self, key: Tensor, value: Tensor) -> tuple[Tensor, Tensor]:
        """Append [S, B, G, D] keys and values; returns all, [T, B, G, D]."""
        if self._keys is None or self._values is None:
            self._keys = key.new_empty(self._length, *key.shape[1:])
            self._values = value.new_empty(self._length, *value.shape[1:])
        first, self._size = self._size, self._size + key.shape[0]
        if self._size > self._length:
            raise ValueError(f"{self._size} tokens in a cache for {self._length}")
        self._keys[first : self._size] = key
        self._values[first : self._size] = value
        return self._keys[: self._size], self._values[: self._size]


@contextmanager
def cached_attention(model: nn.Module, length: int) -> Iterator[None]:
    """Every attention layer of a model keeps what it sees while the block runs.

    Each call then gets the new tokens, their positions, and an attention mask over all tokens so far.

    Args:
        model: Ours, without gradients.
        length: Most tokens in all calls together.
    """
    layers = [module for module in model.modules() if isinstance(module, SdpaCoreAttention)]
    for layer in layers:
        layer.cache = KeyValueCache(length)
    try:
        yield
    finally:
        for layer in layers:
            layer.cache = None
