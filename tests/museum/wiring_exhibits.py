"""Norms, embeddings, feed-forward networks, and how a Transformer is wired."""

from __future__ import annotations

from exhibit import Exhibit

from layers import transformer
from layers.conditioning import ClassEmbedding, ModulatedNorm, Modulation
from layers.embedding import TokenEmbedding
from layers.experts import MixtureOfExperts
from layers.feedforward import GEGLU, FeedForward, GatedFeedForward
from layers.normalization import RMSNorm

OF_BLOCKS, OF_NORMS, OF_HIDDEN = "layers/test_transformer.py:", "layers/test_normalization.py:", "layers/test_feedforward.py:"
OF_CONDITIONS, OF_EMBEDDING = "layers/test_conditioning.py:", "layers/test_embedding.py:"

EXHIBITS = (
    Exhibit(
        "post-norm beside the sum",
        "The norm is applied to what the sub-layer adds, not to the sum.",
        ("pytorch/pytorch#50086", "pytorch/pytorch#74092"),
        transformer.PostNorm.forward, "self.norm(x + self.drop(self.sublayer(x, *args, **kwargs)))",
        "x + self.norm(self.drop(self.sublayer(x, *args, **kwargs)))",
        OF_BLOCKS + "encoder_block", "forward[torch]", cf=True,
    ),
    Exhibit(
        "pre-norm of the residual too",
        "What is added to is the normed input, so that nothing passes unchanged.",
        ("pytorch/pytorch#50086",),
        transformer.PreNorm.forward, "return x + self.drop(self.sublayer(self.norm(x), *args, **kwargs))",
        "x = self.norm(x)\n    return x + self.drop(self.sublayer(x, *args, **kwargs))",
        OF_BLOCKS + "encoder_block", "forward[torch]", cf=True,
    ),
    Exhibit(
        "second norm of a sandwich forgotten",
        "A norm is built, saved and never called.",
        ("lucidrains/audiolm-pytorch#265",),
        transformer.SandwichNorm.forward, "self.after(self.sublayer(self.norm(x), *args, **kwargs))",
        "self.sublayer(self.norm(x), *args, **kwargs)",
        OF_BLOCKS + "sandwich_norm", "parameters_used", cf=True,
    ),
    Exhibit(
        "another eps",
        "The norm adds 1e-5 where it was built for another eps.",
        ("keras-team/keras-hub#642", "nomic-ai/gpt4all#1946"),
        RMSNorm.forward, "self.eps)", "1e-5)",
        OF_NORMS + "rms_norm", "forward[formula]",
    ),
    Exhibit(
        "another default eps",
        "The default is 1e-5 where the reference has 1e-6.",
        ("keras-team/keras-hub#642", "nomic-ai/gpt4all#1946"),
        RMSNorm.__init__, "eps: float = 1e-6", "eps: float = 1e-5",
        OF_NORMS + "test_defaults_are_those_of_the_references",
    ),
    Exhibit(
        "Gemma's weight without its one",
        "Weights that start as zeros are taken for factors.",
        ("google/gemma_pytorch#67",),
        RMSNorm.forward, "torch.float32)) + self.offset", "torch.float32))",
        "zoo/test_gpt.py:gemma_model", "forward[huggingface]", cf=True,
    ),
    Exhibit(
        "GELU of another kind",
        "The exact GELU where weights were trained with the tanh approximation: 5e-4 apart at most.",
        ("vllm-project/vllm#3411", "Lightning-AI/litgpt#1004"),
        GEGLU, "nn.GELU(approximate)", "nn.GELU()",
        OF_HIDDEN + "geglu", "forward[t5]",
    ),
    Exhibit(
        "the wrong half is activated",
        "The gate opens and the hidden layer is activated, not the other way round.",
        ("vllm-project/vllm#3411",),
        GatedFeedForward.forward, "self.activation(self.gate(x)) * self.up(x)", "self.gate(x) * self.activation(self.up(x))",
        OF_HIDDEN + "swiglu", "forward[llama]", cf=True,
    ),
    Exhibit(
        "activation forgotten",
        "Two linear layers follow each other and are no more than one.",
        ("lucidrains/audiolm-pytorch#265",),
        FeedForward.forward, "self.activation(self.up(x))", "self.up(x)",
        OF_HIDDEN + "feedforward", "forward[torch]", cf=True,
    ),
    Exhibit(
        "experts' weights do not add up to one",
        "The weights of the chosen experts are left as the softmax over all gave them.",
        ("vllm-project/vllm#3411",),
        MixtureOfExperts.route, "(weights / weights.sum(-1, keepdim=True))", "weights",
        "layers/test_experts.py:experts", "forward[mixtral]", cf=True,
    ),
    Exhibit(
        "tokens compete for an expert",
        "The router's softmax runs over tokens, so that a row depends on the others.",
        ("vllm-project/vllm#3411",),
        MixtureOfExperts.route, "scores.softmax(-1", "scores.softmax(0",
        "layers/test_experts.py:experts", "forward[written down]", cf=True,
    ),
    Exhibit(
        "kept rows are not scaled",
        "Stochastic depth drops rows in training and scales them on neither side.",
        ("mosaicml/composer#372",),
        transformer.StochasticDepth.forward, "x * keep / (1 - self.p)", "x * keep",
        OF_BLOCKS + "test_stochastic_depth_drops_rows_and_keeps_the_mean", arguments=(0.2,),
    ),
    Exhibit(
        "whole batches dropped",
        "Stochastic depth draws once for the batch, not once a row.",
        ("mosaicml/composer#372",),
        transformer.StochasticDepth.forward, "torch.rand((x.shape[0], *[1] * (x.ndim - 1))",
        "torch.rand((1, *[1] * (x.ndim - 1))",
        OF_BLOCKS + "test_stochastic_depth_drops_rows_and_keeps_the_mean", arguments=(0.2,), cf=True,
    ),
    Exhibit(
        "modulated to nothing",
        "The norm is multiplied by the scale, not by one more, so that the block starts as zero.",
        ("google/gemma_pytorch#67",),
        Modulation.forward, "(1 + scale)", "scale",
        OF_CONDITIONS + "modulated", "forward[diffusers]", cf=True,
    ),
    Exhibit(
        "gate forgotten",
        "The gate that starts at zero is computed and not used.",
        ("lucidrains/audiolm-pytorch#265",),
        ModulatedNorm.forward, "x + gate * self.sublayer", "x + self.sublayer",
        OF_CONDITIONS + "modulated", "forward[diffusers]", cf=True,
    ),
    Exhibit(
        "classes dropped in evaluation",
        "Dropout of classes does not ask for the mode.",
        ("pytorch/pytorch#124464",),
        ClassEmbedding.forward, "if self.training and self.dropout > 0", "if self.dropout > 0",
        OF_CONDITIONS + "classes", "deterministic", cf=True,
    ),
    Exhibit(
        "embedding not scaled",
        "The factor of the 2017 Transformer, the root of dim, is left out.",
        ("pytorch/pytorch#6411",),
        TokenEmbedding.forward, "embedded if self.scale == 1 else embedded * self.scale", "embedded",
        OF_EMBEDDING + "embedding", "forward[torch]", cf=True,
    ),
    Exhibit(
        "padding row is trained",
        "The table is not told its padding, whose row gets gradients.",
        ("pytorch/pytorch#6495", "microsoft/Graphormer#41"),
        TokenEmbedding.__init__, "padding_idx=padding", "padding_idx=None",
        OF_EMBEDDING + "padded_embedding", "backward[torch]", cf=True,
    ),
    Exhibit(
        "padding row initialised",
        "The model's own initialisation overwrites the zeros of the padding.",
        ("pytorch/pytorch#6411", "pytorch/pytorch#6495", "microsoft/Graphormer#41"),
        TokenEmbedding.reset_parameters, "nn.init.zeros_(self.table.weight[self.padding].detach())", "pass",
        OF_EMBEDDING + "test_the_padding_row_starts_as_zeros_and_stays",
    ),
    Exhibit(
        "embedding starts too wide",
        "torch's own standard deviation of 1 is left in place.",
        ("pytorch/torchtitan#3334",),
        TokenEmbedding.reset_parameters, "std=self.std", "std=1.0",
        OF_EMBEDDING + "fresh_embedding", "initial_distribution", cf=True,
    ),
    Exhibit(
        "scale in the logits too",
        "The factor of the embeddings is applied on the way back.",
        ("pytorch/torchtitan#3764",),
        TokenEmbedding.logits, "F.linear(x, self.table.weight, bias)", "F.linear(x, self.scale * self.table.weight, bias)",
        OF_EMBEDDING + "test_logits_use_the_same_table_without_its_scale", cf=True,
    ),
)  # fmt: skip
