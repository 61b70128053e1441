"""`Trainer` of transformers over our models: its steps are those of a plain loop, bit for bit."""

from __future__ import annotations

import pytest
import torch
from torch import nn
from torch.nn import functional as F
from transformers import Trainer, TrainingArguments

import zoo
from zoo.pretrained.wrappers import wrap

SMALL = dict(vocab_size=19, dim=8, heads=2, hidden_dim=12, layers=1)
MODELS = {
    "llama_small": {},
    "bert_small": dict(head="sequence", num_classes=3, dropout=0.0),
    "roberta_base": dict(head="tokens", num_classes=3, dropout=0.0),
    "distilbert_base": dict(head="masked", dropout=0.0),
}


def drawn(name):
    torch.manual_seed(0)
    model = zoo.create(name, **SMALL, **MODELS[name])
    for p in model.parameters():
        nn.init.normal_(p, std=0.2)
    return model


def examples(name):
    """80 rows of 6 tokens, of which labels leave out some."""
    g = torch.Generator().manual_seed(1)
    rows = torch.randint(5, 19, (80, 6), generator=g)
    classes = 3 if "num_classes" in MODELS[name] else 19
    labels = torch.randint(classes, (80,) if MODELS[name].get("head") == "sequence" else (80, 6), generator=g)
    if labels.ndim == 2:
        labels[:, 4:] = -100
    return [{"input_ids": row, "labels": label} for row, label in zip(rows, labels, strict=True)]


def trained(name, folder, **options):
    made = wrap(drawn(name))
    arguments = TrainingArguments(
        str(folder), max_steps=20, learning_rate=1e-2, lr_scheduler_type="constant", max_grad_norm=0, optim="adamw_torch",
        use_cpu=True, report_to=[], save_strategy="no", logging_strategy="no", disable_tqdm=True,
        train_sampling_strategy="sequential", weight_decay=0.1, dataloader_pin_memory=False, **options,
    )  # fmt: skip
    Trainer(made, arguments, train_dataset=examples(name)).train()
    return made.model.state_dict()


def plain(name):
    """AdamW, without weight decay of biases and norms, as theirs."""
    model, rows = drawn(name).train(), examples(name)
    decayed = [p for p in model.parameters() if p.ndim > 1]
    others = [p for p in model.parameters() if p.ndim == 1]
    groups = [dict(params=decayed, weight_decay=0.1), dict(params=others, weight_decay=0.0)]
    optimizer = torch.optim.AdamW(groups, lr=1e-2)
    for step in range(20):
        batch = rows[4 * step : 4 * step + 4]
        tokens, labels = (torch.stack([row[key] for row in batch]) for key in ("input_ids", "labels"))
        logits = model(tokens)
        if isinstance(model, zoo.LanguageModel):
            labels = F.pad(labels, (0, 1), value=-100)[:, 1:]
        loss = F.cross_entropy(logits.flatten(0, -2), labels.flatten(), reduction="sum") / (labels != -100).sum()
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    return model.state_dict()


@pytest.mark.parametrize("name", MODELS)
def test_twenty_steps_are_those_of_a_plain_loop(name, tmp_path):
    found, expected = trained(name, tmp_path, per_device_train_batch_size=4), plain(name)
    assert all(torch.equal(found[key], x) for key, x in expected.items())
    assert not any(torch.equal(found[key], x) for key, x in drawn(name).state_dict().items())


def test_batches_in_parts_are_the_same_steps(tmp_path):
    """By the number of tokens, which all parts are told: they have unequal ones."""
    found = trained("llama_small", tmp_path, per_device_train_batch_size=1, gradient_accumulation_steps=4)
    for key, x in plain("llama_small").items():
        torch.testing.assert_close(found[key], x, rtol=1e-4, atol=1e-4)
