"""What token classification and question answering share: windows over long texts, in training and in use."""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from itertools import islice
from pathlib import Path
from typing import TYPE_CHECKING, Any

from tasks.options import EngineOptions, UserError, data_of, option, restored
from tasks.saved import SavedOptions, find_run, placed
from tasks.text_models import Reader, TextModelOptions, load_reader

if TYPE_CHECKING:  # torch takes seconds to import, --help should not
    from torch import Tensor

    from tasks.task import Split


CHUNK = 256
"""Texts or questions that are read, answered and written at a time."""


@dataclass
class WindowOptions(EngineOptions, TextModelOptions):
    """Of a model that reads long texts in windows."""

    title = "windows"
    vocab_size: int = option(2048, "tokens of a trained tokenizer, at most", least=5, most=10_000_000)
    overlap: int = option(None, "tokens that neighbouring windows share at least (default: a quarter of the context)", least=0)
    batch_tokens: int = option(1024, "tokens in an optimizer step, padding among them", least=1)
    lr: float = option(0.001, "peak learning rate", above=0)
    clip: float = option(1.0, "largest gradient norm; 0 is off", least=0)

    def __post_init__(self) -> None:
        self.overlap = self.context // 4 if self.overlap is None else self.overlap
        super().__post_init__()
        if self.overlap > self.context // 2 - 1:
            raise UserError(f"--overlap must be below half of --context, {self.context // 2}, got {self.overlap}")
        if self.batch_tokens < self.context:
            raise UserError(f"--batch_tokens must be at least --context, {self.context}, got {self.batch_tokens}")


@dataclass
class UseOptions(SavedOptions):
    batch_size: int = option(32, "windows at a time", least=1)

    def load(self) -> tuple[Reader, Any]:
        """A run's model and tokenizer, and the context manager of --precision. Errors: `UserError` and `ValueError`."""
        reader = load_reader(find_run(self, "best.safetensors"))
        model, precision = placed(reader.model, self)
        return reader._replace(model=model), precision


def chunks(path: str, parse: Callable[[int, str], Any]) -> Iterator[list[Any]]:
    """What `parse(number, line)` makes of the lines of a file, - for standard input, `CHUNK` at a time; None is left out.

    Errors: `UserError` and `DataError` that name the file and the line.
    """
    from tasks.data.text_files import decoded, lines

    if path != "-" and not Path(path).is_file():
        raise UserError(f"--input {path} is not there: a file is expected")
    rows = decoded(sys.stdin.buffer, "standard input") if path == "-" else lines(Path(path))
    found = filter(lambda one: one is not None, (parse(number, line) for number, line in enumerate(rows, 1)))
    while chunk := list(islice(found, CHUNK)):
        yield chunk


def own_test(options: UseOptions, kind: type, load: Callable[[Any], Any], identity: Callable[[Any], dict[str, Any]]) -> Any:
    """The test part of a run's data, which `load` gives first. Errors: `UserError` if it is no longer what it was."""
    from zoo.files import read_json

    folder = find_run(options, "best.safetensors")
    saved = read_json(folder / "options.json")
    kept = (data_of(saved) or {}).get("test")
    splits = load(restored(kind, saved, folder))[0] if kept else {}
    if not kept or kept != identity(splits)["test"]:
        raise UserError(f"{folder}: what the run was tested on is not what it was: give files by --test")
    return splits["test"]


def split(rows: Sequence[Any], collate: Callable[[Sequence[Any]], Any], options: WindowOptions, training: bool) -> Split:
    """Windows, which have `ids`: like lengths share a batch."""
    import torch

    from tasks.data.batching import batches
    from tasks.task import Split

    lengths = torch.tensor([len(row.ids) for row in rows], dtype=torch.long)
    fixed = None if training else batches(lengths, max(options.batch_tokens, 4096), 0, 0)
    return Split(
        len(rows),
        lambda epoch: batches(lengths, options.batch_tokens, options.seed, epoch) if fixed is None else fixed,
        lambda indices, epoch: collate([rows[n] for n in indices.tolist()]),
    )


def outputs(reader: Reader, rows: Sequence[Any], batch_size: int, typed: bool = False) -> list[tuple[Tensor, ...]]:
    """What the model gives for the tokens of each window, on the CPU: tensors (n, ...). typed: rows have `types` too."""
    import torch

    from tasks.data.batching import padded

    device = next(reader.model.parameters()).device
    order = sorted(range(len(rows)), key=lambda n: len(rows[n].ids))  # of like lengths
    found: list[Any] = [None] * len(rows)
    for start in range(0, len(order), batch_size):
        part = [rows[n] for n in order[start : start + batch_size]]
        ids = [row.ids for row in part]
        inputs = [padded(ids, reader.tokenizer.pad), real(ids)]
        inputs += [padded([row.types for row in part], 0)] if typed and reader.typed else []
        with torch.inference_mode():
            said = reader.model(*(x.to(device) for x in inputs))
        said = [x.float().cpu() for x in (said if isinstance(said, tuple) else (said,))]
        for k, n in enumerate(order[start : start + batch_size]):
            found[n] = tuple(x[k, : len(rows[n].ids)] for x in said)
    return found


def real(rows: Iterable[Sequence[int]]) -> Tensor:
    """(b, n), True for the tokens of each row, False for the padding behind."""
    from tasks.data.batching import padded

    return padded([[1] * len(row) for row in rows], 0).bool()
