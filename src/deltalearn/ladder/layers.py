"""The layers of a causal model: found, passed by while it runs, left out for good.

What a config says layer by layer must follow. It is known here by the names that configs have for
it, and no list of names is complete: what was written is read back and held against the model in
`require_same`, layer by layer and by its numbers, so that what is not known is refused.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn
from transformers import PretrainedConfig, PreTrainedModel

from deltalearn.errors import UserError
from deltalearn.lm.rows import PROBE_COARSE, PROBE_TOLERANCE
from deltalearn.util.failure import brief

NUMBERS = (  # of layers
    "num_hidden_layers", "n_layer", "n_layers", "num_layers", "decoder_layers", "encoder_layers",
    "num_decoder_layers", "num_blocks",
)  # fmt: skip
FIRST = ("max_window_layers", "first_k_dense_replace", "num_dense_layers")  # so many, from 0
EACH = re.compile(r"layer|types$|pattern$|^intermediate_size$")  # lists with an entry for each
PLACES = re.compile(r"(_idxs|layer_ids|_indices|only_layers|moe_layers|attention_layers)$")  # which
OTHERS = "mtp_"  # of layers that predict further tokens
PROBE_TOKENS = 24
PLAIN = (bool, int, float, str, tuple, type(None))


def layers_of(model: PreTrainedModel, name: str) -> nn.ModuleList:
    """Find the layers of a model.

    Args:
        model: A causal language model.
        name: For errors.

    Returns:
        Its own list of them.

    Raises:
        UserError: If there is no such list, or more than one.
    """
    config = model.config.get_text_config()
    values = {"num_hidden_layers": getattr(config, "num_hidden_layers", None), **config.to_dict()}
    numbers = {values[n] for n in NUMBERS if isinstance(values.get(n), int)}
    found = _lists(model, numbers)
    if len(found) > 1:  # of an image tower too, say
        found = _lists(model.get_decoder(), numbers)
    why = ""
    if len(found) != 1:
        what = f"{len(found)} lists of layers" if found else "no list of layers"
        why = f"has {what} of the number in its config"
    elif values.get("hidden_size_per_layer_input"):
        why = "has further inputs of all layers in one matrix"
    if why:
        raise UserError(
            f"{name}: {model.config.model_type} {why}, so none can be left out; use --bits or "
            "--noise, or another model"
        )
    return found[0]


def _lists(model: nn.Module, numbers: set[int]) -> list[nn.ModuleList]:
    """Lists of so many modules that are in no other such list, as experts of a layer would be."""
    lists = [
        (place, module)
        for place, module in model.named_modules()
        if isinstance(module, nn.ModuleList) and len(module) in numbers
    ]
    return [
        module
        for place, module in lists
        if not any(place.startswith(f"{other}.") for other, _ in lists)
    ]


def holder_of(model: PreTrainedModel, layers: nn.ModuleList) -> tuple[nn.Module, str]:
    """Find the module, and its attribute, that has a list of layers."""
    return next(
        (module, name)
        for module in model.modules()
        for name, child in module.named_children()
        if child is layers
    )


def kept_layers(number: int, dropped: Sequence[int], name: str) -> list[int]:
    """The layers that stay.

    Args:
        number: Of all layers.
        dropped: Those that are left out, from 0.
        name: The model, for errors.

    Raises:
        UserError: If one of them is not there, or if none would stay.
    """
    if wrong := sorted(set(dropped) - set(range(number))):
        raise UserError(
            f"{name}: it has no layer {wrong[0]}; its {number} layers are counted from 0 to "
            f"{number - 1}"
        )
    if not (kept := [at for at in range(number) if at not in set(dropped)]):
        raise UserError(f"{name}: all of its {number} layers would be left out; keep one")
    return kept


def leave_out(model: PreTrainedModel, layers: nn.ModuleList, kept: Sequence[int]) -> dict[str, Any]:
    """Take layers out of a model in memory, which is then to be written and not to be run.

    Args:
        model: The model.
        layers: Its layers.
        kept: Those that stay.

    Returns:
        The fields of the (text) config that change.
    """
    values = model.config.get_text_config().to_dict()
    changes = config_changes(values, len(layers), kept)
    holder, name = holder_of(model, layers)
    setattr(holder, name, nn.ModuleList(layers[at] for at in kept))
    return changes


def config_changes(values: dict[str, Any], number: int, kept: Sequence[int]) -> dict[str, Any]:
    """Say of a config what changes where some layers stay.

    Args:
        values: The (text) config of all layers.
        number: Of all layers.
        kept: Those that stay, in order.

    Returns:
        The fields that are to change, with what they say then.
    """
    new_place = {old: new for new, old in enumerate(kept)}
    gone = set(range(number)) - set(kept)
    found: dict[str, Any] = {}
    for name, value in values.items():
        if name.startswith(OTHERS):
            continue
        if name in NUMBERS and value == number:
            found[name] = len(kept)
        elif name in FIRST and isinstance(value, int):
            found[name] = value - sum(at < value for at in gone)
        elif isinstance(value, list | tuple) and PLACES.search(name) and _are_places(value):
            found[name] = [new_place[at] for at in value if at in new_place]
        elif isinstance(value, list | tuple) and EACH.search(name) and len(value) == number:
            found[name] = [value[at] for at in kept]
        elif isinstance(value, dict) and name == "per_layer_config":
            own = {new_place.get(int(at)): said for at, said in value.items()}
            found[name] = {str(at): said for at, said in own.items() if at is not None}
    changes = {name: value for name, value in found.items() if value != values[name]}
    if "attention_types" in values and "attention_layers" in changes:  # of GPT-Neo, with repeats
        changes["attention_types"] = [[[kind], 1] for kind in changes["attention_layers"]]
    return changes


def _are_places(values: Sequence[Any]) -> bool:
    return all(isinstance(at, int) and not isinstance(at, bool) for at in values)


@contextmanager
def passed_by(layers: nn.ModuleList, dropped: Sequence[int]) -> Iterator[None]:
    """Within the block these layers hand on what they get, as if they were the identity."""
    changed = [layers[at] for at in dropped]
    for layer in changed:
        layer.forward = _identity(getattr(layer, "_answers_with", None))
    try:
        yield
    finally:
        for layer in changed:
            del layer.forward


def learn_form(model: PreTrainedModel, layers: nn.ModuleList, name: str) -> None:
    """Note how each layer answers, a tensor or a tuple of so many things, for `passed_by`.

    Args:
        model: The model.
        layers: Its layers.
        name: For errors.

    Raises:
        UserError: If the model does not run on ids alone, or its layers hand on no tensor.
    """
    handles = [layer.register_forward_hook(_note) for layer in layers]
    try:
        probe_logits(model)
    except Exception as error:  # of any architecture
        raise UserError(
            f"{name}: its layers cannot be tried by themselves: {brief(error)}"
        ) from error
    finally:
        for handle in handles:
            handle.remove()
    if any(not hasattr(layer, "_answers_with") for layer in layers):
        raise UserError(f"{name}: some of its layers are not run one after the other")


def _note(layer: nn.Module, _args: Any, output: Any) -> None:
    several = isinstance(output, tuple | list)
    layer._answers_with = (type(output), len(output)) if several else None  # type: ignore[assignment]


def _identity(form: tuple[type, int] | None) -> Any:
    def forward(*args: Any, **kwargs: Any) -> Any:
        hidden = args[0] if args else kwargs["hidden_states"]
        if form is None:
            return hidden
        kind, size = form
        return kind([hidden, *[None] * (size - 1)])

    return forward


@torch.no_grad()
def probe_logits(model: PreTrainedModel) -> Tensor:
    """Logits (1, T, V) of a few ids that are the same for every sibling."""
    rows = model.get_input_embeddings().weight.shape[0]
    generator = torch.Generator().manual_seed(0)
    ids = torch.randint(rows, (1, PROBE_TOKENS), generator=generator)
    return model(input_ids=ids.to(model.device), use_cache=False).logits


def require_same(
    name: str,
    model: PreTrainedModel,
    layers: nn.ModuleList,
    dropped: Sequence[int],
    sibling: PreTrainedModel,
    changes: dict[str, Any],
) -> None:
    """Make sure that a sibling that was read back is the model without these layers.

    Its config must say so, its layers must have the settings of the model's (their window, their
    kind, their scale, ...), and its logits must be those of the model with the layers passed by.

    Args:
        name: The model, for errors.
        model: All of it, after `learn_form`.
        layers: Its layers.
        dropped: Those that were left out.
        sibling: What was read back, as the model is placed.
        changes: What was changed in the config.

    Raises:
        UserError: If it is another model.
    """
    kept = [at for at in range(len(layers)) if at not in set(dropped)]
    numbers = _other_numbers(model, layers, dropped, sibling)  # first: some settings follow input
    fault = (
        _other_config(sibling.config.get_text_config(), changes)
        or _other_settings(layers, kept, layers_of(sibling, name))
        or numbers
    )
    if fault:
        raise UserError(
            f"{name}: layers of {model.config.model_type} cannot be left out: {fault}; use --bits "
            "or --noise, or another model"
        )


def _other_numbers(
    model: PreTrainedModel,
    layers: nn.ModuleList,
    dropped: Sequence[int],
    sibling: PreTrainedModel,
) -> str:
    try:
        with passed_by(layers, dropped):
            expected = probe_logits(model).double()
        found = probe_logits(sibling).double()
    except Exception as error:  # of any architecture
        return f"the others need what they compute ({brief(error)})"
    difference = ((found - expected).abs().max() / expected.abs().max()).item()
    if difference <= PROBE_TOLERANCE.get(model.dtype, PROBE_COARSE):
        return ""
    return f"its logits are {difference:.1e} from those of the model that passes them by"


def _other_config(config: PretrainedConfig, changes: dict[str, Any]) -> str:
    values = config.to_dict()
    for name, value in changes.items():
        read = values.get(name)
        if (
            name != "per_layer_config"
            and (list(read) if isinstance(read, tuple) else read) != value
        ):
            return f"{name} is read back as {read!r}"
    return ""


def _other_settings(layers: nn.ModuleList, kept: Sequence[int], found: nn.ModuleList) -> str:
    """The first setting in which a layer differs from the one that it was."""
    for new, old in enumerate(kept):
        pairs = zip(layers[old].named_modules(), found[new].named_modules(), strict=False)
        for (place, before), (_, now) in pairs:
            where = f"{place or 'it'} of layer {old}"
            if type(before).__name__ != type(now).__name__:
                return f"{where} becomes a {type(now).__name__}"
            for key, value in vars(before).items():
                other = vars(now).get(key)
                plain = isinstance(value, PLAIN) and not key.startswith("_") and key != "training"
                if plain and value != other and not (value == old and other == new):
                    return f"{key} of {where} was {value!r} and becomes {other!r}"
    return ""
