"""One rank reads, those that need the same batches get them from it: tensor-parallel ranks of a data rank.

The next step is on its way while the current one is computed. Everything happens in the thread that asks for
steps, in the order in which it asks, so ranks that run the same loop cannot get out of step; there is no
thread to stop, and nothing on disk or in shared memory to leave behind. An error of the reading rank is sent
instead of a step and raised on all of them.
"""

from __future__ import annotations

import json
from collections.abc import Callable
from typing import Any, Protocol

import numpy as np

from data_tools.errors import DataError
from pretrain.data.objectives import MicroBatch

Step = list[MicroBatch]
Bytes = bytes | bytearray | memoryview

_ALIGNMENT = 16


class Channel(Protocol):
    """From one rank to the others of its group.

    Attributes:
        is_reader: this rank sends.
    """

    is_reader: bool

    def post(self, message: Bytes | None) -> Callable[[], Bytes]:
        """Begin to hand a message over; every rank of the group calls it as often.

        Args:
            message: on the reader; None on the others.

        Returns:
            A function that waits for the message and gives it, writable on the others.
        """


class ReadableStream(Protocol):
    """What is shared: a `Stream`."""

    consumed_samples: int

    @property
    def consumed_tokens(self) -> int:
        """Tokens handed out."""

    def __next__(self) -> Step:
        """The next step."""

    def epochs(self) -> dict[str, float]:
        """Passes over each corpus."""

    def skipped(self, consumed_samples: int | None = None) -> dict[str, float]:
        """What was left out."""

    def state_dict(self) -> dict[str, Any]:
        """The cursor."""

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Go on behind a cursor."""

    def close(self) -> None:
        """Close the shards."""


class SharedStream:
    """A stream like the reader's, on every rank of a group.

    Attributes:
        consumed_samples: samples of all ranks in the steps handed out.
    """

    def __init__(self, open_stream: Callable[[], ReadableStream], channel: Channel) -> None:
        """Open the stream on the reader; every rank of the group calls this.

        Args:
            open_stream: called on the reader only.
            channel: to the other ranks.

        Raises:
            DataError: on every rank, whatever the reader failed with.
        """
        self._channel = channel
        self._stream: ReadableStream | None = None
        self._next: tuple[Callable[[], Bytes], Message] | None = None
        self._position: dict[str, Any] = {}
        self.consumed_samples = 0

        def opened() -> Step:
            self._stream = open_stream()
            return []

        self._take(self._post(opened))

    def __iter__(self) -> SharedStream:
        return self

    def __next__(self) -> Step:
        current = self._next or self._post(self._read)
        self._next = None
        step = self._take(current)
        self._next = self._post(self._read)
        return step

    @property
    def consumed_tokens(self) -> int:
        """Tokens of all ranks in the steps handed out."""
        return int(self._position["consumed_tokens"])

    def epochs(self) -> dict[str, float]:
        """Passes over each corpus so far, by name."""
        return dict(self._position["epochs"])

    def skipped(self, consumed_samples: int | None = None) -> dict[str, float]:
        """As `Stream.skipped`, on the reader; empty elsewhere."""
        end = self.consumed_samples if consumed_samples is None else consumed_samples
        return self._stream.skipped(end) if self._stream else {}

    def state_dict(self) -> dict[str, Any]:
        """As `Stream.state_dict`, on every rank."""
        return dict(self._position["state"])

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """As `Stream.load_state_dict`; every rank of the group calls it.

        Raises:
            DataError: on every rank.
        """
        if self._next:
            self._next[0]()  # a step that nobody will ask for
            self._next = None

        def load() -> Step:
            assert self._stream is not None
            self._stream.load_state_dict(state)
            return []

        self._take(self._post(load))

    def close(self) -> None:
        """Close the reader's shards. Waits for nobody: another rank may be gone."""
        self._next = None
        if self._stream:
            self._stream.close()

    def _read(self) -> Step:
        assert self._stream is not None
        return next(self._stream)

    def _post(self, make: Callable[[], Step]) -> tuple[Callable[[], Bytes], Message]:
        """Make a message on the reader, and begin to hand it over."""
        if not self._channel.is_reader:
            return self._channel.post(None), Message([], {}, None)
        message = Message.of(make, self._describe)
        return self._channel.post(message.pack()), message

    def _take(self, posted: tuple[Callable[[], Bytes], Message]) -> Step:
        """Wait for a message and act on it."""
        wait, message = posted
        content = wait()
        if not self._channel.is_reader:
            message = Message.unpack(content)
        step = message.steps_or_error()
        self._position = message.position
        self.consumed_samples = int(message.position["consumed_samples"])
        return step

    def _describe(self) -> dict[str, Any]:
        assert self._stream is not None
        return {
            "consumed_samples": self._stream.consumed_samples,
            "consumed_tokens": self._stream.consumed_tokens,
            "epochs": self._stream.epochs(),
            "state": self._stream.state_dict(),
        }


def share_stream(
    open_stream: Callable[[], ReadableStream], channel: Channel | None
) -> ReadableStream | SharedStream:
    """A stream on every rank of a group, read by one of them; without a channel the stream itself."""
    return SharedStream(open_stream, channel) if channel else open_stream()


def share_steps(make: Callable[[], list[Step]], channel: Channel | None) -> list[Step]:
    """Steps that the reader makes, on every rank of a group; without a channel simply those.

    Raises:
        DataError: on every rank, whatever the reader failed with.
    """
    if channel is None:
        return make()
    sizes: list[int] = []

    def flat() -> Step:
        steps = make()
        sizes.extend(len(step) for step in steps)
        return [batch for step in steps for batch in step]

    if channel.is_reader:
        message = Message.of(flat, lambda: {"sizes": sizes})
        channel.post(message.pack())()
    else:
        message = Message.unpack(channel.post(None)())
    batches = iter(message.steps_or_error())
    return [[next(batches) for _ in range(size)] for size in message.position["sizes"]]


def _padded(size: int) -> int:
    return -(-size // _ALIGNMENT) * _ALIGNMENT


class Message:
    """What one rank tells the others: micro-batches and where the stream stands, or an error."""

    def __init__(self, step: Step, position: dict[str, Any], error: Exception | None) -> None:
        self.step, self.position, self.error = step, position, error

    @classmethod
    def of(cls, make: Callable[[], Step], describe: Callable[[], dict[str, Any]]) -> Message:
        """What a function makes, and then a description; the error of either."""
        try:
            step = make()
            return cls(step, describe(), None)
        except Exception as error:  # raised again by `steps_or_error`, on every rank
            return cls([], {}, error)

    def steps_or_error(self) -> Step:
        """The micro-batches; raises what the reader failed with."""
        if self.error is not None:
            raise self.error
        return self.step

    def pack(self) -> memoryview:
        """One row of bytes: length of the header, header, arrays."""
        error = None
        if self.error is not None:
            by_user = getattr(self.error, "exit_code", None) == DataError.exit_code
            error = {"data": by_user, "text": f"{self.error}"}
            if not error["data"]:
                error["text"] = f"{type(self.error).__name__}: {self.error}"
        batches = [
            [(name, array.dtype.str, array.shape) for name, array in batch.items()] for batch in self.step
        ]
        header = json.dumps({"position": self.position, "error": error, "batches": batches}).encode()
        arrays = [array for batch in self.step for array in batch.values()]
        at = _ALIGNMENT + _padded(len(header))
        row = np.zeros(at + sum(_padded(array.nbytes) for array in arrays), dtype=np.uint8)
        row[:_ALIGNMENT] = np.frombuffer(len(header).to_bytes(_ALIGNMENT, "little"), dtype=np.uint8)
        row[_ALIGNMENT : _ALIGNMENT + len(header)] = np.frombuffer(header, dtype=np.uint8)
        for array in arrays:
            place = row[at : at + array.nbytes].view(array.dtype).reshape(array.shape)
            place[...] = array
            at += _padded(array.nbytes)
        return row.data

    @classmethod
    def unpack(cls, content: Bytes) -> Message:
        """The inverse of `pack`; the arrays are views of the content."""
        view = memoryview(content)
        length = int.from_bytes(view[:_ALIGNMENT], "little")
        header = json.loads(bytes(view[_ALIGNMENT : _ALIGNMENT + length]))
        at = _ALIGNMENT + _padded(length)
        step: Step = []
        for described in header["batches"]:
            batch: MicroBatch = {}
            for name, kind, shape in described:
                count = int(np.prod(shape, dtype=np.int64))
                array = np.frombuffer(view, dtype=kind, count=count, offset=at).reshape(shape)
                batch[name] = array
                at += _padded(array.nbytes)
            step.append(batch)
        error = header["error"]
        if error is None:
            return cls(step, header["position"], None)
        text = f"{error['text']} (on the rank that reads for this one)"
        return cls([], {}, DataError(text) if error["data"] else RuntimeError(text))
