"""A small member of each family, models without values, and sentences of few tokens."""

from __future__ import annotations

import torch

import zoo
from zoo.autoencoder import VAE
from zoo.gan import GAN

SMALL = dict(head="small", num_classes=3, in_channels=1)
TEXT = dict(vocab_size=19, dim=8, heads=2, hidden_dim=12, layers=1)


def sentences(*shape):
    """Tokens that are none of the special ones."""
    return torch.randint(3, 19, shape)


def least(name):
    """Arguments that a model cannot do without."""
    return {"vocab_size": 19} if zoo.arguments(name).get("vocab_size") is zoo.REQUIRED else {}


def on_meta(name, **arguments):
    with torch.device("meta"):
        return zoo.create(name, **(least(name) | arguments))


FAMILIES = {
    "vgg11_bn": SMALL,
    "resnet20": {},
    "googlenet": dict(width=1 / 8, num_classes=3),
    "inception_v3": dict(width=1 / 16, num_classes=3, auxiliary=False),
    "mobilenet_v1": dict(width=0.1, num_classes=3),
    "mobilenet_v2": dict(width=0.1, num_classes=3),
    "mobilenet_v3_small": dict(width=0.1, num_classes=3),
    "transformer_base": TEXT | dict(bias=True, interleaved=False),
    "transformer_small": TEXT,
    "bert_small": TEXT | dict(head="masked"),
    "roberta_base": TEXT | dict(head="tokens", num_classes=4),
    "distilbert_base": TEXT | dict(head="sequence", num_classes=3),
    "roformer_base": TEXT | dict(head="tokens", num_classes=4),
    "gpt_small": TEXT | dict(max_positions=9),
    "llama_small": TEXT | dict(kv_heads=1, experts=2, scaling=dict(kind="yarn", factor=2.0, original_length=8)),
    "lstm_small": dict(vocab_size=19, dim=8, hidden_dim=12),
    "bigru_small": dict(vocab_size=19, dim=8, layers=2, head="sequence", num_classes=3),
    "fasttext": dict(vocab_size=19, dim=8, grams=2, buckets=23, num_classes=3),
    "seq2seq_bahdanau": dict(vocab_size=19, dim=8, hidden_dim=12),
    "seq2seq_luong": dict(vocab_size=19, dim=8, hidden_dim=12, layers=2),
    "unet_small": dict(in_channels=1, classes=3),
    "dit_small": dict(in_channels=1, classes=3),
    "dcgan_8": dict(width=4),
    "r3gan_8": dict(width=8, group_size=4),
    "vae_small": {},
}
"""A small member of each family."""


def inputs_of(name, model):
    """What a small member is called with."""
    if isinstance(model, zoo.ImageModel):
        size = 75 if name == "inception_v3" else 32
        return (torch.randn(2, model.in_channels, size, size),)
    if isinstance(model, zoo.DiffusionModel):
        return torch.randn(2, model.in_channels, 8, 8), torch.tensor([3, 700]), torch.tensor([0, 2])
    if isinstance(model, GAN):
        return (torch.randn(2, model.generator.latent_dim),)
    if isinstance(model, VAE):
        return (torch.randn(2, model.in_channels, 8, 8),)
    tokens = torch.randint(1, 19, (2, 5))
    return (tokens, tokens) if isinstance(model, zoo.EncoderDecoder) else (tokens,)
