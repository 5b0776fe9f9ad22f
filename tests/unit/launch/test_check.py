"""`headwater check`: each fault alone, and all of them in one report."""

from __future__ import annotations

import hashlib
import json
import shutil
from pathlib import Path

import pytest
import yaml

from launch import check, check_data, cli
from launch.jobs import load_job
from pretrain.config import load_config

REPO = Path(__file__).parents[3]
TOKENIZER = b"not really a tokenizer"


@pytest.fixture
def run(tmp_path: Path) -> Path:
    """A config whose corpus exists: two splits with two shards each."""
    for split, tokens in (("train", 4000), ("validation", 400)):
        write_split(tmp_path / "corpus" / split, tokens)
    (tmp_path / "corpus" / "tokenizer.model").write_bytes(TOKENIZER)
    data = yaml.safe_load((REPO / "configs" / "gpt" / "tiny.yaml").read_text())
    data["run_dir"] = str(tmp_path / "runs" / "x")
    data["data"]["corpora"] = [{"name": "c", "path": str(tmp_path / "corpus")}]
    data["training"] |= {"train_steps": 10, "eval_interval": 5}
    data["schedule"] = {"lr_warmup_steps": 2}
    path = tmp_path / "run.yaml"
    path.write_text(yaml.safe_dump(data))
    return path


def write_split(directory: Path, tokens: int) -> None:
    directory.mkdir(parents=True)
    shards = [{"path": f"{directory.name}-{i:05d}.tar", "bytes": 100 + i} for i in range(2)]
    for shard in shards:
        (directory / shard["path"]).write_bytes(bytes(shard["bytes"]))
    (directory / "blocks.npy").write_bytes(b"table")
    header = {"format_version": 1, "vocab_size": 8192, "sentences": False, "tokens": tokens}
    header["tokenizer_sha256"] = hashlib.sha256(TOKENIZER).hexdigest()
    (directory / "manifest.json").write_text(json.dumps({**header, "shards": shards}))


def change_manifest(directory: Path, **changes: object) -> None:
    path = directory / "manifest.json"
    path.write_text(json.dumps({**json.loads(path.read_text()), **changes}))


def headwater_check(capsys, config: Path, *words: str) -> tuple[int, str]:
    code = cli.main(["check", "--config", str(config), *words])
    return code, capsys.readouterr().out


def test_a_sound_run_passes(capsys, run):
    code, out = headwater_check(capsys, run, "--nproc", "2")
    assert code == 0, out
    assert "2 = TP 1 x DP 2" in out and "4 x DP 2 x 2 accumulated" in out
    # 10 steps x 16 samples x 128 tokens of a corpus of 4000
    assert "corpus c, train: 4 K tokens in 2 shards; the run reads it 5.1 times" in out
    assert out.endswith("no problems found\n")


def test_a_batch_ramp_counts_with_its_smaller_batches(capsys, run):
    """4 samples until 8, then 8, 12 and 16: 4 4 8 12 and six times 16 are 124, not 160."""
    ramp = ("--set", "batch.ramp={start: 4, increment: 4, samples: 24}")
    code, out = headwater_check(capsys, run, *ramp)
    assert code == 0, out
    assert "2.048 K tokens a step, 15.87 K in all" in out
    assert "the run reads it 4 times" in out


def test_config_errors_are_all_reported(capsys, run):
    overrides = ("batch.seq_length=100000", "schedule.lr_warmup_steps=99", "--nproc", "3")
    code, out = headwater_check(capsys, run, "--set", *overrides)
    assert code == 2
    assert "batch.seq_length" in out and "schedule.lr_warmup_steps" in out
    assert "batch.global_batch_size: 16 is not a multiple" in out
    assert out.endswith("3 errors\n")


def test_a_wrong_cluster_config_is_named_by_its_file(capsys, run):
    cluster = run.parent / "cluster.yaml"
    cluster.write_text("kind: local\nranks_per_nod: 2\n")
    code, out = headwater_check(capsys, run, "--cluster", str(cluster))
    assert code == 2
    assert f"{cluster}: ranks_per_nod: unknown key; did you mean 'ranks_per_node'?" in out


def break_shard_size(corpus: Path) -> None:
    (corpus / "train" / "train-00001.tar").write_bytes(b"short")


def break_shard(corpus: Path) -> None:
    (corpus / "validation" / "validation-00000.tar").unlink()


def break_validation(corpus: Path) -> None:
    shutil.rmtree(corpus / "validation")


def break_json(corpus: Path) -> None:
    (corpus / "train" / "manifest.json").write_text("{")


def break_shard_table(corpus: Path) -> None:
    change_manifest(corpus / "train", shards=[{"path": "x"}])


FAULTS = [
    (break_shard_size, "train-00001.tar has 5 bytes, its manifest says 101"),
    (break_shard, "validation-00000.tar: No such file"),
    (break_validation, "no corpus has a validation split"),
    (break_json, "is not valid JSON"),
    (break_shard_table, "a shard has no path or size"),
    (lambda c: (c / "tokenizer.model").write_bytes(b"other"), "written with another tokenizer"),
    (lambda c: (c / "tokenizer.model").unlink(), "tokenizer.model: No such file"),
    (lambda c: (c / "train" / "blocks.npy").unlink(), "blocks.npy is missing"),
    (lambda c: change_manifest(c / "train", vocab_size=100), "vocab_size 100, but model.vocab_size is 8192"),
    (lambda c: change_manifest(c / "train", tokens=0), "has no tokens"),
    (lambda c: change_manifest(c / "train", tokens=128), "128 tokens are too few for one sample"),
    (lambda c: change_manifest(c / "train", format_version=9), "not a manifest of format 1"),
    (lambda c: change_manifest(c / "train", sentences=None), "lacks sentences"),
    (shutil.rmtree, "headwater data prepare"),
]


@pytest.mark.parametrize(("spoil", "message"), FAULTS, ids=[message for _, message in FAULTS])
def test_each_fault_of_the_data_is_an_error(capsys, run, spoil, message):
    spoil(run.parent / "corpus")
    code, out = headwater_check(capsys, run)
    assert code == 2
    assert any("error" in line and message in line for line in out.splitlines()), out


def test_validation_is_not_needed_without_evaluation(capsys, run):
    break_validation(run.parent / "corpus")
    assert headwater_check(capsys, run, "--set", "training.eval_interval=0")[0] == 0


@pytest.mark.parametrize("url", ["s3://bucket/corpus", "https://host/corpus"])
def test_a_corpus_behind_a_url_is_left_to_the_ranks(capsys, run, url):
    code, out = headwater_check(capsys, run, "--set", f"data.corpora.0.path={url}")
    assert code == 0, out
    assert f"corpus c: the ranks look at {url}" in out
    assert load_job(run, [f"data.corpora.0.path={url}"], 1).data_problems() == []


def test_shards_behind_a_command_are_left_to_the_ranks_but_their_manifest_is_not(capsys, run):
    command = ("--set", "data.corpora.0.shards=pipe:cat /elsewhere/{shard}")
    for shard in (run.parent / "corpus").glob("*/*.tar"):
        shard.unlink()
    assert headwater_check(capsys, run, *command)[0] == 0
    change_manifest(run.parent / "corpus" / "train", vocab_size=100)
    code, out = headwater_check(capsys, run, *command)
    assert code == 2 and "vocab_size 100" in out


def test_initial_weights_must_be_there_until_the_run_has_a_checkpoint(capsys, run):
    wanted = ("--set", f"initial_weights={run.parent / 'runs' / 'other'}")
    code, out = headwater_check(capsys, run, *wanted)
    assert code == 2 and "initial_weights: " in out and "does not exist" in out
    (run.parent / "runs" / "x" / "checkpoints" / "step-00000010").mkdir(parents=True)
    assert headwater_check(capsys, run, *wanted)[0] == 0


def test_a_run_directory_that_is_a_file_is_an_error(capsys, run):
    code, out = headwater_check(capsys, run, "--set", f"run_dir={run}")
    assert code == 2 and f"run_dir: {run} is no directory" in out
    code, out = headwater_check(capsys, run, "--set", f"run_dir={run}/below")
    assert code == 2 and f"run_dir: {run} is no directory" in out


def test_a_corpus_under_two_names_is_warned_of(capsys, run):
    path = run.parent / "corpus"
    corpora = f"data.corpora=[{{name: a, path: {path}}}, {{name: b, path: {path}/}}]"
    code, out = headwater_check(capsys, run, "--set", corpora)
    assert code == 0 and "corpus b: the same path as corpus a" in out
    assert "the same path" not in headwater_check(capsys, run)[1]


def test_bert_needs_sentences(capsys, run):
    code, out = headwater_check(capsys, run, "--set", "model.kind=bert")
    assert code == 2
    assert "no sentence boundaries, which BERT needs" in out


def test_a_long_list_of_bad_shards_is_cut(capsys, run):
    shards = [{"path": f"gone-{i}.tar", "bytes": 1} for i in range(50)]
    change_manifest(run.parent / "corpus" / "train", shards=shards)
    _, out = headwater_check(capsys, run)
    assert "gone-4.tar" in out and "gone-5.tar" not in out
    assert "45 more shards" in out


@pytest.mark.parametrize(("free", "level"), [(10**6, "error"), (20 * 10**6, "warning"), (10**9, "ok")])
def test_disk_space_is_held_against_the_checkpoints(monkeypatch, run, free, level):
    # tiny.yaml: 1.48 M parameters x 12 bytes = 17.7 MB a checkpoint, keep_last 2 and one being written
    usage = shutil.disk_usage("/")._replace(free=free)
    monkeypatch.setattr(check.shutil, "disk_usage", lambda place: usage)
    config = load_config(run)
    assert check.disk_finding(config, config.model).level == level


def test_the_format_is_the_one_that_data_tools_writes():
    layout = pytest.importorskip("data_tools.shard_layout")
    assert check_data.FORMAT_VERSION == layout.FORMAT_VERSION
