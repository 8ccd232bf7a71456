"""Adapters: which layers of a model get them, and what of it they leave as it is."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import torch
from torch import nn
from transformers import PreTrainedModel
from transformers.pytorch_utils import Conv1D

from deltalearn.errors import UserError, needs
from deltalearn.lm.locate import ModelFiles
from deltalearn.recipe import LoraSpec
from deltalearn.util.failure import brief

if TYPE_CHECKING:
    from peft import PeftModel

ALL_LINEAR = "all-linear"  # peft's name for every linear layer but the head
STATE = "A_log"  # the parameter that tells the mixer of a Mamba layer


def adapted(base: PreTrainedModel, lora: LoraSpec, files: ModelFiles, seed: int) -> PeftModel:
    """Freeze a model, in place, and add fresh adapters, which change nothing yet.

    Args:
        base: The model.
        lora: Of the recipe.
        files: Its files, for errors and for the adapter's config.
        seed: Of the adapters' first weights.

    Returns:
        peft's wrapper of it, in evaluation mode.

    Raises:
        UserError: If peft is missing, or if a target names no layer or one that cannot be adapted.
    """
    with needs("tune.lora needs peft", "lora", ", or leave lora out to tune all weights"):
        from peft import LoraConfig, get_peft_model
    _check_targets(base, lora, files)
    config = LoraConfig(
        r=lora.r,
        lora_alpha=lora.alpha if lora.alpha is not None else 2 * lora.r,
        lora_dropout=lora.dropout,
        target_modules=ALL_LINEAR if lora.targets == (ALL_LINEAR,) else list(lora.targets),
        exclude_modules=left_out(base, lora) or None,
        fan_in_fan_out=any(isinstance(module, Conv1D) for module in base.modules()),
        task_type="CAUSAL_LM",
    )
    try:
        with torch.random.fork_rng():
            torch.manual_seed(seed)
            model = get_peft_model(base, config)
    except (ValueError, TypeError, NotImplementedError) as error:
        raise UserError(
            f"tune.lora: peft does not adapt {files.name}: {brief(error)}; name other layers in "
            "tune.lora.targets, or leave lora out to tune all weights"
        ) from error
    config.base_model_name_or_path = files.name
    return model.eval()


def left_out(model: nn.Module, lora: LoraSpec) -> list[str]:
    """Name the linear layers that "all-linear" means and whose adapter would not work.

    These are layers that compute something else than a product (routers, grouped projections), the
    output of a Mamba mixer, whose kernels read its weight and never call it, and what a text does
    not pass: the towers for images and sound of a multimodal model.

    Args:
        model: The model; shapes will do.
        lora: Of the recipe; layers that it names are not left out.
    """
    if lora.targets != (ALL_LINEAR,):
        return []
    found = []
    elsewhere = set(other_towers(model))
    for name, module in model.named_modules():
        if not isinstance(module, nn.Linear | Conv1D):
            continue
        owner, _, last = name.rpartition(".")
        of_state = last == "out_proj" and hasattr(model.get_submodule(owner), STATE)
        tower = any(name.startswith(f"{tower}.") for tower in elsewhere)
        if of_state or tower or _computes_otherwise(module):
            found.append(name)
    return found


def _computes_otherwise(module: nn.Module) -> bool:
    """True for a Linear of transformers whose forward is no product: a router, or grouped.

    That of Falcon has a forward of its own, and is one.
    """
    if not isinstance(module, nn.Linear) or type(module).forward is nn.Linear.forward:
        return False
    if not type(module).__module__.startswith("transformers.models."):
        return False  # bitsandbytes' are products
    weight = module.weight
    given = torch.ones(1, 2, weight.shape[1], dtype=weight.dtype, device=weight.device)
    try:
        with torch.no_grad():
            result = module(given)
    except Exception:  # it wants more than one input
        return True
    return not isinstance(result, torch.Tensor) or result.shape != (1, 2, weight.shape[0])


def other_towers(model: Any) -> list[str]:
    """Name the modules beside the text model of a multimodal one; none in others."""
    config = model.config
    if config.get_text_config() is config or not hasattr(model, "get_decoder"):
        return []
    decoder = model.get_decoder()
    inside = {id(module) for module in decoder.modules()}
    if id(model.base_model) in inside:
        return []
    names = {id(module): name for name, module in model.named_modules()}
    return [
        names[id(child)]
        for child in model.base_model.children()
        if not inside & {id(module) for module in child.modules()}
    ]


def adapters_line(model: nn.Module) -> str:
    """Say what of a model adapters reach, and what stays as it is."""
    layers = [
        getattr(module, "parameter_name", name.rpartition(".")[2])  # of experts in one tensor
        for name, module in model.named_modules()
        if hasattr(module, "lora_A")
    ]
    weights = {name: p for name, p in model.named_parameters() if not p.requires_grad}
    stacked = sum(
        weight.numel()
        for name, weight in weights.items()
        if weight.ndim == 3 and name.rpartition(".")[2] not in layers
    )
    total = sum(p.numel() for p in weights.values())
    line = f"LoRA on {len(layers):,} layers ({', '.join(sorted(set(layers)))})"
    if stacked:
        line += (
            f"; experts stacked in one tensor have no adapters: {stacked / total:.0%} of the "
            "weights stay frozen"
        )
    return line


def _check_targets(base: PreTrainedModel, lora: LoraSpec, files: ModelFiles) -> None:
    """UserError for a target that peft would pass over, or whose adapter could not be merged."""
    layers = [
        name
        for name, module in base.named_modules()
        if isinstance(module, nn.Linear | Conv1D | nn.Embedding)
    ]
    ends = (base.get_input_embeddings(), base.get_output_embeddings())
    tied = ends[1] is not None and ends[0].weight is ends[1].weight
    for target in lora.targets:
        meant = [name for name in layers if f".{name}".endswith(f".{target}")]
        if not meant and lora.targets != (ALL_LINEAR,):
            known = sorted({name.rpartition(".")[2] for name in layers})
            raise UserError(
                f"tune.lora.targets: {files.name} has no layer {target} that can be adapted, but "
                f"{', '.join(known)}; name some of these, or {ALL_LINEAR} alone"
            )
        odd = [n for n in meant if _computes_otherwise(base.get_submodule(n))]
        if odd:
            raise UserError(
                f"tune.lora.targets: in {files.name}, {odd[0]} computes more than a product "
                f"({type(base.get_submodule(odd[0])).__name__}), so it cannot be adapted; leave "
                f"{target} out"
            )
        if tied and any(base.get_submodule(name) in ends for name in meant):
            raise UserError(
                f"tune.lora.targets: in {files.name}, {target} shares its weights with the other "
                "end of the model, so its adapter could not be merged; leave it out"
            )
