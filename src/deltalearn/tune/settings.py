"""What tuning reads of a recipe; `deltalearn.recipe.TuneSpec` has it and documents each field."""

from __future__ import annotations

from typing import Any, Protocol


class Lora(Protocol):
    """Low-rank adapters."""

    r: int
    alpha: int | None
    dropout: float
    targets: tuple[str, ...]
    bits: int | None


class Settings(Protocol):
    """All of `tune`'s settings."""

    method: str
    lr: float
    nll_coef: float
    batch_size: int
    steps: int | None
    epochs: float | None
    scheduler: str
    warmup_ratio: float
    min_lr_ratio: float
    optimizer: str
    adam_betas: tuple[float, float]
    weight_decay: float
    max_grad_norm: float
    layout: str
    attention: str
    token_budget: int
    gradient_checkpointing: bool
    lora: Lora | None
    shard: bool
    eval_pairs: int | None
    eval_every: int | None
    keep_best: bool
    patience: int | None
    checkpoint_every: int | None
    tracker: str

    @property
    def effective_beta(self) -> float | None: ...
    @property
    def effective_smoothing(self) -> float: ...
    @property
    def effective_gamma(self) -> float: ...

    def model_dump(self, *, exclude: set[str]) -> dict[str, Any]: ...
