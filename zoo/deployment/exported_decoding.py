"""Parts of models that write texts, as functions that `export` takes: past in, present out.

    Encoder         source, source_mask -> memory, memory_keys_0, memory_values_0, ... of every decoder block
    Step            tokens, past_keys_0, past_values_0, ... -> logits, present_keys_0, present_values_0, ...
                    of a Transformer also source_mask and what the encoder gave, but for memory

Logits (b, vocab_size) are for what follows the last token. Keys and values (b, kv_heads, n, head_dim) of the past have n = 0 in
the first call; then each call is given what the one before it gave. A model as it is keeps its past in caches that it fills in
place, which programs of others leave out without a word. All rows have as many tokens.

    greedy          the loop over a step's ONNX file, by onnxruntime and numpy alone
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn

from layers.attention import MultiHeadAttention
from layers.cache import Cache, CrossCache
from layers.checks import require
from zoo.gpt import CausalLM
from zoo.transformer import Transformer


class Past(Cache):
    """A cache that leaves what it was given alone: `append` makes new tensors of the past and what comes."""

    def __init__(self, keys: Tensor, values: Tensor) -> None:
        self.keys, self.values = keys, values
        self.start: Tensor | None = None

    def slots(self, new: int, device: torch.device) -> Tensor:
        return torch.arange(new, device=device) + self.keys.shape[2]

    def append(self, keys: Tensor, values: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        self.keys, self.values = torch.cat([self.keys, keys], 2), torch.cat([self.values, values], 2)
        return self.keys, self.values, torch.arange(self.keys.shape[2], device=keys.device)


class Encoder(nn.Module):
    """source (b, n), source_mask (b, n) -> memory (b, n, dim), and its keys and values for every block of the decoder."""

    def __init__(self, model: Transformer) -> None:
        super().__init__()
        require(isinstance(model, Transformer), "model", type(model).__name__, "a Transformer")
        self.model = model

    def forward(self, source: Tensor, source_mask: Tensor | None = None) -> dict[str, Tensor]:
        outputs = {"memory": self.model.encode(source, source_mask)}
        for n, block in enumerate(self.model.decoder):
            cross: Any = attention_of(block.cross_attention)
            memory = outputs["memory"]
            if source_mask is not None:  # as the attention does of what nobody may see
                memory = memory.masked_fill(~source_mask[..., None], 0.0)
            outputs[f"memory_keys_{n}"] = cross.split(cross.key(memory), cross.key_norm)
            outputs[f"memory_values_{n}"] = cross.split(cross.value(memory))
        return outputs


class Step(nn.Module):
    """One call of decoding, for one token a row or a prompt of many; `example` gives what it is called with."""

    def __init__(self, model: CausalLM | Transformer) -> None:
        super().__init__()
        require(isinstance(model, CausalLM | Transformer), "model", type(model).__name__, "a GPT, a Llama or a Transformer")
        self.model = model

    def forward(self, tokens: Tensor, source_mask: Tensor | None = None, **past: Tensor) -> dict[str, Tensor]:
        caches = [Past(past[f"past_keys_{n}"], past[f"past_values_{n}"]) for n in range(len(self.model.decoder))]
        if isinstance(self.model, Transformer):
            crossed = [Crossed(past[f"memory_keys_{n}"], past[f"memory_values_{n}"]) for n in range(len(caches))]
            keys = crossed[0].keys
            memory = keys.new_zeros(keys.shape[0], keys.shape[2], self.model.embedding.table.embedding_dim)  # not looked at
            logits = self.model.next_logits(tokens, memory, source_mask, [*zip(caches, crossed, strict=True)])
        else:
            logits = self.model.next_logits(tokens, caches)
        present = ((f"present_{kind}_{n}", getattr(cache, kind)) for n, cache in enumerate(caches) for kind in ("keys", "values"))
        return {"logits": logits, **dict(present)}

    def example(self, rows: int = 2, past: int = 3) -> dict[str, Tensor]:
        """Inputs of these sizes, for `export`; of a past of 0 for a first call.

        Of a Transformer there are a mask and a memory for sources of 4 tokens too.
        """
        weight = next(self.model.parameters())
        inputs = {"tokens": torch.ones(rows, 2, dtype=torch.long, device=weight.device)}
        transformer, kinds = isinstance(self.model, Transformer), ("keys", "values")
        if transformer:
            inputs["source_mask"] = torch.ones(rows, 4, dtype=torch.bool, device=weight.device)
        draw = torch.Generator(weight.device).manual_seed(0)
        for name, size in (("past", past), *([("memory", 4)] if transformer else [])):
            for n, block in enumerate(self.model.decoder):
                attention = attention_of(block.attention if name == "past" else block.cross_attention)
                shape = rows, attention.kv_heads, size, attention.head_dim
                for kind in kinds:
                    inputs[f"{name}_{kind}_{n}"] = torch.randn(shape, generator=draw, dtype=weight.dtype, device=weight.device)
        return inputs


class Crossed(CrossCache):
    """Keys and values that are known."""

    def __init__(self, keys: Tensor, values: Tensor) -> None:
        self.keys, self.values = keys, values


def attention_of(part: Any) -> MultiHeadAttention:
    return next(module for module in part.modules() if isinstance(module, MultiHeadAttention))


def greedy(session: Any, tokens: Any, max_new_tokens: int, **known: Any) -> Any:
    """The likeliest tokens that follow, (b, max_new_tokens), of the ONNX file of a `Step`; arrays of numpy, no torch.

    session: onnxruntime's `InferenceSession` of that file. tokens: (b, n) in int64, a prompt without padding.
    known:   what else the file takes in every call: of a Transformer source_mask, and memory_keys_0 and others of its encoder.
    Keys and values stay with onnxruntime from call to call.
    """
    import numpy as np
    from onnxruntime import OrtValue

    require(max_new_tokens > 0, "max_new_tokens", max_new_tokens, "positive")
    require(getattr(tokens, "ndim", 0) == 2 and tokens.size > 0, "tokens", getattr(tokens, "shape", tokens), "(b, n), not empty")
    taken = {value.name: value for value in session.get_inputs()}
    past = [name for name in taken if name.startswith("past_")]
    rest = {*taken} - {"tokens", *past}
    require(known.keys() == rest, "known", ", ".join(known) or "nothing", ", ".join(sorted(rest)) or "nothing")
    gives = ["logits", *(name.replace("past", "present") for name in past)]
    dtype = {"tensor(float)": np.float32, "tensor(double)": np.float64}
    fed = {name: OrtValue.ortvalue_from_numpy(np.ascontiguousarray(x)) for name, x in known.items()}
    for name in past:
        _, heads, _, head_dim = taken[name].shape
        fed[name] = OrtValue.ortvalue_from_numpy(np.zeros((len(tokens), heads, 0, head_dim), dtype[taken[name].type]))
    written = []
    for _ in range(max_new_tokens):
        fed["tokens"] = OrtValue.ortvalue_from_numpy(np.ascontiguousarray(tokens))
        logits, *present = session.run_with_ort_values(gives, fed)
        fed |= zip(past, present, strict=True)
        tokens = logits.numpy().argmax(-1)[:, None]
        written.append(tokens)
    return np.concatenate(written, 1)
