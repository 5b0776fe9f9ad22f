"""A run directory accepts only its own run."""

from __future__ import annotations

from pathlib import Path

import pytest
import yaml

from pretrain.config import ConfigError, dump_yaml, load_config
from pretrain.config.identity import check_run_directory, lock_run_directory

TINY = Path(__file__).resolve().parents[3] / "configs" / "gpt" / "tiny.yaml"


def start_in(run_dir: Path) -> None:
    (run_dir / "config.yaml").write_text(dump_yaml(load_config(TINY, [f"run_dir={run_dir}"])))
    (run_dir / "metrics.jsonl").write_text('{"step": 1}\n')


@pytest.mark.parametrize(
    "text",
    [
        "parallel.tensor_model_parallel_size=2",
        "parallel.zero_stage=3",
        "batch.micro_batch_size=2",
        "precision=bf16",
        "training.train_steps=300",
        "checkpoint.save_interval=7",
        "data.corpora.0.path=moved",
        "data.corpora.0.weight=3.0",
        "data.corpora.0.name=other",
        "batch.global_batch_size=32",
        "batch.seq_length=64",
        "batch.ramp={start: 8, increment: 8, samples: 100}",
        "deepspeed.zero_optimization.reduce_bucket_size=1000",
    ],
)
def test_layout_and_lengths_may_change(tmp_path: Path, text: str) -> None:
    start_in(tmp_path)
    check_run_directory(load_config(TINY, [f"run_dir={tmp_path}", text]))


@pytest.mark.parametrize(
    ("text", "key"),
    [
        ("model.num_layers=3", "model.num_layers (there 2, now 3)"),
        ("seed=1", "seed (there 1234, now 1)"),
        ("data.limit={samples: 5}", "data.limit"),
        ("data.masking.mask_probability=0.3", "data.masking.mask_probability"),
        ("optimizer.lr=0.5", "optimizer.lr"),
    ],
)
def test_another_run_is_refused_by_key(tmp_path: Path, text: str, key: str) -> None:
    start_in(tmp_path)
    with pytest.raises(ConfigError) as caught:
        check_run_directory(load_config(TINY, [f"run_dir={tmp_path}", text]))
    assert key in str(caught.value)
    assert str(tmp_path) in str(caught.value)


def test_a_run_of_an_older_version_goes_on_with_the_defaults_of_new_keys(tmp_path: Path) -> None:
    start_in(tmp_path)
    path = tmp_path / "config.yaml"
    stored = yaml.safe_load(path.read_text())
    del stored["model"]["normalization"]
    path.write_text(yaml.safe_dump(stored))
    check_run_directory(load_config(TINY, [f"run_dir={tmp_path}"]))
    with pytest.raises(ConfigError, match=r"model.normalization \(there 'LayerNorm', now 'RMSNorm'\)"):
        check_run_directory(load_config(TINY, [f"run_dir={tmp_path}", "model.normalization=RMSNorm"]))


def test_a_key_that_is_gone_is_named(tmp_path: Path) -> None:
    start_in(tmp_path)
    path = tmp_path / "config.yaml"
    path.write_text(path.read_text().replace("model:", "model:\n  forgotten: 3"))
    with pytest.raises(ConfigError, match=r"model.forgotten \(there 3, now None\)"):
        check_run_directory(load_config(TINY, [f"run_dir={tmp_path}"]))


def test_an_unreadable_config_is_refused(tmp_path: Path) -> None:
    start_in(tmp_path)
    (tmp_path / "config.yaml").write_text(": [")
    with pytest.raises(ConfigError, match="cannot read"):
        check_run_directory(load_config(TINY, [f"run_dir={tmp_path}"]))


def test_an_attempt_without_progress_does_not_own_the_directory(tmp_path: Path) -> None:
    start_in(tmp_path)
    (tmp_path / "metrics.jsonl").write_text("")
    check_run_directory(load_config(TINY, [f"run_dir={tmp_path}", "model.num_layers=3"]))
    (tmp_path / "checkpoints" / "step-00000001").mkdir(parents=True)
    with pytest.raises(ConfigError, match="belongs to another config"):
        check_run_directory(load_config(TINY, [f"run_dir={tmp_path}", "model.num_layers=3"]))


def test_a_second_job_is_refused_until_the_first_ends(tmp_path: Path) -> None:
    first = lock_run_directory(str(tmp_path / "run"))
    with pytest.raises(ConfigError, match="another job is training"):
        lock_run_directory(str(tmp_path / "run"))
    first.close()
    lock_run_directory(str(tmp_path / "run")).close()


def test_a_run_directory_that_cannot_be_made(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(ConfigError, match="cannot write"):
        lock_run_directory(str(tmp_path / "file" / "run"))


def test_a_new_directory_is_fine(tmp_path: Path) -> None:
    check_run_directory(load_config(TINY, [f"run_dir={tmp_path / 'new'}"]))


def test_a_run_that_lost_its_config_is_known_by_its_newest_checkpoint(tmp_path: Path) -> None:
    for step, layers in ((1, 4), (2, 2)):
        directory = tmp_path / "checkpoints" / f"step-{step:08d}"
        directory.mkdir(parents=True)
        config = load_config(TINY, [f"run_dir={tmp_path}", f"model.num_layers={layers}"])
        (directory / "config.yaml").write_text(dump_yaml(config))
    check_run_directory(load_config(TINY, [f"run_dir={tmp_path}"]))
    with pytest.raises(ConfigError, match=r"model.num_layers \(there 2, now 4\)"):
        check_run_directory(load_config(TINY, [f"run_dir={tmp_path}", "model.num_layers=4"]))
