"""Hugging Face's BERT, RoBERTa, DistilBERT and RoFormer with their heads: what their options are called here."""

from __future__ import annotations

from collections.abc import Mapping
from functools import partial
from typing import Any

from zoo import bert
from zoo.pretrained.architecture import Architecture

BERT = {
    "vocab_size": "vocab_size", "hidden_size": "dim", "num_attention_heads": "heads", "num_hidden_layers": "layers",
    "intermediate_size": "hidden_dim", "type_vocab_size": "types", "layer_norm_eps": "eps", "pad_token_id": "padding",
    "hidden_dropout_prob": "dropout",
}  # fmt: skip
DISTILBERT = {
    "vocab_size": "vocab_size", "dim": "dim", "n_heads": "heads", "n_layers": "layers", "hidden_dim": "hidden_dim",
    "max_position_embeddings": "max_positions", "pad_token_id": "padding", "dropout": "dropout",
}  # fmt: skip
SIZES = dict(
    vocab_size=30_522, hidden_size=768, num_attention_heads=12, num_hidden_layers=12, intermediate_size=3072, type_vocab_size=2,
    layer_norm_eps=1e-12, pad_token_id=0, hidden_dropout_prob=0.1, max_position_embeddings=512,
)  # fmt: skip
DEFAULTS = {
    "Bert": SIZES,
    "Roberta": SIZES | dict(vocab_size=50_265, pad_token_id=1),
    "RoFormer": SIZES | dict(vocab_size=50_000, max_position_embeddings=1536),
    "DistilBert": dict(vocab_size=30_522, dim=768, n_heads=12, n_layers=6, hidden_dim=3072, max_position_embeddings=512,
                       pad_token_id=0, dropout=0.1),
}  # fmt: skip
ALWAYS = {"tie_word_embeddings": (True,), "is_decoder": (False,), "add_cross_attention": (False,), "pruned_heads": ({}, None)}
FIXED = ALWAYS | {"hidden_act": ("gelu",), "position_embedding_type": ("absolute", None)}
POOLERS = {
    "directionality", "pooler_fc_size", "pooler_num_attention_heads", "pooler_num_fc_layers", "pooler_size_per_head",
    "pooler_type",
}  # fmt: skip
"""What configs of 2018 say of a pooler that nobody has built."""
READ_ELSEWHERE = {
    "max_position_embeddings",
    "embedding_size",
    "classifier_dropout",
    "seq_classif_dropout",
    "tie_weights_",
} | POOLERS


def bert_extra(config: Mapping[str, Any]) -> dict[str, Any]:
    """Errors: `ValueError` for another dropout of the classifier."""
    require_dropout(config, "classifier_dropout", config["hidden_dropout_prob"], None)
    return {"max_positions": config["max_position_embeddings"]}


def roberta_extra(config: Mapping[str, Any]) -> dict[str, Any]:
    """Its table has rows that no position takes: those up to the padding's."""
    if (padding := config["pad_token_id"]) is None:
        raise ValueError("pad_token_id of Roberta must be a token, for its positions begin behind it, got None")
    return {"max_positions": bert_extra(config)["max_positions"] - padding - 1}


def roformer_extra(config: Mapping[str, Any]) -> dict[str, Any]:
    """Errors: `ValueError` for embeddings of another width than the states."""
    if config.get("embedding_size") not in (None, config["hidden_size"]):
        raise ValueError(f"embedding_size must be hidden_size, {config['hidden_size']}, got {config['embedding_size']}")
    return {"max_positions": config["max_position_embeddings"]}


def distilbert_extra(config: Mapping[str, Any]) -> dict[str, Any]:
    require_dropout(config, "seq_classif_dropout", 2 * config["dropout"], 0.2)
    return {"types": 0}


def require_dropout(config: Mapping[str, Any], name: str, right: float, default: float | None) -> None:
    found = config.get(name, default)
    if found not in (None, right):
        raise ValueError(f"{name} must be {right}, which the other dropouts lead to here, got {found}")


def bert_back(arguments: Mapping[str, Any], offset: int = 0) -> dict[str, Any]:
    return {"max_position_embeddings": arguments["max_positions"] + offset, "attention_probs_dropout_prob": arguments["dropout"]}


def roberta_back(arguments: Mapping[str, Any]) -> dict[str, Any]:
    return bert_back(arguments, offset=arguments["padding"] + 1)


def distilbert_back(arguments: Mapping[str, Any]) -> dict[str, Any]:
    """Errors: `ValueError` for token types, or another eps than theirs."""
    for name, right in (("types", 0), ("eps", 1e-12)):
        if arguments[name] != right:
            raise ValueError(f"{name} must be {right} for Hugging Face's DistilBERT, got {arguments[name]}")
    dropout = arguments["dropout"]
    return {"attention_dropout": dropout, "qa_dropout": dropout, "seq_classif_dropout": 2 * dropout}


KINDS = {
    "Bert": partial(
        Architecture, partial(bert.build, bert.BERT), BERT, FIXED, bert_extra, bert_back, SIZES,
        {"hidden_dropout_prob": {"attention_probs_dropout_prob": 0.1}},
    ),
    "Roberta": partial(
        Architecture, partial(bert.build, bert.ROBERTA), BERT, FIXED, roberta_extra, roberta_back, DEFAULTS["Roberta"],
        {"hidden_dropout_prob": {"attention_probs_dropout_prob": 0.1}},
    ),
    "RoFormer": partial(
        Architecture, partial(bert.build, bert.ROFORMER), BERT,
        ALWAYS | {"hidden_act": ("gelu",), "rotary_value": (False,)}, roformer_extra, bert_back, DEFAULTS["RoFormer"],
        {"hidden_dropout_prob": {"attention_probs_dropout_prob": 0.1}},
    ),
    "DistilBert": partial(
        Architecture, partial(bert.build, bert.DISTILBERT), DISTILBERT,
        ALWAYS | {"activation": ("gelu",), "sinusoidal_pos_embds": (False, True)}, distilbert_extra, distilbert_back,
        DEFAULTS["DistilBert"], {"dropout": {"attention_dropout": 0.1, "qa_dropout": 0.1}},
    ),
}  # fmt: skip
HEADS = {"masked": "ForMaskedLM", "sequence": "ForSequenceClassification", "tokens": "ForTokenClassification",
         "answer": "ForQuestionAnswering"}  # fmt: skip
ENCODERS = {f"{kind}{theirs}": make(given={"head": head}) for kind, make in KINDS.items() for head, theirs in HEADS.items()}
ENCODERS |= {f"{kind}Model": make(given={"head": None}) for kind, make in KINDS.items()}
ENCODERS |= {"BertForPreTraining": ENCODERS["BertForMaskedLM"]}  # whose other head is left out
CHOICES = f"{', '.join(KINDS)} with {', '.join(['Model', *HEADS.values()])}"
FAMILIES = {"bert": "Bert", "roberta": "Roberta", "distilbert": "DistilBert", "roformer": "RoFormer"}


def class_of(family: Any, arguments: Mapping[str, Any]) -> str:
    """Which of their classes has this head."""
    head = arguments["head"]
    return FAMILIES[family.name] + ("Model" if head in (None, "pooled") else HEADS[head])
