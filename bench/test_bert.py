"""BERT-base, ours against transformers' with SDPA and the same weights: 8 rows of up to 128 tokens, all real or 65 % of them.

Ours leaves padding out of everything but attention, in eager torch and in the program that `zoo.optimize` makes.
"""

from __future__ import annotations

from functools import cache

import pytest
import torch
from torch.nn import functional as F
from transformers import BertConfig, BertForSequenceClassification

import zoo

ROWS, LENGTH, CLASSES = 8, 128, 4


@cache
def models():
    """(ours, theirs) with the same drawn weights and no dropout."""
    torch.manual_seed(0)
    ours = zoo.create("bert_base", head="sequence", num_classes=CLASSES, dropout=0.0)
    none = dict(hidden_dropout_prob=0.0, attention_probs_dropout_prob=0.0)
    theirs = BertForSequenceClassification(BertConfig(**none, num_labels=CLASSES, attn_implementation="sdpa"))
    theirs.load_state_dict(ours.maps["huggingface"].export(ours), strict=True)
    return ours, theirs


@cache
def optimized():
    return zoo.optimize(models()[0], batch(padded=False)[0])


def batch(padded):
    """Tokens, mask and labels; of a padded batch rows have 30 to 100 % real tokens, 65 % of all."""
    generator = torch.Generator().manual_seed(0)
    lengths = torch.linspace(0.3 * LENGTH, LENGTH, ROWS).round() if padded else torch.full((ROWS,), LENGTH)
    mask = torch.arange(LENGTH) < lengths[:, None]
    tokens = torch.randint(1000, 30000, (ROWS, LENGTH), generator=generator).masked_fill(~mask, 0)
    return tokens, mask, torch.randint(CLASSES, (ROWS,), generator=generator)


@pytest.mark.parametrize("padded", [False, True], ids=["no padding", "35 % padding"])
@pytest.mark.parametrize("step", [False, True], ids=["infer", "train step"])
def test_bert_base(benchmark, side_by_side, step, padded):
    tokens, mask, labels = batch(padded)
    ours, theirs = (model.train(step) for model in models())
    calls = {
        "ours": lambda: ours(tokens, mask if padded else None),
        "theirs": lambda: theirs(tokens, attention_mask=mask.long() if padded else None).logits,
    }

    def inferred(call):
        with torch.inference_mode():
            return call()

    assert (inferred(calls["ours"]) - inferred(calls["theirs"])).abs().max() < 1e-3

    def stepped(model, call):
        F.cross_entropy(call(), labels).backward()
        model.zero_grad(set_to_none=True)

    benchmark.group = f"BERT-base, {'train step' if step else 'infer'}, {'35 % padding' if padded else 'no padding'}"
    if step:
        side_by_side(lambda: stepped(ours, calls["ours"]), lambda: stepped(theirs, calls["theirs"]), rounds=3)
    else:
        side_by_side(lambda: inferred(calls["ours"]), lambda: inferred(calls["theirs"]), rounds=5)


@pytest.mark.parametrize(
    ("rows", "padded"), [(1, False), (ROWS, False), (ROWS, True)], ids=["1 row", "no padding", "35 % padding"]
)
def test_optimized_bert_base(benchmark, side_by_side, rows, padded):
    tokens, mask, _ = (x[:rows] for x in batch(padded))
    _, theirs = models()
    fast, theirs = optimized(), theirs.eval()

    def ours():
        return fast(tokens, mask if padded else None)

    @torch.inference_mode()
    def reference():
        return theirs(tokens, attention_mask=mask.long() if padded else None).logits

    assert (ours() - reference()).abs().max() < 1e-3
    padding = "35 % padding" if padded else "no padding"
    benchmark.group = f"BERT-base, `zoo.optimize`, {f'{rows} rows' if rows > 1 else 'one row'} of 128 tokens, {padding}"
    side_by_side(ours, reference, rounds=5 if rows > 1 else 15)
