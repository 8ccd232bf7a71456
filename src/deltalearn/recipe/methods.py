"""The tuning methods by name: their own default beta and which options they take.

Also which settings of tuning may change between the starts of one run.

A table without torch, so that a recipe is checked before anything heavy is imported; the losses
themselves are in `deltalearn.tune.losses`.
"""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class Method:
    """beta: its default, None where it has none. reference: whether the untouched student counts.

    options: the other settings that change this loss; any of them on another method is an error.
    """

    beta: float | None
    reference: bool
    options: frozenset[str] = frozenset()
    meaning: str = ""


SMOOTHED = frozenset({"label_smoothing", "nll_coef"})
PLAIN = frozenset({"nll_coef"})

METHODS: dict[str, Method] = {
    # The paper's beta for the length-normalised loss; the field's usual 0.1 for the others.
    "dpo_norm": Method(5.0, True, SMOOTHED, "DPO with each side divided by its length"),
    "dpo": Method(0.1, True, SMOOTHED, "direct preference optimisation"),
    "ipo": Method(0.1, True, PLAIN, "squared distance of the mean log-ratio to 1 / (2 beta)"),
    "hinge": Method(0.1, True, PLAIN, "SLiC's hinge on the margin"),
    "robust": Method(0.1, True, SMOOTHED, "DPO unbiased under flipped labels"),
    "apo_zero": Method(0.1, True, PLAIN, "raise chosen, lower rejected, each by itself"),
    "apo_down": Method(0.1, True, PLAIN, "lower both, rejected more"),
    "sppo": Method(0.1, True, PLAIN, "self-play, hard labels: log-ratios to +-1 / (2 beta)"),
    "simpo": Method(2.0, False, frozenset({"gamma", "nll_coef"}), "mean log-probs, no reference"),
    "orpo": Method(0.1, False, frozenset(), "likelihood of chosen plus odds ratio, no reference"),
    "sft": Method(None, False, frozenset(), "likelihood of the chosen answers"),
}
DEFAULT_GAMMA = 1.0  # of simpo: half its beta, as its authors advise (gamma / beta 0.3 to 0.5)
DEFAULT_SMOOTHING = {"robust": 0.1}  # without smoothing robust would be dpo; zero elsewhere

# Settings of speed, memory and rounding: a run may go on with others and trains the same.
FREE_TO_CHANGE = {
    "checkpoint_every",
    "tracker",
    "layout",
    "attention",
    "token_budget",
    "gradient_checkpointing",
    "compile",
    "kernels",
    "shard",
}
