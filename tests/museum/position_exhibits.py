"""Positions: sines, rotations, biases, tables."""

from __future__ import annotations

from exhibit import Exhibit

from layers import positions
from layers.conditioning import PatchEmbedding, PatchOutput, SinusoidalTime
from layers.positions import ALiBi, LearnedPositions, RelativeBias, Rotary, Sinusoidal
from zoo.bert import Bert

OF_POSITIONS, OF_CONDITIONS = "layers/test_positions.py:", "layers/test_conditioning.py:"

EXHIBITS = (
    Exhibit(
        "sines with twice the exponent",
        "The exponent has 2 i where i already steps by two.",
        ("SamLynnEvans/Transformer#25",),
        positions.frequencies, "torch.arange(0, dim, 2,", "2 * torch.arange(0, dim, 2,",
        OF_POSITIONS + "sinusoidal_positions", "forward[paper]",
    ),
    Exhibit(
        "sines of an odd dim",
        "Sines and cosines come in pairs, and the last feature of an odd dim is left at zero, where others crash.",
        ("codertimo/BERT-pytorch#78", "huggingface/transformers#8226"),
        Sinusoidal.forward, ".flatten(-2)[..., : self.dim]",
        ".flatten(-2)[..., : self.dim] * (torch.arange(self.dim) < self.dim // 2 * 2)",
        OF_POSITIONS + "sinusoidal_positions", "forward[paper]",
    ),
    Exhibit(
        "rotary pairs neighbours for halves",
        "Neighbours are turned together where the weights expect halves; it runs, and is wrong.",
        ("huggingface/transformers#25199", "Dao-AILab/flash-attention#288"),
        Rotary.forward, 'if self.interleaved else "... (pair f) -> pair ... f"', 'if True else ""',
        OF_POSITIONS + "rotary", "forward[llama]",
    ),
    Exhibit(
        "rotary turned back in the other layout",
        "Pairs are taken as neighbours and put back as halves.",
        ("rasbt/LLMs-from-scratch#750",),
        Rotary.forward, "-1 if self.interleaved else -2", "-2",
        OF_POSITIONS + "interleaved_rotary", "forward[gptj]", cf=True,
    ),
    Exhibit(
        "rotary is no rotation",
        "A sign is missing in the first half.",
        ("huggingface/transformers#25199",),
        Rotary.forward, "first * cos - second * sin", "first * cos + second * sin",
        OF_POSITIONS + "rotary", "forward[llama]", cf=True,
    ),
    Exhibit(
        "rotary forgets what it does not turn",
        "Of a partial rotation the features that stay are lost.",
        ("EleutherAI/gpt-neox#1003",),
        Rotary.forward, "x[..., self.rotary_dim :]]", "torch.zeros_like(x[..., self.rotary_dim :])]",
        OF_POSITIONS + "partial_rotary", "forward[gpt_neox]", cf=True,
    ),
    Exhibit(
        "rotary angles in half precision",
        "Positions times frequencies are rounded before sine and cosine.",
        ("huggingface/transformers#29285", "huggingface/transformers#25681", "EleutherAI/gpt-neox#1003"),
        Rotary.angles, 'rearrange(positions, "... n -> ... n 1") * speeds',
        '(rearrange(positions, "... n -> ... n 1") * speeds).to(dtype)',
        OF_POSITIONS + "rotary", "bfloat16[llama]",
    ),
    Exhibit(
        "ALiBi of heads that are no power of two",
        "Slopes are those of one geometric row, whatever the number of heads.",
        ("ml-explore/mlx#3071", "ml-explore/mlx#343", "huggingface/transformers#28380"),
        ALiBi.slopes, "torch.where(head < n, 8 / n * (head + 1), 4 / n * (2 * (head - n) + 1))", "8 / self.heads * (head + 1)",
        OF_POSITIONS + "alibi_bias", "forward[bloom]",
    ),
    Exhibit(
        "ALiBi exponent off by one",
        "Heads are counted from zero, so that the first slope is 1.",
        ("paiml/aprender#2143",),
        ALiBi.slopes, "8 / n * (head + 1)", "8 / n * head",
        OF_POSITIONS + "alibi_bias", "forward[bloom]",
    ),
    Exhibit(
        "ALiBi rewards distance",
        "The bias has the wrong sign.",
        ("paiml/aprender#2143",),
        ALiBi.forward, "rearrange(-slopes", "rearrange(slopes",
        OF_POSITIONS + "alibi_bias", "forward[bloom]", cf=True,
    ),
    Exhibit(
        "relative bias mixes up before and after",
        "Keys after the query get the buckets of those before it.",
        ("TransformerLensOrg/TransformerLens#777",),
        RelativeBias.bucket, "(offset > 0)", "(offset < 0)",
        OF_POSITIONS + "relative_bias", "forward[t5]", cf=True,
    ),
    Exhibit(
        "relative bias of the query itself",
        "Distance zero falls into the buckets of the other side.",
        ("TransformerLensOrg/TransformerLens#777",),
        RelativeBias.bucket, "(offset > 0)", "(offset >= 0)",
        OF_POSITIONS + "relative_bias", "forward[t5]", cf=True,
    ),
    Exhibit(
        "relative buckets begin too early",
        "The first distances share a bucket that should have one each.",
        ("TransformerLensOrg/TransformerLens#777",),
        positions.bucket_bounds, "(*range(1, e + 1),", "(*range(0, e),",
        OF_POSITIONS + "relative_bias", "forward[t5]", cf=True,
    ),
    Exhibit(
        "offset of learned positions forgotten",
        "The table's first rows, left over from padding, are taken for the first positions.",
        ("huggingface/transformers#21080",),
        LearnedPositions.forward, "self.table(positions + self.offset)", "self.table(positions)",
        OF_POSITIONS + "learned_positions", "forward[torch]", cf=True,
    ),
    Exhibit(
        "left padding shifts BERT's positions",
        "Learned positions count the padding on the left too.",
        ("huggingface/transformers#21080", "ndif-team/nnsight#672"),
        Bert.encode, "if mask is None else masks.padded_positions(mask)", "if True else mask",
        "zoo/test_bert.py:berts", "forward[eager]",
    ),
    Exhibit(
        "frequencies of time end elsewhere",
        "The shift of the last frequency, in which two codes of diffusion differ, is ignored.",
        ("SamLynnEvans/Transformer#25",),
        SinusoidalTime.forward, "(self.dim // 2 - self.frequency_shift)", "(self.dim // 2)",
        OF_CONDITIONS + "sines", "forward[diffusers]", cf=True,
    ),
    Exhibit(
        "rows for columns in the positions of patches",
        "Half of the features tell the row where they should tell the column.",
        ("SamLynnEvans/Transformer#25",),
        PatchEmbedding.forward, "torch.cat([columns.expand(len(rows), -1, -1), rows[:, None].expand(-1, len(columns), -1)], -1)",
        "torch.cat([rows[:, None].expand(-1, len(columns), -1), columns.expand(len(rows), -1, -1)], -1)",
        OF_CONDITIONS + "patches", "forward[diffusers]", cf=True,
    ),
    Exhibit(
        "pixels of a patch, channels first",
        "A patch's features are read in another order than they were written.",
        ("huggingface/transformers#25199",),
        PatchOutput.forward, "(p q c)", "(c p q)",
        OF_CONDITIONS + "unpatched", "forward[DiT]", cf=True,
    ),
)  # fmt: skip
