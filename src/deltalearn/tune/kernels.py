"""Fused kernels between the matrix products of a layer: those of liger-kernel, for GPUs.

Only layers are changed, and only those of the model at hand: liger's own entrance would give rotary
embeddings to every model of the process, and a loss that is not ours.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from types import MethodType
from typing import Any

from torch import Tensor, nn
from transformers import PretrainedConfig, PreTrainedModel

from deltalearn.errors import UserError, needs
from deltalearn.lm.transformers_private import with_rotary


@dataclass(frozen=True)
class Family:
    """The way an architecture writes its layers.

    Attributes:
        name: What the names of its classes begin with.
        offset: Added to the weight of a norm.
        casting: Where a norm rounds to 16 bits, by liger's name: after the norm ("llama"), or
            after the weight ("gemma").
        activation: Of the gated MLP.
    """

    name: str
    offset: float = 0.0
    casting: str = "llama"
    activation: str = "silu"


GEMMA = {"offset": 1.0, "casting": "gemma", "activation": "gelu_pytorch_tanh"}
FAMILIES = {
    "llama": Family("Llama"),
    "mistral": Family("Mistral"),
    "qwen2": Family("Qwen2"),
    "qwen3": Family("Qwen3"),
    "granite": Family("Granite"),
    "smollm3": Family("SmolLM3"),
    "gemma2": Family("Gemma2", **GEMMA),  # type: ignore[arg-type]
    "gemma3": Family("Gemma3", **GEMMA),  # type: ignore[arg-type]
    "gemma3_text": Family("Gemma3", **GEMMA),  # type: ignore[arg-type]
}


def require_kernels(config: PretrainedConfig, device: str) -> Family:
    """Check that there are fused kernels for a model, and liger-kernel for them.

    Args:
        config: The model's config.
        device: Type of the device where it will run.

    Returns:
        The family of the model.

    Raises:
        UserError: If it is no GPU, if liger-kernel is missing, or of an architecture without them.
    """
    kind, otherwise = config.model_type, "; leave kernels out"
    if device != "cuda":
        raise UserError(f"tune.kernels liger: its kernels run on a GPU, not on {device}{otherwise}")
    family = FAMILIES.get(kind)
    if family is None:
        known = ", ".join(FAMILIES)
        raise UserError(f"tune.kernels liger: not for {kind}, only for {known}{otherwise}")
    text = config.get_text_config()
    activation = getattr(text, "hidden_activation", None) or getattr(text, "hidden_act", None)
    if activation != family.activation:
        raise UserError(
            f"tune.kernels liger: {kind} with the activation {activation}, not "
            f"{family.activation}{otherwise}"
        )
    with needs("tune.kernels liger needs liger-kernel", "kernels", ", or leave kernels out"):
        import liger_kernel.ops  # noqa: F401
    return family


def fuse_layers(model: PreTrainedModel, device: str) -> dict[str, int]:
    """Let the layers of a model compute norms, gated MLPs and rotary embeddings by fused kernels.

    In place. Results are the same but for rounding.

    Args:
        model: The bare model of transformers.
        device: Type of the device where it will run.

    Returns:
        Number of changed modules: norms, mlps, attentions.

    Raises:
        UserError: As `require_kernels` does.
    """
    family = require_kernels(model.config, device)
    from liger_kernel.ops import (
        LigerGELUMulFunction,
        LigerRMSNormFunction,
        LigerSiLUMulFunction,
    )
    from liger_kernel.transformers.rope import liger_rotary_pos_emb

    def norm(self: nn.Module, hidden: Tensor) -> Tensor:
        epsilon = getattr(self, "variance_epsilon", None) or getattr(self, "eps", None)
        return LigerRMSNormFunction.apply(
            # Not in place: its gradient may be another's too.
            *(hidden, self.weight, epsilon, family.offset, family.casting, False, None)
        )

    def mlp(self: Any, hidden: Tensor) -> Tensor:
        gate, up = self.gate_proj(hidden), self.up_proj(hidden)
        if family.activation == "silu":
            return self.down_proj(LigerSiLUMulFunction.apply(gate, up, 1.0, 1.0))
        return self.down_proj(LigerGELUMulFunction.apply(gate, up))

    def attention(module: nn.Module) -> Callable:
        return with_rotary(type(module).forward, liger_rotary_pos_emb)

    makers: dict[str, Callable[[nn.Module], Callable]] = {
        "RMSNorm": lambda _: norm,
        "MLP": lambda _: mlp,
        "Attention": attention,
    }
    changed = {"norms": 0, "mlps": 0, "attentions": 0}
    for module in model.modules():
        for count, (part, make) in zip(changed, makers.items(), strict=True):
            if type(module).__name__ == f"{family.name}{part}":
                module.forward = MethodType(make(module), module)
                changed[count] += 1
    return changed
