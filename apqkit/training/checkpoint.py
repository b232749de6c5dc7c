"""Weights and optimiser state on disk: one safetensors file, written whole or not at all."""

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save
from torch import Tensor, nn

from apqkit.errors import RunError
from apqkit.run import write_atomically

__all__ = [
    "load_tensors",
    "load_weights",
    "optimizer_tensors",
    "restore_optimizer",
    "save_tensors",
]

_META_KEY = "apqkit"
_SEPARATOR = "|"  # between a parameter and what the optimiser keeps of it


def save_tensors(path: Path, tensors: Mapping[str, Tensor], meta: Mapping[str, Any]) -> None:
    """Writes tensors and a JSON header in one atomic step."""
    plain = {name: tensor.detach().cpu().contiguous() for name, tensor in tensors.items()}
    write_atomically(path, save(plain, metadata={_META_KEY: json.dumps(dict(meta))}))


def load_tensors(path: Path, cure: str) -> tuple[dict[str, Tensor], dict[str, Any]]:
    """Reads what :func:`save_tensors` wrote.

    Args:
        path: The file.
        cure: What to do about a damaged file, for the message.

    Raises:
        RunError: The file is missing, truncated, or no file of apqkit.
    """
    try:
        path.open("rb").close()  # it says more plainly why a file cannot be read
        with safe_open(path, framework="pt") as file:
            meta = dict(json.loads((file.metadata() or {})[_META_KEY]))
            return {name: file.get_tensor(name) for name in file.keys()}, meta  # noqa: SIM118
    except OSError as fault:
        raise RunError(f"{path} cannot be read: {fault.strerror}; {cure}") from None
    except (SafetensorError, KeyError, ValueError, TypeError):
        raise RunError(f"{path} is truncated or was not written by apqkit; {cure}") from None


def load_weights(model: nn.Module, tensors: Mapping[str, Tensor], where: Path) -> None:
    """Puts weights into a model.

    Args:
        model: Its parameters keep their device and their layout in memory.
        tensors: Weights by name; optimiser state beside them is left alone.
        where: The file they come from, for the message.

    Raises:
        RunError: Names or shapes are not those of the model.
    """
    own = model.state_dict()
    for name, tensor in own.items():
        if name not in tensors:
            raise RunError(f"{where} does not belong to this network: it has no {name}")
        if tensors[name].shape != tensor.shape:
            raise RunError(
                f"{where} does not belong to this network: {name} must have shape "
                f"{tuple(tensor.shape)}, got {tuple(tensors[name].shape)}"
            )
    more = [name for name in tensors if name.partition(_SEPARATOR)[0] not in own]
    if more:
        raise RunError(f"{where} does not belong to this network: it also has {more[0]}")
    model.load_state_dict({name: tensors[name] for name in own})


def optimizer_tensors(model: nn.Module, optimizer: torch.optim.Optimizer) -> dict[str, Tensor]:
    """Returns the optimiser's state, each tensor named by its parameter."""
    return {
        f"{name}{_SEPARATOR}{key}": value
        for name, parameter in model.named_parameters()
        for key, value in optimizer.state[parameter].items()
    }


def restore_optimizer(
    model: nn.Module, optimizer: torch.optim.Optimizer, tensors: Mapping[str, Tensor]
) -> None:
    """Puts back what :func:`optimizer_tensors` returned.

    State gets the device and the memory layout of its parameter: fused optimisers walk through
    both side by side and would mix elements up where layouts differ.
    """
    parameters = dict(model.named_parameters())
    for full_name, value in tensors.items():
        name, separator, key = full_name.partition(_SEPARATOR)
        if separator:
            parameter = parameters[name]
            like = parameter if value.shape == parameter.shape else value
            state = torch.empty_like(like, dtype=value.dtype, device=parameter.device)
            optimizer.state[parameter][key] = state.copy_(value)
