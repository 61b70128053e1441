"""Hugging Face both ways: a config.json of theirs -> the arguments of our model, and our model -> theirs.

    arguments_of(read_json("folder/config.json"))    -> our arguments; ``zoo.create(name, weights="hf:folder")`` uses them
    to_huggingface(model)                            -> their native class, for `generate`, `pipeline`, `Trainer`
    to_huggingface(model, "tokenizer.json", "folder")   and a folder for `from_pretrained`, the tokenizer beside

A config is read strictly: an option that would change what the model computes, and that ours has not, is an error that names it.
`transformers` itself takes options that it does not know in silence. What each class is here: `decoder_options` and
`encoder_options`.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from zoo import bert, transformer
from zoo.model import Model
from zoo.pretrained import decoder_options, encoder_options, marian
from zoo.pretrained.architecture import IGNORED, Architecture, made_by
from zoo.pretrained.fast_tokenizer import READERS, TRANSLATORS, WRITERS, fast_tokenizer, require_new, save

ARCHITECTURES: dict[str, Architecture] = decoder_options.DECODERS | encoder_options.ENCODERS
READ_ELSEWHERE = decoder_options.READ_ELSEWHERE | encoder_options.READ_ELSEWHERE
CHOICES = f"{', '.join(decoder_options.DECODERS)}, and {encoder_options.CHOICES}"
BODIES = {kind.replace("LMHead", "").replace("ForCausalLM", "Model"): kind for kind in decoder_options.DECODERS}
"""Classes without the output layer, whose weights are enough where that is tied."""
PREFIX = "summary_"
"""Of GPT-2's options for another head."""
MARIAN = "MarianMTModel"
NONE = ("sliding_window", "forced_eos_token_id")
"""Options of theirs that are on by default, and off as None."""
PICTURES = ("ImageClassification", "ImageClassificationWithTeacher")


def arguments_of(config: Mapping[str, Any]) -> tuple[Callable[..., Any], dict[str, Any]]:
    """Their config, as JSON -> the function that builds our model, and its arguments.

    Errors: `ValueError` that names an architecture or an option which we do not have.
    """
    names = [BODIES.get(name, name) for name in config.get("architectures") or []]
    kind = next((name for name in names if name in ARCHITECTURES), None)
    if kind is None:
        raise ValueError(f"architectures must be one of {CHOICES}, got {', '.join(map(str, names)) or 'none'}")
    found = ARCHITECTURES[kind]
    for name, allowed in found.fixed.items():
        if name in config and config[name] not in allowed:
            raise ValueError(f"{name} of {kind} must be {' or '.join(map(repr, allowed))}, got {config[name]!r}")
    equal = {name for others in found.equal.values() for name in others}
    known = IGNORED | READ_ELSEWHERE | found.rows.keys() | found.fixed.keys() | equal
    if unknown := sorted(name for name in config.keys() - known if not name.startswith(PREFIX)):
        raise ValueError(
            f"{kind} has options that are unknown here: {', '.join(f'{name} = {config[name]!r}' for name in unknown)}"
        )
    config = {**found.defaults, **config}
    for name in found.rows:
        if not isinstance(config.get(name), int | float | None):
            raise ValueError(f"{name} of {kind} must be a number, got {config[name]!r}")
    for row, others in found.equal.items():
        if len({config[row]} | {config.get(name, default) for name, default in others.items()}) > 1:
            *first, last = row, *others
            raise ValueError(f"{', '.join(first)} and {last} of {kind} must be equal")
    arguments = {ours: config[theirs] for theirs, ours in found.rows.items() if theirs in config}
    return found.build, {**arguments, **found.extra(config), **found.given}


def read(config: Mapping[str, Any]) -> tuple[Callable[..., Any], dict[str, Any]] | None:
    """As `arguments_of`, and of Marian too; None for a config that is no model's of tokens, whose arguments have to be given."""
    if config.get("model_type") == "marian":
        return transformer.build, marian.arguments_of(config)
    kinds = config.get("architectures")
    return None if not kinds or any(str(kind).endswith(PICTURES) for kind in kinds) else arguments_of(config)


def classes_of(config: Mapping[str, Any]) -> list[str]:
    """The names in `id2label`, in the order of the logits; none where it gives none but LABEL_0, LABEL_1, ...

    Errors: `ValueError` for numbers that are not 0, 1, ...
    """
    names = config.get("id2label") or {}
    if not any(str(kind).endswith("Classification") for kind in config.get("architectures") or []):
        return []
    try:
        numbered = {int(number): str(name) for number, name in names.items()}
        classes = [numbered[n] for n in range(len(names))]
    except (KeyError, ValueError, AttributeError) as error:
        raise ValueError(f"id2label must give a name to each of 0, 1, ..., got {names}") from error
    return [] if classes == [f"LABEL_{n}" for n in range(len(names))] else classes


def to_huggingface(model: Model, tokenizer: Any = None, folder: str | Path | None = None) -> Any:
    """Their native model with our weights, in our dtype, in evaluation. Of models with a head it is their class for that.

    tokenizer: a `tokenizers.Tokenizer`, or the path of a tokenizer.json or of its folder: the model learns its special tokens.
    folder:    a new one, to which the model is saved, and the tokenizer as one of `transformers`.
    Errors:    `ValueError` for a model that `zoo.create` did not build, or that none of their classes is, for a tokenizer of
               another vocabulary, for a folder with something in it, or without `transformers`. Nothing is written then.
    """
    import zoo

    try:
        import transformers
    except ImportError as error:
        raise ValueError("to_huggingface needs the package transformers: pip install transformers") from error

    name, given = model.config.get("model"), model.config.get("arguments", {})
    if name is None:
        raise ValueError("model must come from zoo.create or zoo.load, for its arguments become their config")
    arguments = zoo.arguments(name) | given
    kind = class_of(zoo.MODELS[name], arguments)
    path = None if folder is None else require_new(folder)
    fast = None if tokenizer is None else tokenizer_for(tokenizer, arguments)
    theirs = getattr(transformers, kind)
    options = options_of(kind, arguments)
    special = {f"{kind}_token_id": getattr(fast, f"{kind}_token_id", None) for kind in ("bos", "eos", "pad")}
    special |= {"pad_token_id": arguments["padding"]} if "padding" in arguments else {}
    known = {key: value for key, value in options.items() if value is not None or key in NONE}
    config = theirs.config_class(**special | known)
    if arguments.get("head") in ("sequence", "tokens"):
        config.num_labels = arguments["num_classes"] or 2
        if classes := model.config.get("classes"):
            config.id2label, config.label2id = dict(enumerate(classes)), {name: n for n, name in enumerate(classes)}
    pooling = {"add_pooling_layer": False} if arguments.get("head", "") is None and kind in ("BertModel", "RobertaModel") else {}
    state = model.maps["huggingface"].export(model)
    made = theirs(config, **pooling).to(next(iter(state.values())).dtype)
    made.load_state_dict(state, strict=True)
    if kind == MARIAN:
        made.generation_config.bad_words_ids = [[arguments["padding"]]]  # nothing else keeps it from being generated
    if path is not None:
        save(path, made, *([] if fast is None else [fast]))
    return made.eval()


def options_of(kind: str, arguments: dict[str, Any]) -> dict[str, Any]:
    """The options of their class that our arguments are."""
    if kind == MARIAN:
        return marian.options_of(arguments)
    found = ARCHITECTURES[kind]
    return {theirs: arguments[ours] for theirs, ours in found.rows.items() if ours in arguments} | found.back(arguments)


def tokenizer_for(tokenizer: Any, arguments: Mapping[str, Any]) -> Any:
    """The tokenizer of a model with these arguments. Errors: `ValueError` where it pads with another token too."""
    reads = "padding" in arguments
    types, longest = arguments.get("types", 0) > 1, arguments.get("max_positions")
    kinds = TRANSLATORS if "interleaved" in arguments else READERS if reads else WRITERS
    fast = fast_tokenizer(tokenizer, arguments["vocab_size"], kinds=kinds, types=types, longest=longest)
    if reads and fast.pad_token_id not in (None, arguments["padding"]):
        raise ValueError(f"tokenizer pads with token {fast.pad_token_id}, and the model's padding is {arguments['padding']}")
    return fast


def class_of(build: Any, arguments: Mapping[str, Any]) -> str:
    """Which of their classes our model is."""
    function, parts = made_by(build)
    if function is bert.build:
        return encoder_options.class_of(parts[0], arguments)
    if function is transformer.build and arguments["bias"] and not arguments["interleaved"]:
        return MARIAN
    kind = decoder_options.class_of(function, arguments)
    if kind is None:
        raise ValueError(f"model must be one of {CHOICES}, or {MARIAN}, got one of {function.__module__}")
    return kind
