"""Documentation that Debian ships, as a corpus: some hundred megabytes of distinct, real text.

    python -m benchmarks.debian_docs docs.jsonl

fetches the packages with `apt-get download` and unpacks them, without installing anything.
"""

from __future__ import annotations

import gzip
import html
import json
import re
import subprocess
import sys
import tempfile
from collections.abc import Iterator, Sequence
from pathlib import Path

import xxhash

PACKAGES = (
    "linux-doc-6.1", "python3.11-doc", "manpages", "manpages-dev", "git-doc", "perl-doc", "postgresql-doc-15",
    "python-django-doc", "python-pandas-doc", "erlang-doc", "openjdk-17-doc", "debian-handbook",
)  # fmt: skip
"""Of Debian 12; the handbook is there in some twenty languages."""

_SUFFIXES = {".html", ".txt", ".yaml", ".pod", *(f".{section}" for section in range(1, 9))}
_SOURCES_OF_HTML = "_sources"
_TAGS = re.compile(r"(?s)<(script|style).*?</\1>|<[^>]+>")
_BLANK_LINES = re.compile(r"\n\s*\n+")


def collect(packages: Sequence[str], out: Path) -> None:
    """Write each text of the packages as a line of JSON, equal ones once."""
    with tempfile.TemporaryDirectory(dir=out.parent) as name:
        directory = Path(name)
        directory.chmod(0o755)
        subprocess.run(["apt-get", "-q", "download", *packages], cwd=directory, check=True)
        with out.open("w") as file:
            for package in sorted(directory.glob("*.deb")):
                root = directory / package.stem
                subprocess.run(["dpkg-deb", "-x", str(package), str(root)], check=True)
                for text in _distinct(texts_below(root)):
                    file.write(json.dumps({"text": text, "source": package.stem}, ensure_ascii=False) + "\n")


def texts_below(directory: Path) -> Iterator[str]:
    """The texts below a directory, in the order of their paths; html without its tags."""
    for path in sorted(directory.rglob("*")):
        name = Path(path.stem if path.suffix == ".gz" else path.name)
        if path.is_symlink() or not path.is_file() or name.suffix not in _SUFFIXES:
            continue
        if _SOURCES_OF_HTML in path.parts:
            continue
        raw = gzip.decompress(path.read_bytes()) if path.suffix == ".gz" else path.read_bytes()
        text = raw.decode("utf-8", "ignore")
        if name.suffix == ".html":
            text = _BLANK_LINES.sub("\n\n", html.unescape(_TAGS.sub("", text)))
        if text.strip():
            yield text


def _distinct(texts: Iterator[str]) -> Iterator[str]:
    seen: set[bytes] = set()
    for text in texts:
        digest = xxhash.xxh3_128_digest(text.encode())
        if digest not in seen:
            seen.add(digest)
            yield text


if __name__ == "__main__":
    collect(PACKAGES, Path(sys.argv[1]))
