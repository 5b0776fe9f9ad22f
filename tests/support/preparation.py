"""Real runs of `headwater data prepare` on real text: the sources of Python's standard library."""

from __future__ import annotations

import contextlib
import json
import sysconfig
from collections.abc import Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from tests.support.runs import HEADWATER, run

CLEANING = """
unicode: {fix_encoding: true, normalization: NFC}
pii: {kinds: [secret, email, ip], mode: replace, salt: "sixteen and more of them"}
dedup: {exact: true, near: {bands: 14, rows: 8, ngram_words: 5, seed: 1}}
"""


@dataclass(frozen=True)
class Preparation:
    """A command to run, again and again."""

    inputs: tuple[Path, ...]
    tokenizer: Path
    out: Path
    clean: Path | None = None

    def into(self, out: Path) -> Preparation:
        """The same corpus elsewhere."""
        return replace(self, out=out)

    def command(self, *words: str) -> list[str]:
        """The command, with small shards so that there are many tasks."""
        options = ["--name", "same", "--shard-bytes", "600000", "--block-bytes", "50000"]
        clean = ["--clean", str(self.clean)] if self.clean else []
        return [
            *HEADWATER,
            *("data", "prepare", "--input", *map(str, self.inputs)),
            *("--tokenizer", str(self.tokenizer), "--out", str(self.out)),
            *(*options, *clean, *words),
        ]

    @property
    def work(self) -> Path:
        """Where an unfinished run keeps what it has."""
        return self.out.parent / f".{self.out.name}.work"

    def finished_tasks(self) -> dict[str, tuple[int, int]]:
        """Records of finished tasks in the work directory: name -> identity of the file."""
        found = {}
        for path in self.work.glob("*-??????.json"):
            if not path.name.startswith("failed"):
                with contextlib.suppress(FileNotFoundError):  # the run removes everything at its end
                    found[path.stem] = (path.stat().st_ino, path.stat().st_mtime_ns)
        return found


def write_documents(path: Path, size: int) -> Path:
    """Write about `size` bytes of jsonl; one document in 20 comes twice, another one a little changed."""
    written = 0
    with path.open("w") as file:
        for number, text in enumerate(_sources()):
            copies = [text]
            if number % 20 == 3:
                copies.append(text)
            elif number % 20 == 7:
                copies.append(text + "\nThe end.\n")
            for copy in copies:
                written += file.write(json.dumps({"text": copy, "id": str(number)}) + "\n")
            if written >= size:
                return path
    raise AssertionError(f"the standard library has less than {size} bytes of text")


def _sources() -> Iterator[str]:
    """Pieces of the standard library's modules, of a few thousand characters."""
    library = Path(sysconfig.get_paths()["stdlib"])
    for path in sorted(library.rglob("*.py")):
        if "site-packages" not in path.parts and "bad" not in path.name:
            text = path.read_text(encoding="utf-8", errors="replace")
            yield from (piece for at in range(0, len(text), 3000) if (piece := text[at : at + 3000]).strip())


def train_tokenizer(documents: Path, out: Path) -> Path:
    """A small tokenizer, made in a second or two."""
    words = ["--input", str(documents), "--vocab-size", "600", "--max-train-mb", "0.3", "--out", str(out)]
    run([*HEADWATER, "data", "tokenizer", *words])
    return out


def contents(directory: Path) -> dict[str, bytes]:
    """Every file of a directory."""
    paths = sorted(directory.rglob("*"))
    return {str(path.relative_to(directory)): path.read_bytes() for path in paths if path.is_file()}


def assert_same(made: Path, expected: Path) -> None:
    """Two corpora are identical, byte for byte."""
    first, second = contents(made), contents(expected)
    assert first.keys() == second.keys()
    assert [name for name in first if first[name] != second[name]] == []


def record_of(corpus: Path) -> dict[str, Any]:
    """What prepare.json says."""
    record: dict[str, Any] = json.loads((corpus / "prepare.json").read_text())
    return record
