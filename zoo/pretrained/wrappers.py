"""Models of ours that Hugging Face has no class for, as models of `transformers`: `Trainer`, `pipeline`, `generate`, Auto classes.

    made = wrap(model, "tokenizer.json", "folder")                        # the class for its head; the tensors stay the model's
    register()                                                            # in any process that is to load them
    made = transformers.AutoModelForCausalLM.from_pretrained("folder")

A wrapper holds the model as `model`, builds it anew by name and arguments, and hands tensors on; the models know nothing of it.
`zoo.load` reads its folders too. Importing this module imports `transformers`.
"""

from __future__ import annotations

import contextlib
import dataclasses
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from transformers import (
    AutoConfig,
    AutoModel,
    AutoModelForCausalLM,
    AutoModelForMaskedLM,
    AutoModelForSequenceClassification,
    AutoModelForTokenClassification,
    Cache,
    GenerationMixin,
    PreTrainedConfig,
    PreTrainedModel,
)  # fmt: skip
from transformers.modeling_outputs import (
    BaseModelOutput,
    CausalLMOutputWithPast,
    MaskedLMOutput,
    SequenceClassifierOutput,
    TokenClassifierOutput,
)  # fmt: skip
from transformers.utils import can_return_tuple

import zoo
from layers import masks
from zoo.model import LanguageModel, Model, without_values
from zoo.pretrained.fast_tokenizer import require_new, save
from zoo.pretrained.huggingface import tokenizer_for

CACHE = "cache" if "cache" in {f.name for f in dataclasses.fields(CausalLMOutputWithPast)} else "past_key_values"
"""What `generate` calls the past; its name until version 5.23, and since."""


class ZooproofConfig(PreTrainedConfig):
    """The name of one of our models and its arguments, which are JSON values."""

    model_type = "zooproof"
    model: str = ""
    arguments: dict | None = None
    vocab_size: int = 1
    num_hidden_layers: int = 1


class Wrapper(PreTrainedModel):
    """Abstract: one of our models, for a head. given: a model that is there already."""

    config_class = ZooproofConfig
    base_model_prefix = "zooproof"  # no attribute: all heads have the same names
    head: str | None = None

    def __init__(self, config: Any, given: Model | None = None) -> None:
        super().__init__(config)
        config.arguments = config.arguments if given is not None else arguments_for(self, config)
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

    def initialize_weights(self) -> None:
        """Draws what a file has not given, such as a new head, as the model does."""
        self.__dict__["drawn"], self.__dict__["paths"] = {}, {id(part): path for path, part in self.model.named_modules()}
        try:
            super().initialize_weights()
        finally:
            del self.__dict__["drawn"], self.__dict__["paths"]

    def _init_weights(self, module: nn.Module) -> None:
        """Of a module's own tensors; what needs no values of its own, such as a buffer that is not saved, is computed anew too."""
        path = self.__dict__.get("paths", {}).get(id(module))
        lacking = [x for x in tensors_of(module, recurse=False) if not getattr(x, "_is_hf_initialized", False)]
        if path is None and module is not self:
            super()._init_weights(module)  # of a resized table
        elif lacking:
            if not self.drawn:
                with torch.device("cpu"):
                    self.drawn.update(zoo.build(self.config.model, **self.config.arguments).named_modules())
            own, fresh = (list(tensors_of(part, recurse=False)) for part in (module, self.drawn[path]))
            for x, value in zip(own, fresh, strict=True):
                if any(x is other for other in lacking):
                    x.detach().copy_(value.detach())

    def get_input_embeddings(self) -> nn.Module:
        return self.model.embedding.table

    def set_input_embeddings(self, value: nn.Module) -> None:
        self.model.embedding.table = value

    def get_output_embeddings(self) -> nn.Module | None:
        return getattr(self.model, "output", None)

    def set_output_embeddings(self, new_embeddings: nn.Module) -> None:
        self.model.output = new_embeddings

    def resize_token_embeddings(self, *given: Any, **options: Any) -> nn.Module:
        """As theirs; what our own model knows of its vocabulary changes too."""
        before = self.config.vocab_size
        table = super().resize_token_embeddings(*given, **options)
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


class ZooproofModel(Wrapper):
    """States (b, n, dim) of all tokens."""

    @can_return_tuple
    def forward(self, input_ids: Tensor | None = None, attention_mask: Tensor | None = None, **kwargs: Any) -> Any:
        states = self.model.encode if hasattr(self.model, "encode") else self.model.hidden
        return BaseModelOutput(last_hidden_state=self.outputs(states, input_ids, attention_mask, kwargs))


class Past(Cache):
    """Our decoder, where `generate` expects a cache."""

    is_compileable, is_croppable = False, False

    def __init__(self, model: Any, capacity: int) -> None:
        super().__init__(layers=[])
        self.decoder, self.begun = model.start(capacity=capacity), False

    def read(self, tokens: Tensor, mask: Tensor | None = None) -> Tensor:
        """tokens (rows, n), after those that are there -> logits (rows, 1, vocab_size) for the next one."""
        padded = mask is not None and not self.begun and not bool(mask.all())
        self.begun = True
        return (self.decoder(tokens, mask) if padded else self.decoder(tokens))[:, None]

    def get_seq_length(self, layer_idx: int = 0) -> int:
        return self.decoder.length

    def reorder_cache(self, beam_idx: Tensor) -> None:
        self.decoder.select(beam_idx)

    batch_select_indices = reorder_cache


class ZooproofForCausalLM(Wrapper, GenerationMixin):
    """A language model: logits for what follows each token, or in `generate` the last one."""

    @can_return_tuple
    def forward(
        self, input_ids: Tensor | None = None, attention_mask: Tensor | None = None, labels: Tensor | None = None, **kwargs: Any
    ) -> Any:
        past, loss = kwargs.pop(CACHE, None), None
        kwargs.pop("use_cache", None)
        call = past.read if isinstance(past, Past) else self.model
        if past is not None and call is self.model:
            raise ValueError(f"{CACHE} must be left to generate, got a {type(past).__name__}")
        logits = self.outputs(call, input_ids, attention_mask, kwargs)
        if labels is not None:
            loss = self.loss_function(logits, labels, vocab_size=self.config.vocab_size, **kwargs)
        return CausalLMOutputWithPast(loss=loss, logits=logits, **{CACHE: past})

    def _prepare_cache_for_generation(
        self, generation_config: Any, model_kwargs: dict[str, Any], generation_mode: Any, batch_size: int, max_cache_length: int
    ) -> None:
        """Ours knows what it computes best: whatever `cache_implementation` says, the model's own decoder keeps the past."""
        if generation_config.use_cache is not False and model_kwargs.get(CACHE) is None:
            model_kwargs[CACHE] = Past(self.model, max_cache_length + 1)


class Headed(Wrapper):
    """Abstract: logits of a head, and the loss of their class for it."""

    made: Any = None

    @can_return_tuple
    def forward(
        self, input_ids: Tensor | None = None, attention_mask: Tensor | None = None, labels: Tensor | None = None, **kwargs: Any
    ) -> Any:
        logits = self.outputs(self.model, input_ids, attention_mask, kwargs)
        return self.made(loss=None if labels is None else self.loss(logits, labels, kwargs), logits=logits)

    def loss(self, logits: Tensor, labels: Tensor, rest: dict[str, Any]) -> Tensor:
        """rest: what `Trainer` says of the whole batch."""
        return self.loss_function(logits, labels, config=self.config, **rest)


class ZooproofForMaskedLM(Headed):
    """Logits (b, n, vocab_size) for what masked tokens were."""

    head, made = "masked", MaskedLMOutput

    def loss(self, logits: Tensor, labels: Tensor, rest: dict[str, Any]) -> Tensor:
        return self.loss_function(logits, labels, vocab_size=self.config.vocab_size, **rest)


class ZooproofForSequenceClassification(Headed):
    """Logits (b, num_labels)."""

    head, made = "sequence", SequenceClassifierOutput

    def loss(self, logits: Tensor, labels: Tensor, rest: dict[str, Any]) -> Tensor:
        return self.loss_function(labels=labels, pooled_logits=logits, config=self.config, **rest)


class ZooproofForTokenClassification(Headed):
    """Logits (b, n, num_labels)."""

    head, made = "tokens", TokenClassifierOutput


CLASSES: dict[Any, Any] = {
    AutoModel: ZooproofModel, AutoModelForCausalLM: ZooproofForCausalLM, AutoModelForMaskedLM: ZooproofForMaskedLM,
    AutoModelForSequenceClassification: ZooproofForSequenceClassification,
    AutoModelForTokenClassification: ZooproofForTokenClassification,
}  # fmt: skip
HEADED = {made.head: made for made in CLASSES.values()}


def register() -> None:
    """Let the Auto classes and `pipeline` know the wrappers."""
    AutoConfig.register(ZooproofConfig.model_type, ZooproofConfig, exist_ok=True)
    for auto, made in CLASSES.items():
        auto.register(ZooproofConfig, made, exist_ok=True)


def tensors_of(module: nn.Module, recurse: bool = True) -> list[Tensor]:
    return [*module.parameters(recurse), *module.buffers(recurse)]


def arguments_for(wrapper: Wrapper, config: Any) -> dict[str, Any]:
    """The config's arguments, with the wrapper's head. Errors: `ValueError` for a model that cannot have it."""
    arguments, known = dict(config.arguments or {}), zoo.arguments(config.model)
    writes = issubclass(zoo.kind_of(config.model), LanguageModel)
    if isinstance(wrapper, ZooproofForCausalLM) != writes and not isinstance(wrapper, ZooproofModel):
        raise ValueError(f"{config.model} has no head for {type(wrapper).__name__}")
    if writes:
        return arguments
    if "head" not in known:
        raise ValueError(f"{config.model} is no model of tokens with a head, as {type(wrapper).__name__} needs")
    arguments = {key: value for key, value in arguments.items() if key != "num_classes"} | {"head": wrapper.head}
    return arguments | ({"num_classes": config.num_labels} if wrapper.head in ("sequence", "tokens") else {})


def wrap(model: Model, tokenizer: Any = None, folder: str | Path | None = None) -> Any:
    """The wrapper for the model's head, around the model itself. tokenizer, folder: as of `zoo.to_huggingface`.

    Errors: `ValueError` for a model that `zoo.create` did not build, or with a head that no wrapper is for.
    """
    name = model.config.get("model")
    if name is None:
        raise ValueError("model must come from zoo.create or zoo.load, by whose arguments it is built anew")
    arguments = {
        key: value for key, value in (zoo.arguments(name) | model.config["arguments"]).items() if value is not zoo.REQUIRED
    }
    head = arguments.get("head")
    if not isinstance(model, LanguageModel) and ("head" not in arguments or head not in HEADED):
        raise ValueError(f"model must be a language model, or have one of the heads {', '.join(map(str, HEADED))}, got {name}")
    made = ZooproofForCausalLM if isinstance(model, LanguageModel) else ZooproofModel if head is None else HEADED[head]
    path = None if folder is None else require_new(folder)
    fast = None if tokenizer is None else tokenizer_for(tokenizer, arguments)
    register()
    more: dict[str, Any] = {f"{kind}_token_id": getattr(fast, f"{kind}_token_id", None) for kind in ("bos", "eos", "pad")}
    classes = model.config.get("classes") or [f"LABEL_{n}" for n in range(arguments.get("num_classes") or 2)]
    if head in ("sequence", "tokens"):
        more |= {"id2label": dict(enumerate(classes)), "label2id": {label: n for n, label in enumerate(classes)}}
    config = ZooproofConfig(
        model=name, arguments=arguments, vocab_size=arguments["vocab_size"], num_hidden_layers=arguments.get("layers", 1), **more
    )
    wrapped = made(config, model)
    if path is not None:
        save(path, wrapped, *([] if fast is None else [fast]))
    return wrapped
