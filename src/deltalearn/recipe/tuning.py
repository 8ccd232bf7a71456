"""Section `tune`: how the student is tuned; and `expect`: what a dry run assumes."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Literal

from pydantic import Field, field_validator, model_validator

from deltalearn.recipe.base import Decay, Fraction, Listed, Spec
from deltalearn.recipe.evaluation import Metric, ReferenceSpec
from deltalearn.recipe.methods import DEFAULT_GAMMA, DEFAULT_SMOOTHING, METHODS

MethodName = Literal[
    "dpo_norm", "dpo", "ipo", "hinge", "robust", "apo_zero", "apo_down", "sppo", "simpo", "orpo",
    "sft",
]  # fmt: skip
OF_METHODS = ("beta", "label_smoothing", "gamma", "nll_coef")  # settings of some methods alone


class LoraSpec(Spec):
    """Low-rank adapters instead of all weights; `bits` keeps the frozen weights quantised (QLoRA).

    Defaults are peft's own, but for alpha = 2 r, the common choice.
    """

    r: int = Field(16, ge=1, description="Adapters of rank R, not all weights.")
    alpha: int | None = Field(None, ge=1, description="Default: 2 r.")
    dropout: float = Field(0.0, ge=0, lt=1, description="Of what goes into an adapter.")
    targets: Listed[tuple[str, ...]] = Field(
        ("all-linear",), description="Names of the layers that get adapters."
    )
    bits: Literal[4] | None = Field(None, description="Of the frozen weights (QLoRA).")


class DevSpec(ReferenceSpec):
    """Questions scored while tuning, to choose when to stop; never those of the final report."""

    metric: Metric = Field("expected_accuracy", description="What is to rise.")

    @model_validator(mode="after")
    def _effective(self) -> DevSpec:
        self._check((self.metric,))
        return self


class TuneSpec(Spec):
    """Settings of tuning. Defaults are the paper's, except lr, which has no good default."""

    method: MethodName = Field("dpo_norm", description="Loss.")
    lr: float = Field(5e-7, gt=0, description="Peak learning rate.")
    beta: float | None = Field(None, gt=0, description="Default: the method's own.")
    label_smoothing: float | None = Field(
        None, ge=0, lt=0.5, description="Share of flipped labels."
    )
    gamma: float | None = Field(None, ge=0, description="Simpo's target margin.")
    nll_coef: float = Field(
        0.0, ge=0, description="Adds this x NLL per token of the chosen answer."
    )
    batch_size: int = Field(32, ge=1, description="Pairs a step, over all processes.")
    steps: int | None = Field(None, ge=1, description="Instead of epochs.")
    epochs: float | None = Field(None, gt=0, description="Default: 1, unless steps is given.")
    scheduler: Literal["cosine", "linear", "constant"] = Field(
        "cosine", description="Of the learning rate."
    )
    warmup_ratio: Fraction = Field(0.03, description="Share of the steps.")
    min_lr_ratio: Fraction = Field(0.1, description="Of the peak, at the end.")
    optimizer: Literal["adamw", "adamw_8bit", "adafactor"] = Field(
        "adamw", description="Its moments: in float32, in 8 bits, or factored."
    )
    adam_betas: Listed[tuple[Decay, Decay]] = Field(
        (0.9, 0.95), description="Decay of the running means of gradients and of their squares."
    )
    weight_decay: float = Field(0.0, ge=0, description="Of adamw, a step at the learning rate 1.")
    max_grad_norm: float = Field(1.0, gt=0, description="Longer gradients are cut to this norm.")
    max_length: int = Field(2048, ge=2, description="Tokens of prompt and answer together.")
    truncation: Literal["drop", "cut", "error"] = Field(
        "drop", description="Of pairs longer than that."
    )
    max_pairs: int | None = Field(
        None, ge=1, description="Use the first so many pairs, in stored order."
    )
    layout: Literal["auto", "shared", "packed", "padded"] = Field(
        "auto", description="Of pairs in a forward."
    )
    attention: Literal["auto", "segments", "sdpa", "flex"] = Field(
        "auto", description="Of shared and packed rows."
    )
    token_budget: int = Field(8192, ge=1, description="Tokens of one forward, on each device.")
    gradient_checkpointing: bool | float | Literal["auto"] = Field(
        False,
        description="Compute activations again instead of keeping them; a share: of so many "
        "layers; auto: of as few as the memory here asks for.",
    )
    compile: bool = Field(
        False, description="Compile each layer (torch.compile), a minute at the start."
    )
    kernels: Literal["liger"] | None = Field(
        None, description="Fused norms, MLPs and rotary embeddings of liger-kernel, on a GPU."
    )
    float8: bool = Field(
        False, description="Products of the layers in 8-bit floats (torchao), on a GPU."
    )
    lora: LoraSpec | None = Field(None, description="Adapters instead of all weights.")
    shard: bool = Field(
        False, description="FSDP2: weights, gradients and moments split over processes."
    )
    eval_pairs: int | None = Field(None, ge=1, description="Pairs held out of training.")
    dev: DevSpec | None = Field(None, description="Questions scored while tuning.")
    eval_every: int | None = Field(None, ge=1, description="Steps; default: a tenth of the run.")
    keep_best: bool = Field(
        False, description="Final is the model best on dev, else on held-out pairs."
    )
    patience: int | None = Field(
        None, ge=1, description="Stop after so many evaluations without gain."
    )
    checkpoint_every: int | None = Field(
        None, ge=1, description="Steps; default: a fifth of the run."
    )
    tracker: Literal["none", "tensorboard", "wandb", "trackio"] = Field(
        "none", description="Where curves go besides log.jsonl."
    )

    @field_validator("gradient_checkpointing", mode="before")
    @classmethod
    def _is_share(cls, value: Any) -> Any:
        if value != "auto" and not (isinstance(value, (bool, int, float)) and 0 <= value <= 1):
            raise ValueError("expected true, false, auto or a share of the layers from 0 to 1")
        return value

    @model_validator(mode="after")
    def _effective(self) -> TuneSpec:
        method = METHODS[self.method]
        own = {"beta"} if method.beta is not None else set()
        of_others = [key for key in OF_METHODS if key not in own | method.options]
        self.idle(f"on {self.method}; remove it", *of_others)
        if self.method == "robust" and self.label_smoothing == 0:
            raise ValueError("robust with label_smoothing 0 is dpo; use dpo")
        if self.scheduler == "constant":
            self.idle("on a constant schedule; remove it", "min_lr_ratio")
        if self.optimizer == "adafactor":
            self.idle("on adafactor; remove it", "adam_betas")
        if self.shard and self.optimizer != "adamw":
            raise ValueError(f"shard cannot split the moments of {self.optimizer}; use adamw")
        if self.shard and self.lora is not None and self.lora.bits is not None:
            raise ValueError(
                "shard cannot split the quantised weights of lora.bits; leave one of them out"
            )
        if self.float8 and self.lora is not None and self.lora.bits is not None:
            raise ValueError(
                "float8 cannot multiply the quantised weights of lora.bits; leave one of them out"
            )
        if self.steps is not None and self.epochs is not None:
            raise ValueError("steps and epochs both set the length of the run; give one of them")
        if self.eval_pairs is None and self.dev is None:
            why = "without eval_pairs or dev; give one"
            self.idle(why, "eval_every", "keep_best", "patience")
        if self.layout == "padded":
            self.idle("on padded rows; remove it", "attention")
        return self

    @property
    def effective_beta(self) -> float | None:
        """beta, or the default of the method; None for sft."""
        return self.beta if self.beta is not None else METHODS[self.method].beta

    @property
    def effective_smoothing(self) -> float:
        """label_smoothing, or the default of the method."""
        if self.label_smoothing is not None:
            return self.label_smoothing
        return DEFAULT_SMOOTHING.get(self.method, 0.0)

    @property
    def effective_gamma(self) -> float:
        """gamma, or simpo's default."""
        return self.gamma if self.gamma is not None else DEFAULT_GAMMA

    def with_changes(self, own: dict[str, Any]) -> TuneSpec:
        """These settings with `own` on top, which need not fit what they replace."""
        shared = {key: getattr(self, key) for key in self.model_fields_set}
        for key in replaced(self.method, own):
            shared.pop(key, None)
        return TuneSpec(**{**shared, **own})


def replaced(method: str, own: Mapping[str, Any]) -> set[str]:
    """Settings meant for `method` that settings `own` leave no place for.

    Another method does not inherit a beta meant for this one, nor options that it does not take,
    and steps (epochs) replace epochs (steps).
    """
    gone = {key for key, other in (("steps", "epochs"), ("epochs", "steps")) if other in own}
    new = METHODS.get(str(own.get("method", method)))
    if new is not None and new != METHODS.get(str(method)):
        gone |= set(OF_METHODS) - new.options
    return gone


class ExpectSpec(Spec):
    """Assumptions of a dry run that cannot have pairs or config; it has no other effect.

    Lengths are drawn from lognormal distributions with these medians, in tokens, and this spread
    (standard deviation of the logarithm).
    """

    pairs: int = Field(ge=1, description="Usable ones.")
    architecture: str = Field(
        min_length=1, description="A model whose config ships with the package."
    )
    prompt_tokens: int = Field(ge=1, description="Median, of a prompt.")
    chosen_tokens: int = Field(ge=1, description="Median, of a chosen answer.")
    rejected_tokens: int = Field(ge=1, description="Median, of a rejected answer.")
    spread: float = Field(ge=0, description="Standard deviation of the logarithm of a length.")
