"""The state of a model during a pass: evaluation mode, outputs with names."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch


@contextmanager
def evaluating(model: torch.nn.Module) -> Iterator[None]:
    """Switch dropout off for the length of a pass, and let outputs have names; restore both afterwards.

    With ``return_dict: false`` in its configuration a model gives tuples, also to its own head, which
    expects names.
    """
    training = [module for module in model.modules() if module.training]
    held = (getattr(module, "config", None) for module in model.modules())
    configs: dict[int, Any] = {id(config): config for config in held}
    tuples = [config for config in configs.values() if getattr(config, "return_dict", None) is False]
    for module in training:
        module.training = False
    for config in tuples:
        config.return_dict = True
    try:
        yield
    finally:
        for module in training:
            module.training = True
        for config in tuples:
            config.return_dict = False
