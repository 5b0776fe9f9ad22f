"""Tensor-parallel ranks get the batches that the first of them reads, over real process groups."""

from __future__ import annotations

import multiprocessing
import socket
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from tests.support.ranks import RankPool
from tests.support.sharing import leave_without_a_word
from tests.unit.pretrain_data.support import run_config, train_tokenizer, write_corpus

DIGESTS = "tests.support.sharing:digests"


@pytest.fixture(scope="module")
def pools() -> Iterator[dict[int, RankPool]]:
    with RankPool(1) as one, RankPool(4) as four:
        yield {1: one, 4: four}


@pytest.fixture(scope="module")
def corpus(tmp_path_factory: pytest.TempPathFactory) -> Path:
    root = tmp_path_factory.mktemp("corpus")
    return write_corpus(root / "it", train_tokenizer(root / "tokenizer.model", seed=0), seed=1)


def config(kind: str, tmp_path: Path, corpus: Path, **overrides: Any) -> dict[str, Any]:
    return run_config(kind, tmp_path, {"it": corpus}, **overrides).model_dump()


@pytest.mark.distributed
@pytest.mark.parametrize("kind", ["gpt", "bert"])
def test_ranks_of_a_group_get_what_one_of_them_reads(
    pools: dict[int, RankPool], corpus: Path, tmp_path: Path, kind: str
) -> None:
    run = config(kind, tmp_path, corpus)
    every = pools[4].run(DIGESTS, config=run, tensor_parallel=1, steps=4)
    pairs = pools[4].run(DIGESTS, config=run, tensor_parallel=2, steps=4)
    four = pools[4].run(DIGESTS, config=run, tensor_parallel=4, steps=4)
    one = pools[1].run(DIGESTS, config=run, tensor_parallel=1, steps=4)
    assert [result["reads"] for result in every] == [True] * 4
    assert [result["reads"] for result in pairs] == [True, False, True, False]
    assert [result["digests"] for result in four] == [one[0]["digests"]] * 4
    assert pairs[0]["digests"] == pairs[1]["digests"] != pairs[2]["digests"] == pairs[3]["digests"]
    for results in (every, pairs, four):
        assert all(result["state"] == one[0]["state"] for result in results)


@pytest.mark.distributed
def test_an_error_of_the_reading_rank_is_raised_by_all(
    pools: dict[int, RankPool], corpus: Path, tmp_path: Path
) -> None:
    run = config("gpt", tmp_path, corpus, model__vocab_size=500)
    results = pools[4].run(DIGESTS, config=run, tensor_parallel=4, steps=4)
    assert all("DataError: model.vocab_size: 500" in result["error"] for result in results)


@pytest.mark.distributed
def test_the_others_notice_that_the_reading_rank_is_gone(corpus: Path, tmp_path: Path) -> None:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    context = multiprocessing.get_context("spawn")
    results = context.Queue()
    run = config("gpt", tmp_path, corpus)
    processes = [
        context.Process(target=leave_without_a_word, args=(run, rank, port, results), daemon=True)
        for rank in range(2)
    ]
    for process in processes:
        process.start()
    noticed = results.get(timeout=120)
    for process in processes:
        process.kill()
        process.join()
    assert isinstance(noticed, float) and noticed < 10
