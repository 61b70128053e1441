"""BERT and its kin: an encoder that reads in both directions, and heads on its states.

    BERT        Devlin et al., 2018 (arXiv 1810.04805); its small sizes: Turc et al., 2019 (arXiv 1908.08962)
    RoBERTa     Liu et al., 2019 (arXiv 1907.11692): one token type, positions that begin behind the padding's row of the table
    DistilBERT  Sanh et al., 2019 (arXiv 1910.01108): half of the blocks, no token types, a ReLU in place of the pooler's tanh
    MiniLM      Wang et al., 2020 (arXiv 2002.10957): a narrow BERT
    RoFormer    Su et al., 2021 (arXiv 2104.09864): queries and keys are turned by their positions, there is no table of these

They differ in the parts that `BERT`, `ROBERTA`, `DISTILBERT` and `ROFORMER` give to `build`. Proven against the class of
transformers for each head.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from layers import masks
from layers.attention import MultiHeadAttention
from layers.checks import is_traced, require
from layers.embedding import TokenEmbedding, require_known
from layers.feedforward import FeedForward
from layers.padding import real_tokens
from layers.positions import LearnedPositions, Rotary, Sinusoidal
from layers.transformer import EncoderBlock, PostNorm
from layers.weights import WeightMap
from zoo.heads import AnswerHead, MaskedHead, PooledHead, SequenceHead, TokenHead
from zoo.model import Model
from zoo.transformer import require_mask, require_positions, require_tokens

STD = 0.02
"""Standard deviation of all weights at the start, as in BERT's code."""


class Bert(Model):
    """tokens (b, n) -> states (b, n, dim), or what a head makes of them.

    encoder:   blocks (b, n, dim) -> (b, n, dim), called as `EncoderBlock` is; such as those of `encoder_block`.
    embedding: of tokens, and the table by which `MaskedHead` gives logits.
    norm:      after the sum of embeddings.
    positions: module positions (n,) or (b, n) -> (..., dim), added to the embeddings; None where the attentions have their own.
    types:     embedding of token types, added too; None for a model without.
    head:      module (states, mask, embedding) -> outputs; None for the states themselves.
    dropout:   after `norm`.
    """

    def __init__(
        self,
        encoder: Sequence[nn.Module],
        embedding: TokenEmbedding,
        norm: nn.Module,
        *,
        positions: nn.Module | None = None,
        types: TokenEmbedding | None = None,
        head: nn.Module | None = None,
        dropout: float = 0.0,
    ) -> None:
        super().__init__()
        require(0 <= dropout < 1, "dropout", dropout, "a probability below 1")
        self.embedding, self.positions, self.types = embedding, positions, types
        self.norm, self.dropout = norm, nn.Dropout(dropout)
        self.encoder, self.head = nn.ModuleList(encoder), head
        self.outputs = ("states",) if head is None else getattr(head, "outputs", ("logits",))
        self.output_layers = ("head.output",) if isinstance(getattr(head, "output", None), nn.Linear) else ()

    def forward(
        self, tokens: Tensor, mask: Tensor | None = None, types: Tensor | None = None, positions: Tensor | None = None
    ) -> Any:
        """The inputs of `encode` -> its states, or the head's outputs, which mean nothing where a token is padding."""
        states = self.encode(tokens, mask, types, positions)
        return states if self.head is None else self.head(states, mask, self.embedding)

    def encode(
        self, tokens: Tensor, mask: Tensor | None = None, types: Tensor | None = None, positions: Tensor | None = None
    ) -> Tensor:
        """tokens (b, n) -> states (b, n, dim), zeros for padding.

        mask:      boolean (b, n), True for real tokens, None where all are. Padding may be on any side.
        types:     integers (b, n), such as 0 for a first sentence and 1 for a second; 0 by default.
        positions: integers (n,) or (b, n); by default the real tokens of each row are counted from 0, and by RoFormer gaps
                   between them too, as in transformers.
        Errors:    `ValueError` for sizes and dtypes that do not fit, and on the CPU for unknown tokens, types and positions.

        Called eagerly, it computes padding within attention only. Compiled, exported, traced, or under transforms of `torch.func`
        it computes all: the same at real tokens, to rounding error.
        """
        places = self.check(tokens, mask, types, positions)
        if positions is None:
            positions = torch.arange(tokens.shape[1], device=tokens.device) if mask is None else masks.padded_positions(mask)
        real, seen = (None, None) if mask is None else (real_tokens(mask), masks.for_keys(mask))
        if real is not None:
            tokens, positions = real.take(tokens), real.take(positions.expand(real.mask.shape))
            types, seen = None if types is None else real.take(types), None
        x = self.embed(tokens, types, positions)
        for block in self.encoder:
            x = block(x, mask=seen, real=real, **places)
        return x if mask is None else x.masked_fill(~mask[..., None], 0.0) if real is None else real.put(x)

    def embed(self, tokens: Tensor, types: Tensor | None, positions: Tensor) -> Tensor:
        x = self.embedding(tokens)
        if self.types is not None:
            x = x + self.types(torch.zeros_like(tokens) if types is None else types)
        if self.positions is not None:
            x = x + self.positions(positions, x.dtype)
        return self.dropout(self.norm(x))

    def check(self, tokens: Tensor, mask: Tensor | None, types: Tensor | None, positions: Tensor | None) -> dict[str, Tensor]:
        """What blocks get of positions."""
        axes = "batch length"
        require_tokens(tokens, "tokens", axes)
        require_mask(mask, "mask", axes, tokens)
        if types is not None:
            if self.types is None:
                raise ValueError("types must be None for a model without token types")
            require_tokens(types, "types", axes, **dict(zip(axes.split(), tokens.shape, strict=True)))
            if types.is_cpu and not is_traced():
                require_known(types, "types", self.types.table.num_embeddings)
        if isinstance(self.positions, LearnedPositions) and mask is None and positions is None:
            length, most = tokens.shape[1], self.positions.max_positions
            require(length <= most, "tokens", f"{length} a row", f"{most} a row at most")
        return require_positions(positions, axes, tokens)

    def adapted(self, tensors: Mapping[str, Tensor], reference: str) -> dict[str, Tensor]:
        """Files of transformers give the body a prefix, or none where there is no head, and norms had other names once."""
        if not reference:
            return {name: x for name, x in tensors.items() if name in self.state_dict() or not name.startswith("head.")}
        known, table, found = self.maps[reference].export(self).keys(), "embeddings.word_embeddings.weight", {}
        ours, theirs = (next((k.removesuffix(table) for k in names if k.endswith(table)), "") for names in (known, tensors))
        for name, tensor in tensors.items():
            name = name.replace("LayerNorm.gamma", "LayerNorm.weight").replace("LayerNorm.beta", "LayerNorm.bias")
            body = name.removeprefix(theirs)
            name = f"{ours}{body}" if f"{ours}{body}" in known else name
            if name in known or not body.startswith(OTHERS):
                found[name] = tensor
        return found

    def optimized(self, example: Tensor, dtype: torch.dtype) -> nn.Module:
        """A copy for inference whose forward is a program that leaves padding out; see `zoo.optimize`."""
        from zoo.deployment.compiled_encoder import optimize_bert  # which imports this module

        return optimize_bert(self, example, dtype)

    def resize(self, vocab_size: int) -> None:
        """Another vocabulary: known tokens keep their embeddings and output biases; those of new ones are as at first."""
        old, head = self.embedding, self.head
        new = TokenEmbedding(vocab_size, old.table.embedding_dim, scale=old.scale, padding=old.padding, std=old.std)
        kept = min(vocab_size, old.table.num_embeddings)
        with torch.no_grad():
            new.to(old.table.weight).table.weight[:kept] = old.table.weight[:kept]
            new.requires_grad_(old.table.weight.requires_grad)
            if isinstance(head, MaskedHead):
                bias = head.bias.new_zeros(vocab_size)
                bias[:kept] = head.bias[:kept]
                head.bias = nn.Parameter(bias, head.bias.requires_grad)
        self.embedding = new
        if self.config:
            self.config["arguments"] = self.config["arguments"] | {"vocab_size": vocab_size}


def sentence_embeddings(model: Bert, tokens: Tensor, mask: Tensor | None = None) -> Tensor:
    """tokens (b, n), mask (b, n), True for real tokens -> (b, dim): the mean of the states of real tokens, of length 1.

    Reimers and Gurevych, "Sentence-BERT", 2019 (arXiv 1908.10084). Proven against sentence-transformers.
    """
    total = model.encode(tokens, mask).sum(1)  # padding is zeros; and a mean would have the same direction
    return F.normalize(total, dim=1)


# -------------------------------------------------------------------------------------------------------------------- variants


def encoder_block(
    dim: int, heads: int, hidden_dim: int, dropout: float, eps: float, rotary: Rotary | None = None
) -> EncoderBlock:
    """Post-norm, with GELU, and dropout of the attention weights too."""
    attention = MultiHeadAttention(dim, heads, dropout=dropout, positions=rotary)
    return EncoderBlock(
        PostNorm(attention, nn.LayerNorm(dim, eps), nn.Dropout(dropout)),
        PostNorm(FeedForward(dim, hidden_dim, activation=nn.GELU()), nn.LayerNorm(dim, eps), nn.Dropout(dropout)),
    )


def build(
    family: Family,
    vocab_size: int = 30_522,
    *,
    dim: int,
    heads: int,
    hidden_dim: int,
    layers: int,
    max_positions: int = 512,
    types: int = 2,
    dropout: float = 0.1,
    padding: int = 0,
    eps: float = 1e-12,
    std: float | None = STD,
    head: str | None = None,
    num_classes: int | None = None,
) -> Bert:
    """The options of all variants.

    max_positions: rows of the table of positions; RoFormer has none, and only its file for transformers ends there.
    types:       how many token types there are; 0 for a model without.
    padding:     token that fills up short rows; its embedding starts as zeros and is not trained by them.
    std:         of all weights at the start, None for dim^-0.5: with 0.02 a narrow model's attentions begin by saying nothing.
    head:        None, or "masked", "pooled", "sequence", "tokens" or "answer"; DistilBERT has none that is "pooled".
    num_classes: of the heads "sequence" and "tokens"; 2 unless given.
    """
    require(types >= 0, "types", types, "zero or more")
    require(heads > 0, "heads", heads, "positive")
    choices = {"masked": lambda: MaskedHead(dim, vocab_size, eps)}
    choices |= {name: partial(make, dim, num_classes or 2, dropout) for name, make in family.heads.items()}
    require(head is None or head in choices, "head", head, f"None or one of {', '.join(choices)}")
    right = "positive" if head in ("sequence", "tokens") else f"None for the head {head!r}"
    require(num_classes is None or (right == "positive" and num_classes > 0), "num_classes", num_classes, right)
    rotary = Rotary(dim // heads, interleaved=True) if family.rotary else None
    model = Bert(
        [encoder_block(dim, heads, hidden_dim, dropout, eps, rotary) for _ in range(layers)],
        TokenEmbedding(vocab_size, dim, padding=padding, std=std),
        nn.LayerNorm(dim, eps),
        positions=family.positions(max_positions, dim, padding),
        types=TokenEmbedding(types, dim, std=std) if types else None,
        head=None if head is None else choices[head](),
        dropout=dropout,
    )
    model.references = {"huggingface": partial(names_of, family.name, head, max_positions, dim // heads)}
    return model.apply(partial(init_normal, std=dim**-0.5 if std is None else std))


def init_normal(module: nn.Module, std: float) -> None:
    """Normal weights and zero biases for every linear layer, as in transformers."""
    if isinstance(module, nn.Linear):
        nn.init.normal_(module.weight, std=std)
        nn.init.zeros_(module.bias)


@dataclass(frozen=True, eq=False)
class Family:
    """The parts in which the models differ."""

    name: str
    positions: Callable[[int, int, int], nn.Module | None]
    """max_positions, dim, padding -> table of positions."""
    heads: dict[str, Callable[[int, int, float], nn.Module]]
    """Name -> dim, num_classes, dropout -> head."""
    rotary: bool = False
    """Whether queries and keys are turned by their positions."""

    def __repr__(self) -> str:
        return self.name


BERT = Family(
    "bert",
    lambda most, dim, padding: LearnedPositions(most, dim),
    {
        "pooled": lambda dim, classes, p: PooledHead(dim),
        "sequence": lambda dim, classes, p: SequenceHead(PooledHead(dim), classes, dropout=p),
        "tokens": lambda dim, classes, p: TokenHead(dim, classes, dropout=p),
        "answer": lambda dim, classes, p: AnswerHead(dim),
    },
)
ROBERTA = Family(
    "roberta",
    lambda most, dim, padding: LearnedPositions(most, dim, offset=padding + 1),
    BERT.heads | {"sequence": lambda dim, classes, p: SequenceHead(PooledHead(dim, dropout=p), classes, dropout=p)},
)
DISTILBERT = Family(
    "distilbert",
    BERT.positions,
    {
        "sequence": lambda dim, classes, p: SequenceHead(PooledHead(dim, activation=nn.ReLU()), classes, dropout=2 * p),
        "tokens": BERT.heads["tokens"],
        "answer": lambda dim, classes, p: AnswerHead(dim, dropout=p),
    },
)
ROFORMER = Family(
    "roformer",
    lambda most, dim, padding: None,
    {
        "sequence": lambda dim, classes, p: SequenceHead(PooledHead(dim, activation=nn.GELU(), dropout=p), classes, dropout=p),
        "tokens": BERT.heads["tokens"],
        "answer": BERT.heads["answer"],
    },
    rotary=True,
)
BASE = dict(dim=768, heads=12, hidden_dim=3072, layers=12)
LARGE = dict(dim=1024, heads=16, hidden_dim=4096, layers=24)
OF_ROBERTA = dict(vocab_size=50_265, types=1, padding=1, eps=1e-5)
VARIANTS: dict[str, Callable[..., Bert]] = {
    "bert_base": partial(build, BERT, **BASE),
    "bert_large": partial(build, BERT, **LARGE),
    "bert_small": partial(build, BERT, dim=128, heads=2, hidden_dim=512, layers=2, std=None),
    "minilm": partial(build, BERT, dim=384, heads=12, hidden_dim=1536, layers=6),
    "roberta_base": partial(build, ROBERTA, **BASE | OF_ROBERTA),
    "roberta_large": partial(build, ROBERTA, **LARGE | OF_ROBERTA),
    "distilbert_base": partial(build, DISTILBERT, **BASE | dict(layers=6, types=0)),
    "roformer_base": partial(build, ROFORMER, **BASE | dict(vocab_size=50_000, max_positions=1536)),
    "roformer_small": partial(build, ROFORMER, dim=128, heads=2, hidden_dim=512, layers=2, std=None),
}


# -------------------------------------------------------------------------------------------------------- names in transformers

EMBEDDINGS = {
    "embedding.table": "embeddings.word_embeddings",
    "positions.table": "embeddings.position_embeddings",
    "types.table": "embeddings.token_type_embeddings",
    "norm": "embeddings.LayerNorm",
}
OURS = {
    "block": (
        "attention.sublayer.query", "attention.sublayer.key", "attention.sublayer.value", "attention.sublayer.output",
        "attention.norm", "feedforward.sublayer.up", "feedforward.sublayer.down", "feedforward.norm",
    ),
    "masked": ("head.dense", "head.norm", "head.bias", "embedding.table.weight"),
    "pooled": ("head.dense",),
    "sequence": ("head.pooled.dense", "head.output"),
    "tokens": ("head.output",),
    "answer": ("head.output",),
}  # fmt: skip
OF_BERT = {
    "block": (
        "attention.self.query", "attention.self.key", "attention.self.value", "attention.output.dense",
        "attention.output.LayerNorm", "intermediate.dense", "output.dense", "output.LayerNorm",
    ),
    "masked": (
        "cls.predictions.transform.dense", "cls.predictions.transform.LayerNorm",
        "cls.predictions.bias cls.predictions.decoder.bias",
        "bert.embeddings.word_embeddings.weight cls.predictions.decoder.weight",
    ),
    "pooled": ("pooler.dense",),
    "sequence": ("bert.pooler.dense", "classifier"),
    "tokens": ("classifier",),
    "answer": ("qa_outputs",),
}  # fmt: skip
THEIRS = {
    "bert": OF_BERT,
    "roformer": OF_BERT | {
        "masked": tuple(x.replace("bert.", "roformer.") for x in OF_BERT["masked"]),
        "sequence": ("classifier.dense", "classifier.out_proj"),
    },
    "roberta": OF_BERT | {
        "masked": (
            "lm_head.dense", "lm_head.layer_norm", "lm_head.bias lm_head.decoder.bias",
            "roberta.embeddings.word_embeddings.weight lm_head.decoder.weight",
        ),
        "sequence": ("classifier.dense", "classifier.out_proj"),
    },
    "distilbert": OF_BERT | {
        "block": (
            "attention.q_lin", "attention.k_lin", "attention.v_lin", "attention.out_lin",
            "sa_layer_norm", "ffn.lin1", "ffn.lin2", "output_layer_norm",
        ),
        "masked": (
            "vocab_transform", "vocab_layer_norm", "vocab_projector.bias",
            "distilbert.embeddings.word_embeddings.weight vocab_projector.weight",
        ),
        "sequence": ("pre_classifier", "classifier"),
    },
}  # fmt: skip
OTHERS = ("cls.", "classifier.", "lm_head.", "pooler.", "pre_classifier.", "qa_outputs.", "vocab_", "embeddings.position_ids")
"""How the names of heads begin, which a model may lack, and of a table 0, 1, 2, ... in files of old."""
BLOCKS = {"bert": "encoder.layer", "roberta": "encoder.layer", "roformer": "encoder.layer", "distilbert": "transformer.layer"}


def names_of(family: str, head: str | None, max_positions: int, head_dim: int, model: Bert) -> WeightMap:
    """Our names and those of the class of transformers that has this head."""
    derived = {}
    base = "" if head in (None, "pooled") else f"{family}."
    rows = {ours: f"{base}{theirs}" for ours, theirs in EMBEDDINGS.items()}
    for ours, theirs in zip(OURS["block"], THEIRS[family]["block"], strict=True):
        rows[f"encoder.{{i}}.{ours}"] = f"{base}{BLOCKS[family]}.{{i}}.{theirs}"
    if head == "masked":
        del rows["embedding.table"]  # which is the output's too
    if head is not None:
        rows |= zip(OURS[head], THEIRS[family][head], strict=True)
    if family == ROFORMER.name:
        sines = Sinusoidal(head_dim, interleaved=False)
        derived[f"{base}encoder.embed_positions.weight"] = sines(torch.arange(max_positions), torch.float64)
    return WeightMap(*rows.items(), derived=derived)
