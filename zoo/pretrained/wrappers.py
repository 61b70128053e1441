"""Models of ours that Hugging Face has no class for, as models of `transformers`: for `Trainer`, `pipeline` and `generate`.

    made = wrap(model, "tokenizer.json", "folder")                        # the class for its head; the tensors stay the model's
    register()                                                            # in any process that is to load them
    made = transformers.AutoModelForCausalLM.from_pretrained("folder")

A wrapper holds the model as `model`, builds it anew by name and arguments, and hands tensors on; the models know nothing of it.
`zoo.load` reads its folders too. Importing this module imports `transformers`.
"""

from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from transformers import (
    AutoConfig,
    AutoModel,
    AutoModelForCausalLM,
    AutoModelForMaskedLM,
    AutoModelForQuestionAnswering,
    AutoModelForSequenceClassification,
    AutoModelForTokenClassification,
    Cache,
    GenerationMixin,
)
from transformers.modeling_outputs import (
    BaseModelOutput,
    CausalLMOutputWithPast,
    MaskedLMOutput,
    QuestionAnsweringModelOutput,
    SequenceClassifierOutput,
    TokenClassifierOutput,
)
from transformers.utils import can_return_tuple

import zoo
from zoo.model import LanguageModel, Model
from zoo.pretrained.fast_tokenizer import require_new, save
from zoo.pretrained.huggingface import tokenizer_for
from zoo.pretrained.wrapper_base import Wrapper, ZooproofConfig

CACHE = "cache" if "cache" in {f.name for f in dataclasses.fields(CausalLMOutputWithPast)} else "past_key_values"
"""What `generate` calls the past; its name until version 5.23, and since."""


class ZooproofModel(Wrapper):
    """States (b, n, dim) of all tokens."""

    writes = None

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

    def batch_select_indices(self, indices: Tensor) -> None:
        self.decoder.select(indices)

    def batch_repeat_interleave(self, repeats: int) -> None:
        self.decoder.select(torch.arange(self.decoder.rows).repeat_interleave(repeats))

    def crop(self, tokens_to_remove: int) -> None:
        """Errors: `ValueError`, unless there is nothing to do."""
        if tokens_to_remove:
            raise ValueError("a model of zooproof does not go back in generate: zoo.generation.speculative drafts and goes back")


class ZooproofForCausalLM(Wrapper, GenerationMixin):
    """A language model: logits for what follows each token, or in `generate` the last one."""

    writes = True

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
    ) -> Any:
        """Ours knows what it computes best: whatever `cache_implementation` says, the model's own decoder keeps the past."""
        if model_kwargs.get(CACHE) is not None:
            raise ValueError(f"{CACHE} must be left to generate, which makes one for the whole text")
        if generation_config.use_cache is not False:
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


class ZooproofForQuestionAnswering(Wrapper):
    """Logits (b, n) for where an answer starts, and for where it ends."""

    head = "answer"

    @can_return_tuple
    def forward(
        self,
        input_ids: Tensor | None = None,
        attention_mask: Tensor | None = None,
        start_positions: Tensor | None = None,
        end_positions: Tensor | None = None,
        **kwargs: Any,
    ) -> Any:
        """start_positions, end_positions: (b,); one behind the text counts for nothing."""
        start, end = self.outputs(self.model, input_ids, attention_mask, kwargs)
        known = start_positions is not None and end_positions is not None
        loss = self.loss_function(start, end, start_positions, end_positions, **kwargs) if known else None
        return QuestionAnsweringModelOutput(loss=loss, start_logits=start, end_logits=end)


CLASSES: dict[Any, Any] = {
    AutoModel: ZooproofModel, AutoModelForCausalLM: ZooproofForCausalLM, AutoModelForMaskedLM: ZooproofForMaskedLM,
    AutoModelForSequenceClassification: ZooproofForSequenceClassification,
    AutoModelForTokenClassification: ZooproofForTokenClassification,
    AutoModelForQuestionAnswering: ZooproofForQuestionAnswering,
}  # fmt: skip
HEADED = {made.head: made for made in CLASSES.values()}


def register() -> None:
    """Let the Auto classes and `pipeline` know the wrappers."""
    AutoConfig.register(ZooproofConfig.model_type, ZooproofConfig, exist_ok=True)
    for auto, made in CLASSES.items():
        auto.register(ZooproofConfig, made, exist_ok=True)


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
