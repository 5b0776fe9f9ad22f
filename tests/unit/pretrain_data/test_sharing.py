from __future__ import annotations

import queue
import threading
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest

from data_tools.errors import DataError
from pretrain.config import ConfigError
from pretrain.data import eval_batches, open_stream
from pretrain.data.sharing import Message, SharedStream, share_steps, share_stream
from tests.unit.pretrain_data.support import run_config
from tests.unit.pretrain_data.test_remote import assert_same

RANKS = 3
SECONDS = 20


class Line:
    """A channel of queues between threads; what a rank posts is what all ranks receive, in order."""

    def __init__(self, rank: int, queues: list[queue.Queue[bytes]]) -> None:
        self.is_reader, self._rank, self._queues = rank == 0, rank, queues
        self.posts = 0

    def post(self, message: bytes | None) -> Callable[[], bytearray | bytes]:
        self.posts += 1
        if message is None:
            return lambda: bytearray(self._queues[self._rank].get(timeout=SECONDS))
        for line in self._queues[1:]:
            line.put(bytes(message))
        return lambda: message


def on_ranks(act: Callable[[Line], Any]) -> list[Any]:
    """What a function gives, or raises, on each of the ranks of a group."""
    queues: list[queue.Queue[bytes]] = [queue.Queue() for _ in range(RANKS)]
    results: list[Any] = [None] * RANKS

    def run(rank: int) -> None:
        try:
            results[rank] = act(Line(rank, queues))
        except Exception as error:
            results[rank] = error

    threads = [threading.Thread(target=run, args=(rank,), daemon=True) for rank in range(RANKS)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(SECONDS)
        assert not thread.is_alive()
    return results


def test_all_ranks_get_the_batches_that_one_reads(kind, corpora, tmp_path):
    run = run_config(kind, tmp_path, corpora)
    opened = []

    def act(line):
        def open_it():
            opened.append(1)
            return open_stream(run)

        stream = share_stream(open_it, line)
        found = []
        for _ in range(5):
            found.append((next(stream), stream.state_dict(), stream.epochs(), stream.consumed_samples))
            assert stream.consumed_tokens == stream.consumed_samples * 32
        stream.close()
        return found

    results = on_ranks(act)
    assert opened == [1]
    with open_stream(run) as alone:
        for number in range(5):
            step = next(alone)
            for result in results:
                ours, state, epochs, consumed = result[number]
                assert_same([ours], [step])
                assert state == alone.state_dict() and epochs == alone.epochs()
                assert consumed == alone.consumed_samples
                for batch in ours:
                    assert all(array.flags.writeable for array in batch.values())


def test_ranks_go_on_from_a_state_and_leave_what_was_under_way(corpora, tmp_path):
    run = run_config("gpt", tmp_path, corpora)

    def act(line):
        stream = share_stream(lambda: open_stream(run), line)
        for _ in range(2):
            next(stream)
        state = stream.state_dict()
        third = next(stream)
        next(stream)
        stream.load_state_dict(state)
        assert stream.state_dict() == state
        again = next(stream)
        stream.close()
        return third, again, line.posts

    results = on_ranks(act)
    for third, again, posts in results:
        assert_same([again], [third])
        assert posts == results[0][2]


@pytest.mark.parametrize(
    ("error", "raised"),
    [
        (DataError("broken"), DataError),
        (ConfigError("broken"), DataError),
        (ValueError("broken"), RuntimeError),
    ],
)
def test_an_error_at_opening_reaches_all_ranks(error, raised):
    def fail():
        raise error

    results = on_ranks(lambda line: share_stream(fail, line))
    assert results[0] is error
    for result in results[1:]:
        assert type(result) is raised and "broken (on the rank that reads" in str(result)
    results = on_ranks(lambda line: share_steps(fail, line))
    assert results[0] is error and all(isinstance(result, raised) for result in results[1:])


def test_an_error_while_reading_reaches_all_ranks_at_the_same_step(corpus, tmp_path):
    run = run_config("gpt", tmp_path, {"it": corpus})
    shard = corpus / "train" / "train-00001.tar"
    data = bytearray(shard.read_bytes())
    for at in range(2000, len(data), 500):
        data[at] ^= 1
    shard.write_bytes(data)

    def act(line):
        stream = share_stream(lambda: open_stream(run), line)
        steps = 0
        try:
            while True:
                next(stream)
                steps += 1
        except DataError as error:
            with pytest.raises(DataError):  # and again, if somebody asks again
                next(stream)
            return steps, str(error)
        finally:
            stream.close()

    results = on_ranks(act)
    assert len({steps for steps, _ in results}) == 1
    assert all("train-00001.tar, block" in text for _, text in results)


def test_a_state_that_does_not_fit_is_refused_by_all_ranks(corpora, tmp_path):
    with open_stream(run_config("gpt", tmp_path, corpora, seed=8)) as other:
        state = other.state_dict()

    def act(line):
        stream = share_stream(lambda: open_stream(run_config("gpt", tmp_path, corpora)), line)
        next(stream)
        with pytest.raises(DataError, match="seed is 7"):
            stream.load_state_dict(state)
        stream.close()
        return "refused"

    assert on_ranks(act) == ["refused"] * RANKS


def test_closing_waits_for_nobody(corpora, tmp_path):
    """A rank that failed closes alone; nothing is under way that the others would have to take."""
    queues: list[queue.Queue[bytes]] = [queue.Queue() for _ in range(2)]
    reader = SharedStream(lambda: open_stream(run_config("gpt", tmp_path, corpora)), Line(0, queues))
    next(reader)
    reader.close()
    other = SharedStream(lambda: pytest.fail("opened"), Line(1, queues))
    next(other)
    other.close()


def test_evaluation_is_shared(kind, corpora, tmp_path):
    run = run_config(kind, tmp_path, corpora)
    results = on_ranks(lambda line: share_steps(lambda: eval_batches(run), line))
    expected = eval_batches(run)
    assert len(expected) > 1
    for result in results:
        assert_same(result, expected)
    assert_same(share_steps(lambda: eval_batches(run), None), expected)


def test_messages_of_any_arrays():
    rng = np.random.default_rng(0)
    step = [
        {"a": rng.integers(0, 9, (3, 5)), "b": np.zeros((0,), dtype=np.int64), "c": np.array(True)},
        {"f": rng.random((2, 2)).astype(np.float32).T, "u": np.arange(7, dtype=np.uint16)},
    ]
    message = Message.unpack(bytearray(Message(step, {"x": [1]}, None).pack()))
    assert message.position == {"x": [1]}
    assert_same([message.step], [step])
    for ours, theirs in zip(message.step, step, strict=True):
        assert all(ours[name].dtype == theirs[name].dtype for name in theirs)
