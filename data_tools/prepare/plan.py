"""What is to be made from what: inputs, the tasks that read them, and the sizes of everything after.

A plan is a pure function of the inputs and options. It is stored once; every task, on whatever machine, reads
it and knows the rest.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, dataclass, replace
from typing import TYPE_CHECKING, Any

from data_tools.errors import DataError
from data_tools.prepare.options import PrepareOptions, Sizes, plan_sizes
from data_tools.reading import Chunk, InputFile, find_inputs, gives_tokens, plan_chunks
from data_tools.tokenizer import IntegerVocabulary, Tokenizer

if TYPE_CHECKING:
    from data_tools.clean import CleanConfig
    from data_tools.dedup import DedupConfig

ChunkPlace = tuple[int, int, int, tuple[int, int] | None]
"""A `Chunk` without its file: index of the file, start, stop, unpacked."""
READ, GATHER, DEDUP, CLUSTER, PACK, FINISH = "read", "gather", "dedup", "cluster", "pack", "finish"
PLAN_FORMAT = 2


@dataclass(frozen=True, slots=True, kw_only=True)
class Plan:
    """Everything that the tasks of a corpus must know.

    Attributes:
        options: the user's choices.
        tokenizer_sha256, tokenizer_name: hash of the tokenizer's file, and its name in the corpus.
        clean_identity: what the cleaning depends on besides its options: hashes of files it reads.
        inputs: the input files, in order.
        read_tasks: for each reading task, the chunks of inputs.
        sizes: what follows from the size of the inputs.
        tokens: the documents come tokenised.
    """

    options: PrepareOptions
    tokenizer_sha256: str
    tokenizer_name: str
    clean_identity: dict[str, Any] | None
    inputs: tuple[InputFile, ...]
    read_tasks: tuple[tuple[ChunkPlace, ...], ...]
    sizes: Sizes
    tokens: bool

    def clean(self) -> CleanConfig | None:
        """The cleaning's configuration."""
        if self.options.clean is None:
            return None
        from data_tools.clean import CleanConfig

        return CleanConfig.model_validate(self.options.clean)

    def dedup(self) -> DedupConfig | None:
        """Which duplicates are dropped."""
        clean = self.clean()
        return clean.dedup if clean else None

    def chunks(self, task: int) -> list[Chunk]:
        """What a reading task reads."""
        return [
            Chunk(self.inputs[index], index, start, stop, unpacked)
            for index, start, stop, unpacked in self.read_tasks[task]
        ]

    def all_chunks(self) -> list[Chunk]:
        """The chunks of all inputs, in order."""
        return [chunk for task in range(len(self.read_tasks)) for chunk in self.chunks(task)]

    def stages(self) -> list[tuple[str, int]]:
        """(stage, number of its tasks) in order; a stage needs every task of those before it."""
        dedup = self.dedup()
        return [
            (READ, len(self.read_tasks)),
            (GATHER, 1),
            (DEDUP, self.sizes.partitions if dedup is not None else 0),
            (CLUSTER, int(dedup is not None and dedup.near is not None)),
            (PACK, self.sizes.shards),
            (FINISH, 1),
        ]

    def identity(self) -> dict[str, Any]:
        """What the result depends on, besides the inputs; JSON-able."""
        options = self.options.to_json()
        return {
            **{key: value for key, value in options.items() if key not in ("read", "clean")},
            **options["read"],
            "clean": self.clean_identity,
            "tokenizer_sha256": self.tokenizer_sha256,
        }

    def to_json(self) -> dict[str, Any]:
        """The inverse of `from_json`."""
        return {
            "format": PLAN_FORMAT,
            "options": self.options.to_json(),
            "tokenizer_sha256": self.tokenizer_sha256,
            "tokenizer_name": self.tokenizer_name,
            "clean_identity": self.clean_identity,
            "inputs": [asdict(file) for file in self.inputs],
            "read_tasks": self.read_tasks,
            "sizes": asdict(self.sizes),
            "tokens": self.tokens,
        }

    @classmethod
    def from_json(cls, content: dict[str, Any]) -> Plan:
        """The inverse of `to_json`.

        Raises:
            ValueError: another release wrote it.
        """
        if content["format"] != PLAN_FORMAT:
            raise ValueError(f"format {content['format']}, this release writes {PLAN_FORMAT}")
        return cls(
            options=PrepareOptions.from_json(content["options"]),
            tokenizer_sha256=content["tokenizer_sha256"],
            tokenizer_name=content["tokenizer_name"],
            clean_identity=content["clean_identity"],
            inputs=tuple(InputFile(**file) for file in content["inputs"]),
            read_tasks=tuple(
                tuple((i, a, b, tuple(c) if c else None) for i, a, b, c in task)
                for task in content["read_tasks"]
            ),
            sizes=Sizes(**content["sizes"]),
            tokens=content["tokens"],
        )


def make_plan(inputs: Sequence[str], options: PrepareOptions, tokenizer: Tokenizer) -> Plan:
    """Look at the inputs and plan the corpus.

    Raises:
        DataError: bad options, or inputs that are not there.
    """
    options.check()
    tokenizer.require("eod", purpose="a corpus")
    files = find_inputs(inputs, options.read)
    tokens = gives_tokens(files, options.read)
    if tokens and options.clean is not None:
        raise DataError("--clean works on text, and these documents come tokenised: leave it out")
    if not tokens and isinstance(tokenizer, IntegerVocabulary):
        raise DataError(
            f"{tokenizer.path} is a vocabulary of integers and {files[0].url} holds text: name its integers "
            "with --token-key, or give a tokenizer of text"
        )
    sizes = plan_sizes(files, options)
    tasks = _group(plan_chunks(files, options.read, sizes.task_bytes), sizes.task_bytes)
    if not tasks:
        raise DataError("the corpus is empty: the inputs hold no document")
    plan = Plan(
        options=options,
        tokenizer_sha256=tokenizer.sha256,
        tokenizer_name=tokenizer.file_name,
        clean_identity=None,
        inputs=tuple(files),
        read_tasks=tuple(tasks),
        sizes=sizes,
        tokens=tokens,
    )
    clean = plan.clean()
    return replace(plan, clean_identity=clean.identity()) if clean is not None else plan


def _group(chunks: Sequence[Chunk], task_bytes: int) -> list[tuple[ChunkPlace, ...]]:
    """Neighbouring chunks until a task is full, so that many small files make few tasks."""
    tasks: list[tuple[ChunkPlace, ...]] = []
    group: list[ChunkPlace] = []
    cost = 0
    for chunk in chunks:
        if group and cost + chunk.cost > task_bytes:
            tasks.append(tuple(group))
            group, cost = [], 0
        group.append((chunk.file_index, chunk.start, chunk.stop, chunk.unpacked))
        cost += chunk.cost
    return [*tasks, tuple(group)] if group else tasks
