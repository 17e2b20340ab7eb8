"""Read weights that others published or trained: safetensors or PyTorch files, never unpickled."""

from __future__ import annotations

import argparse
import re
import sys
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, cast

from safetensors import SafetensorError
from safetensors.torch import load_file
from torch import Tensor, nn

from anyvit.errors import BundleError, SettingError, unknown
from anyvit.models import asvit, elasticvit_super, evit, hsvit, hydravit, repavit, vit_resnas
from anyvit.training.checkpoint import load_tensors

Weights = Mapping[str, Tensor]

FAMILIES: Mapping[str, Callable[[Weights, Mapping[str, Any] | None], nn.Module]] = {
    "asvit": asvit.from_reference,
    "elasticvit": elasticvit_super.from_reference,
    "evit": evit.from_reference,
    "hsvit": hsvit.from_reference,
    "hydravit": hydravit.from_reference,
    "repavit": repavit.from_reference,
    "vitresnas": vit_resnas.from_reference,
}
"""By the system's name, what builds its model from clean weights and the reference's own words."""

AVERAGED = ("state_dict_ema", "model_ema", "teacher")
TRAINED = ("state_dict", "model")
PREFIXES = ("module.", "_orig_mod.", "backbone.", "encoder.")


def load_reference(
    system: str,
    checkpoint: Mapping[str, Any] | str | Path,
    config: dict[str, Any] | None = None,
    *,
    part: str | None = None,
    use_ema: bool | None = None,
    strict_reference: bool = False,
) -> nn.Module:
    """A family's model with weights in the layout that its authors published.

    Args:
        system: The family, such as "hydravit".
        checkpoint: A file (safetensors or PyTorch), or what it holds.
        config: Constructor arguments in the reference's own words. None: read off the weights' shapes.
        part: Which module, where a system has several.
        use_ema: The moving average of the weights; None takes it where there is one.
        strict_reference: Reproduce the reference's known faults that parity needs. HydraViT needs none.

    Returns:
        The model in evaluation mode, in float32.

    Raises:
        SettingError: An unknown system, part or word in `config`.
        BundleError: The file cannot be read, or holds no weights.
        ModelError: The weights are not those of the model described.
    """
    if system not in FAMILIES:
        raise SettingError(unknown("system", system, FAMILIES))
    if part is not None:
        raise SettingError(f"{system} has one module only: leave out part {part!r}")
    held = read(checkpoint) if isinstance(checkpoint, str | Path) else checkpoint
    return FAMILIES[system](clean(held, use_ema=use_ema), config).eval()


def read(path: str | Path) -> Mapping[str, Any]:
    """What a weights file holds. Tensors and plain values only: other objects are refused, not built.

    Raises:
        BundleError: No such file, a damaged one, or one with objects in it.
    """
    path = Path(path)
    if not path.is_file():
        raise BundleError(f"{path}: no such file")
    try:
        if path.suffix == ".safetensors":
            return load_file(path)
        held = load_tensors(path, allow=[argparse.Namespace])  # training scripts keep their arguments beside
    except SafetensorError as error:
        raise BundleError(f"{path} is damaged, or no safetensors file: {error}") from error
    except Exception as error:  # torch.load raises many kinds, for a damaged file as for a forbidden object
        if forbidden := re.search(r"GLOBAL (\S+)", str(error)):
            words = f"holds a {forbidden[1]}, which is never built: save the state dict alone"
        else:
            words = "is damaged, or no PyTorch checkpoint"
        raise BundleError(f"{path} {words}") from error
    if not isinstance(held, Mapping):
        raise BundleError(f"{path} holds a {type(held).__name__}, not named weights")
    return held


def clean(held: Mapping[str, Any], *, use_ema: bool | None = None) -> Weights:
    """The weights in a checkpoint, without what training wraps around them.

    Raises:
        BundleError: No weights in it, or `use_ema` asks for an average that it does not have.
    """
    averaged = False
    wrappers = TRAINED if use_ema is False else AVERAGED + TRAINED
    while wrapper := next((key for key in wrappers if isinstance(held.get(key), Mapping)), None):
        averaged |= wrapper in AVERAGED
        held = held[wrapper]
    if use_ema and not averaged:
        raise BundleError(f"the checkpoint has no moving average: none of {', '.join(AVERAGED)}")
    weights = {name: value for name, value in held.items() if isinstance(value, Tensor)}
    if not weights:
        raise BundleError(f"the checkpoint holds no weights: its keys are {', '.join(list(held)[:5]) or 'none'}")
    while prefix := next((prefix for prefix in PREFIXES if all(name.startswith(prefix) for name in weights)), None):
        weights = {name.removeprefix(prefix): value for name, value in weights.items()}
    return weights


def load_weights(model: nn.Module, path: str | Path) -> tuple[str, ...]:
    """Load a file of weights into a timm model, in place.

    Position tables and patch embeddings of another size are resized by the model's own rule in timm; a classifier of
    another number of classes is left as it is in `model`.

    Args:
        model: A timm model, ours included.
        path: A safetensors file or a PyTorch checkpoint; of one with a moving average, the average is taken.

    Returns:
        What a user should know: what was left out, and what was resized.

    Raises:
        BundleError: The file cannot be read, or its weights are not those of such a model.
    """
    weights = clean(read(path))
    sizes = {name: tensor.shape for name, tensor in weights.items()}
    family = sys.modules[type(model).__module__]
    if hasattr(family, "checkpoint_filter_fn"):
        try:
            weights = family.checkpoint_filter_fn(dict(weights), model)
        except (RuntimeError, KeyError, ValueError, AttributeError) as error:
            raise BundleError(f"{path} does not fit the model: {error}") from error
    known = model.state_dict()
    notes = [
        f"{name} was resized from {tuple(sizes[name])} to {tuple(tensor.shape)}"
        for name, tensor in weights.items()
        if name in sizes and tensor.shape != sizes[name]
    ]
    classifier = _classifier_names(model)
    if any(name not in weights or weights[name].shape != known[name].shape for name in classifier):
        classes = next((weights[name].shape[0] for name in classifier if name in weights), None)
        had = "none" if classes is None else f"one for {classes} classes"
        notes.append(f"the classifier is new: the file has {had}")
        weights = {name: tensor for name, tensor in weights.items() if name not in classifier}
    _check_fit(known, weights, optional=classifier, path=Path(path))
    unused = sorted(weights.keys() - known.keys())
    if unused:
        notes.append(f"{len(unused)} tensors of the file were not used, such as {unused[0]}")
    model.load_state_dict(weights, strict=False)
    return tuple(notes)


def _classifier_names(model: nn.Module) -> set[str]:
    classifier = cast(Any, model).get_classifier()
    modules = [*classifier] if isinstance(classifier, tuple) else [classifier]
    if isinstance(model, hydravit.HydraViT):
        modules += model.heads.values()
    own = {id(parameter) for module in modules for parameter in module.parameters()}
    return {name for name, parameter in model.named_parameters() if id(parameter) in own}


def _check_fit(known: Weights, weights: Weights, *, optional: set[str], path: Path) -> None:
    missing = sorted(known.keys() - weights.keys() - optional)
    if missing:
        raise BundleError(
            f"{path} does not fit the model: {len(missing)} of its {len(known)} tensors are not in the file, "
            f"such as {missing[0]}"
        )
    for name in known.keys() & weights.keys():
        if known[name].shape != weights[name].shape:
            raise BundleError(
                f"{path} does not fit the model: {name} is {tuple(weights[name].shape)} in the file "
                f"and {tuple(known[name].shape)} in the model"
            )
