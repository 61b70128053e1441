"""One of our models within a model of `transformers`; `wrappers` has the heads. Importing this module imports `transformers`.

What it heeds: `from_pretrained` builds a model on the meta device, reads the file, and asks module by module for values of what
that lacks, buffers that are not saved among it; what is not flagged, their law would draw anew.
"""

from __future__ import annotations

import contextlib
from typing import Any

import torch
from torch import Tensor, nn
from transformers import PreTrainedConfig, PreTrainedModel

import zoo
from layers import masks
from zoo.model import LanguageModel, Model, without_values


class ZooproofConfig(PreTrainedConfig):
    """The name of one of our models and its arguments, which are JSON values."""

    model_type = "zooproof"
    model: str = ""
    arguments: dict | None = None
    vocab_size: int = 1
    num_hidden_layers: int = 1
    classes: list | None = None


class Wrapper(PreTrainedModel):
    """Abstract: one of our models, for a head. given: a model that is there already."""

    config_class = ZooproofConfig
    base_model_prefix = "zooproof"  # no attribute: all heads have the same names
    head: str | None = None
    writes: bool | None = False
    """Whether it is for language models; None where it is for all."""

    def __init__(self, config: Any, given: Model | None = None) -> None:
        super().__init__(config)
        config.arguments = config.arguments if given is not None else self.arguments_for(config)
        with without_values() if torch.get_default_device().type == "meta" else contextlib.nullcontext():
            self.model = zoo.build(config.model, **config.arguments) if given is None else given
        names: dict[int, list[str]] = {}
        for name, x in self.named_parameters(remove_duplicate=False):
            names.setdefault(id(x), []).append(name)
        self._tied_weights_keys = {other: first for first, *others in names.values() for other in others}
        config.tie_word_embeddings = bool(self._tied_weights_keys)
        for x in tensors_of(self):  # or they would be drawn again, by a law that is not the model's
            x._is_hf_initialized = not x.is_meta  # type: ignore[attr-defined]
        self.post_init()

    def arguments_for(self, config: Any) -> dict[str, Any]:
        """The config's arguments, with the wrapper's head. Errors: `ValueError` for a model that cannot have it."""
        arguments, known = dict(config.arguments or {}), zoo.arguments(config.model)
        writes = issubclass(zoo.kind_of(config.model), LanguageModel)
        if self.writes not in (None, writes) or not (writes or "head" in known):
            raise ValueError(f"{config.model} has no head for {type(self).__name__}")
        if writes:
            return arguments
        arguments = {key: value for key, value in arguments.items() if key != "num_classes"} | {"head": self.head}
        return arguments | ({"num_classes": config.num_labels} if self.head in ("sequence", "tokens") else {})

    def initialize_weights(self) -> None:
        """Draws what a file has not given, such as a new head, as the model does."""
        self.__dict__["fresh"] = Fresh(self.model, self.config)
        try:
            super().initialize_weights()
        finally:
            del self.__dict__["fresh"]

    def _init_weights(self, module: nn.Module) -> None:
        """Of a module's own tensors, for those that are not flagged."""
        fresh = self.__dict__.get("fresh")
        if fresh is None or not fresh.fill(module):
            super()._init_weights(module)  # of a resized table

    def save_pretrained(self, *given: Any, **options: Any) -> None:
        """As theirs; `zoo.load` will know the names of classes."""
        if self.head in ("sequence", "tokens"):
            labels: Any = self.config.id2label
            names = [labels[n] for n in range(len(labels))]
            self.config.classes = None if names == [f"LABEL_{n}" for n in range(len(names))] else names
        super().save_pretrained(*given, **options)

    def get_input_embeddings(self) -> nn.Module:
        return self.model.embedding.table

    def set_input_embeddings(self, value: nn.Module) -> None:
        self.model.embedding.table = value

    def get_output_embeddings(self) -> nn.Module | None:
        return getattr(self.model, "output", None)

    def set_output_embeddings(self, new_embeddings: nn.Module) -> None:
        self.model.output = new_embeddings

    def resize_token_embeddings(
        self, new_num_tokens: int | None = None, pad_to_multiple_of: int | None = None, mean_resizing: bool = True
    ) -> Any:
        """As theirs; what our own model knows of its vocabulary changes too."""
        before = self.config.vocab_size
        table = super().resize_token_embeddings(new_num_tokens, pad_to_multiple_of, mean_resizing)
        if (size := table.num_embeddings) != before:
            self.config.arguments = self.config.arguments | {"vocab_size": size}
            self.model.config = self.model.config | {"arguments": self.config.arguments}
            if isinstance(bias := getattr(getattr(self.model, "head", None), "bias", None), nn.Parameter):
                grown = torch.cat([bias.detach(), bias.new_zeros(max(size - before, 0))])[:size]
                self.model.head.bias = nn.Parameter(grown, bias.requires_grad)
        return table

    def outputs(self, call: Any, tokens: Tensor | None, mask: Tensor | None, rest: dict[str, Any]) -> Any:
        """call(tokens, mask, types): what is not given is left out. Errors: `ValueError` for inputs that ours do not take."""
        types = rest.pop("token_type_ids", None)
        for name in ("inputs_embeds", "position_ids", "output_attentions", "output_hidden_states"):
            if (value := rest.pop(name, None)) is not None and value is not False:
                raise ValueError(f"{name} must be left out for a model of zooproof, which counts real tokens by attention_mask")
        if tokens is None:
            raise ValueError("input_ids must be given")
        known = {"mask": None if mask is None else masks.allowed_from_ones(mask), "types": types}
        return call(tokens, **{name: x for name, x in known.items() if x is not None})


class Fresh:
    """Values as the model draws or computes them, for what a file has not given: a new head, a buffer that is not saved."""

    def __init__(self, model: nn.Module, config: Any) -> None:
        self.paths, self.config = {id(part): path for path, part in model.named_modules()}, config
        self.parts: dict[str, nn.Module] = {}

    def fill(self, module: nn.Module) -> bool:
        """The module's own tensors that are not flagged. False for a module that is none of the model's."""
        lacking = {id(x) for x in tensors_of(module, recurse=False) if not getattr(x, "_is_hf_initialized", False)}
        if lacking and (path := self.paths.get(id(module))) is not None:
            if not self.parts:
                with torch.device("cpu"):
                    self.parts = dict(zoo.build(self.config.model, **self.config.arguments).named_modules())
            pairs = zip(tensors_of(module, recurse=False), tensors_of(self.parts[path], recurse=False), strict=True)
            for x, value in pairs:
                if id(x) in lacking:
                    x.detach().copy_(value.detach())
        return not lacking or id(module) in self.paths


def tensors_of(module: nn.Module, recurse: bool = True) -> list[Tensor]:
    return [*module.parameters(recurse), *module.buffers(recurse)]
