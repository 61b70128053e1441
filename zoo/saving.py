"""Whether a model can be saved so that it comes back the same; `zoo.save` and `zoo.load` use it."""

from __future__ import annotations

import re
from collections.abc import Iterable
from typing import Any

import torch
from torch import Tensor, nn

from zoo.pretrained.containers import without_infixes

DTYPES = {"float32": torch.float32, "float64": torch.float64, "bfloat16": torch.bfloat16, "float16": torch.float16}
"""What a saved model may have, one for all of its floating-point tensors."""


def plain(model: nn.Module) -> nn.Module:
    """The model within torch.compile's, DataParallel's and DistributedDataParallel's wrappers."""
    while True:
        if "_orig_mod" in model._modules:
            model = model.get_submodule("_orig_mod")
        elif isinstance(model, nn.DataParallel | nn.parallel.DistributedDataParallel):
            model = model.module
        else:
            return model


def state_of(model: nn.Module) -> dict[str, Tensor]:
    """The model's state. Errors: `ValueError` for entries that a file of tensors cannot hold."""
    state = {without_infixes(name): value for name, value in model.state_dict().items()}
    if other := [name for name, value in state.items() if not is_plain(value)]:
        raise ValueError(f"model must have dense tensors with values to be saved, unlike {listed(other)}")
    return state


def is_plain(value: Any) -> bool:
    return type(value) is Tensor and value.layout == torch.strided and not value.is_meta and not value.is_quantized


def differences(model: nn.Module, built: nn.Module) -> list[str]:
    """What `built`, a new model on the meta device, would not give back of `model`: tensors, dtypes, sharing, modules."""
    ours, theirs, problems = described(model), described(built), []
    for kind in ours:
        other = [name for name in ours[kind].keys() | theirs[kind].keys() if ours[kind].get(name) != theirs[kind].get(name)]
        problems += [f"{kind}: {listed(other)}"] if other else []
    floats = {x.dtype: name for name, x in model.state_dict().items() if x.is_floating_point()}
    if len(floats) > 1 or not floats.keys() <= set(DTYPES.values()):
        found = ", ".join(f"{name} {dtype}" for dtype, name in floats.items())
        problems.append(f"dtypes, of which there may be one of {', '.join(DTYPES)}: {found}")
    return problems


def described(model: nn.Module) -> dict[str, dict[str, Any]]:
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


def module_kind(module: nn.Module) -> str:
    """What matters to its outputs in eval mode: its class, a batch norm's whatever its batch is, and its settings."""
    kind = "BatchNorm" if isinstance(module, nn.modules.batchnorm._BatchNorm) else type(module).__qualname__
    settings = "" if isinstance(module, nn.Dropout) else re.sub(r"(momentum|inplace)=\w+(\.\w+)?", "", module.extra_repr())
    return f"{kind}({settings})"


def listed(names: Iterable[str]) -> str:
    names = sorted(set(names))
    return ", ".join(names[:10]) + (f" and {len(names) - 10} more" if len(names) > 10 else "")
