"""The data part of `headwater check`: corpora against the config, read with the standard library only.

`data_tools.shard_format` describes the format and reads it in training; a login node has neither numpy nor
torch, so this reads the manifests' JSON alone and compares sizes, not contents. What lies behind a URL or a
command it leaves to the ranks, which check it when they open it.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from launch.attempts import newest_checkpoint
from launch.estimate import readable_count
from launch.findings import Finding
from pretrain.config import RunConfig
from pretrain.config.derive import train_tokens

FORMAT_VERSION = 1
SHOWN_SHARDS = 5
TOKENIZER_NAMES = ("tokenizer.model", "tokenizer.json", "vocabulary.json")


@dataclass(frozen=True, slots=True)
class _Split:
    """One split directory with what its manifest says."""

    name: str
    directory: Path
    manifest: dict[str, Any]


def data_findings(config: RunConfig) -> list[Finding]:
    """Check every corpus of a run: manifests, shards, tokenizer, vocabulary, sentences, epochs."""
    sha256, findings = _tokenizer_findings(config)
    without_validation: list[str] = []
    total_weight = sum(corpus.weight for corpus in config.data.corpora)
    splits = ["train", "validation"] if config.training.eval_interval else ["train"]
    for corpus in config.data.corpora:
        if _is_url(corpus.path):
            findings.append(Finding("ok", "data", f"corpus {corpus.name}: the ranks look at {corpus.path}"))
            continue
        for name in splits:
            if name == "validation" and not (Path(corpus.path) / name / "manifest.json").exists():
                without_validation.append(corpus.name)
                continue
            split, problems = _read_split(f"corpus {corpus.name}, {name}", Path(corpus.path) / name)
            if split is not None:
                problems += _split_problems(split, config, sha256)
                problems += [] if corpus.shards else _shard_problems(split)
            findings += [Finding("error", "data", problem) for problem in problems]
            if split is not None and not problems:
                share = corpus.weight / total_weight if name == "train" else None
                findings.append(_summary(split, config, share))
    findings += _validation_findings(without_validation, len(config.data.corpora))
    findings += _same_path_findings(config)
    return findings + _initial_weights_findings(config)


def _initial_weights_findings(config: RunConfig) -> list[Finding]:
    """What a fresh run starts from must be there; one that has checkpoints goes on from those."""
    path = config.initial_weights
    if path is None or Path(path).exists() or newest_checkpoint(Path(config.run_dir)):
        return []
    return [Finding("error", "data", f"initial_weights: {path} does not exist")]


def _same_path_findings(config: RunConfig) -> list[Finding]:
    """A corpus under two names is read twice, each with epochs of its own."""
    seen: dict[str, str] = {}
    findings = []
    for corpus in config.data.corpora:
        if (first := seen.setdefault(corpus.path.rstrip("/"), corpus.name)) != corpus.name:
            text = f"corpus {corpus.name}: the same path as corpus {first}; its documents come twice"
            findings.append(Finding("warning", "data", text))
    return findings


def _validation_findings(without: list[str], corpora: int) -> list[Finding]:
    """A corpus may be too small for a validation split; evaluation needs one in some corpus."""
    if len(without) == corpora:
        text = "no corpus has a validation split; set training.eval_interval: 0 or prepare one with it"
        return [Finding("error", "data", text)]
    return [
        Finding("warning", "data", f"corpus {name}: no validation split, not evaluated") for name in without
    ]


def _tokenizer_findings(config: RunConfig) -> tuple[str | None, list[Finding]]:
    """Hash of `data.tokenizer`, or of that of the first corpus (None: not known), and the findings."""
    named = config.data.tokenizer or config.data.corpora[0].path
    if _is_url(named):
        return None, [Finding("ok", "tokenizer", f"the ranks read that of {named}")]
    path = Path(named)
    if not config.data.tokenizer or path.is_dir():  # the name tells its kind, only one is there
        paths = [path / name for name in TOKENIZER_NAMES]
        path = next((one for one in paths if one.is_file()), paths[0])
    try:
        digest = hashlib.sha256(path.read_bytes()).hexdigest()
    except OSError as error:
        text = f"{path}: {error.strerror}; set data.tokenizer or prepare the corpus"
        return None, [Finding("error", "tokenizer", text)]
    return digest, [Finding("ok", "tokenizer", f"{path} (sha256 {digest[:12]})")]


def _is_url(path: str) -> bool:
    """As `pretrain.data` tells corpora behind URLs."""
    return "://" in path


def _read_split(name: str, directory: Path) -> tuple[_Split | None, list[str]]:
    path = directory / "manifest.json"
    try:
        manifest = json.loads(path.read_text(encoding="utf-8"))
    except OSError as error:
        return None, [f"{name}: {path}: {error.strerror}; write the shards with `headwater data prepare`"]
    except ValueError as error:
        return None, [f"{name}: {path} is not valid JSON ({error}); prepare the corpus again"]
    if not isinstance(manifest, dict) or manifest.get("format_version") != FORMAT_VERSION:
        return None, [
            f"{name}: {path} is not a manifest of format {FORMAT_VERSION}; prepare the corpus again"
        ]
    needed = {"tokenizer_sha256": str, "vocab_size": int, "sentences": bool, "shards": list, "tokens": int}
    wrong = [key for key, kind in needed.items() if not isinstance(manifest.get(key), kind)]
    if wrong:
        return None, [f"{name}: {path} lacks {', '.join(wrong)}; prepare the corpus again"]
    if not all(isinstance(shard, dict) and {"path", "bytes"} <= shard.keys() for shard in manifest["shards"]):
        return None, [f"{name}: {path}: a shard has no path or size; prepare the corpus again"]
    return _Split(name, directory, manifest), []


def _split_problems(split: _Split, config: RunConfig, tokenizer_sha256: str | None) -> list[str]:
    manifest, model = split.manifest, config.model
    problems = []
    if tokenizer_sha256 is not None and manifest["tokenizer_sha256"] != tokenizer_sha256:
        problems.append(
            f"{split.name}: its shards were written with another tokenizer (sha256 "
            f"{manifest['tokenizer_sha256'][:12]}); set data.tokenizer to that one or prepare it again"
        )
    if manifest["vocab_size"] != model.vocab_size:
        problems.append(
            f"{split.name}: vocab_size {manifest['vocab_size']}, but model.vocab_size is {model.vocab_size}"
        )
    if manifest["tokens"] == 0:
        problems.append(f"{split.name}: has no tokens; prepare it from documents that are not empty")
    elif model.kind == "gpt" and manifest["tokens"] <= config.batch.seq_length:
        problems.append(
            f"{split.name}: {manifest['tokens']} tokens are too few for one sample of batch.seq_length: "
            f"{config.batch.seq_length} + 1; add documents or lower it"
        )
    if model.kind == "bert" and not manifest["sentences"]:
        problems.append(f"{split.name}: has no sentence boundaries, which BERT needs; prepare it with them")
    if not (split.directory / "blocks.npy").is_file():
        problems.append(
            f"{split.name}: {split.directory / 'blocks.npy'} is missing; prepare the corpus again"
        )
    return problems


def _shard_problems(split: _Split) -> Iterator[str]:
    """Shards that are absent or of the wrong size; a long list is cut short."""
    bad = []
    for shard in split.manifest["shards"]:
        path = split.directory / str(shard["path"])
        try:
            size = path.stat().st_size
        except OSError as error:
            bad.append(f"{split.name}: shard {path}: {error.strerror}")
            continue
        if size != shard["bytes"]:
            bad.append(f"{split.name}: shard {path} has {size} bytes, its manifest says {shard['bytes']}")
    yield from bad[:SHOWN_SHARDS]
    if len(bad) > SHOWN_SHARDS:
        yield f"{split.name}: {len(bad) - SHOWN_SHARDS} more shards are missing or of the wrong size"


def _summary(split: _Split, config: RunConfig, share: float | None) -> Finding:
    tokens, shards = split.manifest["tokens"], len(split.manifest["shards"])
    text = f"{split.name}: {readable_count(tokens)} tokens in {shards} shard{'s' if shards != 1 else ''}"
    if share is not None:
        text += f"; the run reads it {share * train_tokens(config) / tokens:.2g} times"
    return Finding("ok", "data", text)
