"""Whether a model can be saved so that it comes back the same; `zoo.save` and `zoo.load` use it."""

from __future__ import annotations

import copy
import dataclasses
import re
from collections.abc import Callable, Iterable
from typing import Any

import torch
from torch import Tensor, nn

from layers.lora import has_lora, merge_lora
from zoo import files
from zoo.model import without_values
from zoo.pretrained.containers import without_infixes

DTYPES = {"float32": torch.float32, "float64": torch.float64, "bfloat16": torch.bfloat16, "float16": torch.float16}
"""What a saved model may have, one for all of its floating-point tensors."""
UNCOMPARED = {"config", "dropout", "frozen", "inplace", "momentum", "training"}
"""Settings of modules that leave the outputs in eval mode alone."""


def plain(model: nn.Module) -> nn.Module:
    """The model within torch.compile's, DataParallel's and DistributedDataParallel's wrappers."""
    while True:
        if "_orig_mod" in model._modules:
            model = model.get_submodule("_orig_mod")
        elif isinstance(model, nn.DataParallel | nn.parallel.DistributedDataParallel):
            model = model.module
        else:
            return model


def saved(model: nn.Module, build: Callable[[dict[str, Any]], nn.Module]) -> tuple[dict[str, Any], dict[str, Tensor]]:
    """The config and the state that `zoo.save` writes of a model; `build(config)` makes one of that config.

    What `layers.lora` has put into the model is merged in the state.
    Errors: `ValueError` if `zoo.load` could not give the model back from them.
    """
    model = plain(model)
    model = merge_lora(copy.deepcopy(model)) if has_lora(model) else model
    config = vars(model).get("config")
    if not isinstance(config, dict) or not {"model", "arguments"} <= config.keys():
        raise ValueError(
            f"model must come from zoo.create or zoo.load to be rebuilt, got a {type(model).__name__} without a config: keep its "
            "weights with zoo.save_state(model, path), and read them with zoo.load_state into a model composed in the same way"
        )
    state = dense_state(model)
    with without_values():
        built = build(config)
    if problems := differences(model, built):
        raise ValueError(
            f"model must be as zoo.create({config['model']!r}, ...) builds it, or zoo.load could not give it back; it differs in "
            f"{'; '.join(problems)}. Keep its weights with zoo.save_state(model, path)"
        )
    dtype = next((x.dtype for x in state.values() if x.is_floating_point()), torch.float32)
    config = {key: value for key, value in config.items() if key not in ("file", "dtype")}
    config |= {} if dtype == torch.float32 else {"dtype": str(dtype).removeprefix("torch.")}
    try:
        files.json_bytes(config)
    except (TypeError, ValueError) as error:
        raise ValueError(f"model.config must be made of JSON values, got {config} ({error})") from error
    return config, state


def dense_state(model: nn.Module) -> dict[str, Tensor]:
    """The model's state. Errors: `ValueError` for entries that a file of tensors cannot hold."""
    state = {without_infixes(name): value for name, value in model.state_dict().items()}
    if other := [name for name, value in state.items() if not is_dense(value)]:
        raise ValueError(f"model must have dense tensors with values to be saved, unlike {first_names(other)}")
    return state


def is_dense(value: Any) -> bool:
    return type(value) is Tensor and value.layout == torch.strided and not value.is_meta and not value.is_quantized


def differences(model: nn.Module, built: nn.Module) -> list[str]:
    """What `built`, a new model on the meta device, would not give back of `model`: tensors, dtypes, sharing, modules."""
    ours, theirs, problems = traits(model), traits(built), []
    for kind in ours:
        other = [name for name in ours[kind].keys() | theirs[kind].keys() if ours[kind].get(name) != theirs[kind].get(name)]
        problems += [f"{kind}: {first_names(other)}"] if other else []
    floats = {x.dtype: name for name, x in model.state_dict().items() if x.is_floating_point()}
    if len(floats) > 1 or not floats.keys() <= set(DTYPES.values()):
        found = ", ".join(f"{name} {dtype}" for dtype, name in floats.items())
        problems.append(f"dtypes, of which there may be one of {', '.join(DTYPES)}: {found}")
    return problems


def traits(model: nn.Module) -> dict[str, dict[str, Any]]:
    """All that a rebuilt model has to agree in, by kind and name."""
    tensors = [*model.named_parameters(remove_duplicate=False), *model.named_buffers(remove_duplicate=False)]
    shared: dict[int, list[str]] = {}
    for name, tensor in tensors:
        shared.setdefault(id(tensor), []).append(without_infixes(name))
    clean = {without_infixes(f"{name}.").removesuffix("."): module for name, module in model.named_modules()}
    return {
        "tensors": {without_infixes(n): (tuple(x.shape), x.is_floating_point(), x.is_complex()) for n, x in tensors},
        "entries of the state": dict.fromkeys(map(without_infixes, model.state_dict()), True),
        "tensors of several names": {names[0]: names for names in shared.values() if len(names) > 1},
        "modules": {name: module_kind(module) for name, module in clean.items()},
    }


def module_kind(module: nn.Module) -> tuple[str, dict[str, Any]]:
    """What matters to a module's outputs in eval mode: its class and its settings. All batch norms count as one class."""
    kind = "BatchNorm" if isinstance(module, nn.modules.batchnorm._BatchNorm) else type(module).__qualname__
    if isinstance(module, nn.Dropout):
        return kind, {}
    # mixed precision by accelerate replaces `forward`, and keeps the old one
    skipped = UNCOMPARED | ({"forward"} if "_original_forward" in vars(module) else set())
    found = {name: setting(value) for name, value in vars(module).items() if name not in skipped and not name.startswith("_")}
    text = re.sub(r"(momentum|inplace)=\w+(\.\w+)?", "", module.extra_repr())
    return f"{kind}({text})", {name: value for name, value in found.items() if value is not None}


def setting(value: Any) -> Any:
    """The value itself if it is plain, the name of a function, or None for anything else, such as tensors."""
    if isinstance(value, bool | int | float | str | torch.dtype) or dataclasses.is_dataclass(value):
        return value
    if isinstance(value, tuple | list):
        return tuple(setting(x) for x in value)
    return getattr(value, "__qualname__", repr(value)) if callable(value) and not isinstance(value, nn.Module) else None


def first_names(names: Iterable[str]) -> str:
    names = sorted(set(names))
    return ", ".join(names[:10]) + (f" and {len(names) - 10} more" if len(names) > 10 else "")
