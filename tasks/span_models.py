"""What finding spans in texts has in common, for token classification and question answering: model, tokenizer, their options."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from tasks.options import EngineOptions, UserError, did_you_mean, option
from tasks.saved import SavedOptions, find_run, placed, run_or_path

if TYPE_CHECKING:  # torch takes seconds to import, --help should not
    from torch import Tensor, nn

    from tasks.data.tokenizer import TextTokenizer
    from tasks.task import Split


@dataclass
class ReaderOptions(EngineOptions):
    """Of a model that reads a text in both directions."""

    title = "reader"
    model: str = option("bert_small", "a model of BERT's family, of zoo.names()")
    init: str = option("", "hf:FOLDER, a run's folder or its name: weights and tokenizer to begin with (default: new ones)")
    tokenizer: str = option("", "tokenizer.json to use (default: one is trained)", path=True)
    level: str = option("bpe", "what a trained tokenizer's tokens are", ("bpe", "unigram", "char"))
    vocab_size: int = option(2048, "tokens of a trained tokenizer, at most", least=260, most=10_000_000)
    context: int = option(128, "tokens of a window", least=8)
    overlap: int = option(None, "tokens that neighbouring windows share at least (default: a quarter of the context)", least=0)
    layers: int | None = option(None, "of a new model (default: its own)", least=1)
    dim: int | None = option(None, "of a new model (default: its own)", least=1)
    dropout: float | None = option(None, "in the model (default: the model's own)", least=0, below=1)
    batch_tokens: int = option(1024, "tokens in an optimizer step, padding among them", least=1)
    lr: float = option(0.001, "peak learning rate", above=0)
    clip: float = option(1.0, "largest gradient norm; 0 is off", least=0)

    def __post_init__(self) -> None:
        self.overlap = self.context // 4 if self.overlap is None else self.overlap
        super().__post_init__()
        if self.overlap > self.context // 2:
            raise UserError(f"--overlap must be at most half of --context, {self.context // 2}, got {self.overlap}")
        if self.batch_tokens < self.context:
            raise UserError(f"--batch_tokens must be at least --context, {self.context}, got {self.batch_tokens}")
        if self.init and self.tokenizer:
            raise UserError("--tokenizer and --init exclude each other: --init brings its own")
        if self.init and (self.layers or self.dim):
            raise UserError(f"--{'layers' if self.layers else 'dim'} is for new models: --init brings its own size")


def begin(
    options: ReaderOptions, folder: Path, head: str, texts: Callable[[], Iterable[str]], num_classes: int | None = None
) -> tuple[nn.Module, TextTokenizer]:
    """Model and tokenizer, which is trained on `texts` where none is given. Errors: `UserError`, `DataError`, `ValueError`."""
    import torch

    import zoo
    from tasks.data.tokenizer import load_tokenizer, train_tokenizer

    require_reader(options.model, head)
    source = run_or_path(options.init, Path(options.runs_dir))
    if (folder / "tokenizer.json").is_file():
        tokenizer = load_tokenizer(folder / "tokenizer.json")
    elif source or options.tokenizer:
        place = Path(source.removeprefix("hf:")) if source else Path(options.tokenizer)
        tokenizer = load_tokenizer(place.parent if place.is_file() and source else place)
    else:
        tokenizer = train_tokenizer(texts(), options.level, options.vocab_size)
    tokenizer = tokenizer.with_padding().require("cls", "sep")
    torch.manual_seed(options.seed)
    wanted = {"head": head, "num_classes": num_classes, "dropout": options.dropout}
    if not source:
        sizes = {"dim": options.dim, "hidden_dim": options.dim and 4 * options.dim, "layers": options.layers}
        wanted |= sizes | {"vocab_size": tokenizer.vocab_size, "padding": tokenizer.pad, "max_positions": options.context}
    given: dict[str, Any] = {name: value for name, value in wanted.items() if value is not None}
    model: Any = zoo.create(options.model, weights=source or None, **given)
    tokenizer.require_vocab_size(model.embedding.table.num_embeddings)
    most = model.positions.max_positions
    if options.context > most:
        raise UserError(f"--context must be at most {most}, the positions that {options.init} has, got {options.context}")
    model.config |= {"tokenizer": tokenizer.fingerprint, "context": options.context, "overlap": options.overlap}
    return model, tokenizer


def require_reader(name: str, head: str) -> None:
    """Errors: `UserError` for a model without such a head, with the nearest one."""
    import zoo

    known = zoo.names(zoo.bert.Bert)
    if name not in known:
        raise UserError(f"--model {name} has no head for this{did_you_mean(name, known)}; there are {', '.join(known)}")


@dataclass
class ReaderUseOptions(SavedOptions):
    title = "the run"
    batch_size: int = option(32, "windows at a time", least=1)

    def load(self) -> tuple[Any, TextTokenizer, Any]:
        """Model, tokenizer, and the context manager of --precision. Errors: `UserError` and `DataError`."""
        import zoo
        from tasks.data.tokenizer import load_tokenizer

        folder = find_run(self, "best.safetensors")
        tokenizer = load_tokenizer(folder / "tokenizer.json")
        model, precision = placed(zoo.load(folder / "best.safetensors"), self)
        tokenizer.require_vocab_size(model.embedding.table.num_embeddings)
        return model, tokenizer, precision


def split(rows: Sequence[Any], collate: Callable[[Sequence[Any]], Any], options: ReaderOptions, training: bool) -> Split:
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


def run_model(model: Any, rows: Sequence[Any], pad: int, batch_size: int, **inputs: Callable[[Any], list[int]]) -> list[Any]:
    """What the model says of each window, on the CPU, cut to its tokens: a tensor (n, ...), or a tuple of them."""
    import torch

    from tasks.data.batching import padded

    device = next(model.parameters()).device
    order = sorted(range(len(rows)), key=lambda n: len(rows[n].ids))  # of like lengths
    found: list[Any] = [None] * len(rows)
    for start in range(0, len(order), batch_size):
        part = order[start : start + batch_size]
        tokens = padded([rows[n].ids for n in part], pad).to(device)
        mask = real(rows[n].ids for n in part).to(device)
        more = {name: padded([row_of(rows[n]) for n in part], 0).to(device) for name, row_of in inputs.items()}
        with torch.inference_mode():
            said = model(tokens, mask=mask, **more)
        for k, n in enumerate(part):
            width = len(rows[n].ids)
            found[n] = tuple(x[k, :width].float().cpu() for x in said) if isinstance(said, tuple) else said[k, :width].float().cpu()
    return found


def real(rows: Iterable[Sequence[int]]) -> Tensor:
    """(b, n), True for the tokens of each row, False for the padding behind."""
    from tasks.data.batching import padded

    return padded([[1] * len(row) for row in rows], 0).bool()
