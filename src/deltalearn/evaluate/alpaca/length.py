"""The length-controlled win rate (Dubois et al., arXiv 2404.04475; alpaca_eval 0.6.6).

A regression says how much of each preference is due to the answers' lengths; the win rate is then
predicted for answers as long as the reference's. Features of instruction i: tanh(d_i / s), with d_i
the reference's length minus the model's in characters and s its deviation (ddof 1) over the model's
instructions; the instruction's difficulty; a constant for the model. No intercept.

Two variants, never the same name: "length-controlled" as published, which needs two side files and
in which the rows of two gamed baselines (together of weight 0.2) hold the length effect in check;
"length-controlled, minimal" has neither difficulty nor gamed rows and can be computed anywhere. The
minimal one is no guard against answers made to game it.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Literal

import numpy as np

from deltalearn.errors import UserError
from deltalearn.evaluate.alpaca.annotations import Annotation
from deltalearn.evaluate.alpaca.glm import fit_newton, fit_published, sigmoid
from deltalearn.evaluate.alpaca.length_data import Sides

FULL = "length-controlled"
MINIMAL = "length-controlled, minimal"
GAMED_WEIGHT = 0.2 / 2  # of each row of the two gamed baselines
Fit = Literal["published", "maximum likelihood"]


@dataclass(frozen=True)
class Judged:
    """One model's scored comparisons.

    score: (n,) in [0, 1]. delta: (n,), characters of the reference's answer minus the model's.
    position: (n,), of each instruction among the `size` reference outputs; None if unknown.
    """

    score: np.ndarray
    delta: np.ndarray
    position: np.ndarray | None = None
    size: int | None = None

    @staticmethod
    def of(scores: Sequence[float], outputs: Sequence[str], references: Sequence[str]) -> Judged:
        """From the columns score, output and gold of an items table."""
        delta = np.array([len(r) - len(o) for o, r in zip(outputs, references, strict=True)])
        return Judged(np.asarray(scores, dtype=np.float64), delta.astype(np.float64))

    @staticmethod
    def from_annotations(
        annotations: Sequence[Annotation], instructions: Sequence[str] | None = None
    ) -> Judged:
        """The scored ones. instructions: the whole set in the order of the reference outputs.

        Without it the annotations are taken to be that set, in that order.
        """
        order = instructions or [a.instruction for a in annotations]
        at = {instruction: i for i, instruction in enumerate(order)}
        scored = [a for a in annotations if a.scored]
        if unknown := [a for a in scored if a.instruction not in at]:
            raise UserError(f"{len(unknown)} annotations are of instructions outside the set")
        plain = Judged.of(
            [a.score for a in scored],
            [a.pair.output_2 for a in scored],
            [a.pair.output_1 for a in scored],
        )
        position = np.array([at[a.instruction] for a in scored], dtype=int)
        return Judged(plain.score, plain.delta, position, len(order))


@dataclass(frozen=True)
class LengthControl:
    """A length-controlled win rate, in [0, 1].

    name: FULL or MINIMAL. Coefficients of the length feature, the constant and (FULL) the
    difficulty. sd: deviation of the length difference, in characters.
    """

    name: str
    fit: Fit
    win_rate: float
    length: float
    constant: float
    difficulty: float | None
    sd: float
    notes: tuple[str, ...] = field(default=())


def length_controlled(
    judged: Judged, sides: Sides | None = None, fit: Fit = "published"
) -> LengthControl:
    """FULL if there are side files, MINIMAL if not.

    fit: "published" is alpaca_eval's (L1, strength by cross-validation); "maximum likelihood" has
    no penalty. UserError if nothing is scored, or if the side files are of another set.
    """
    if not len(judged.score):
        raise UserError("no comparison has a preference; there is no win rate")
    counts = np.ones(len(judged.score))
    sd = float(deviation(judged.delta, counts))
    design, target, weight = regression(judged, counts, sides)
    if fit == "published":
        beta = fit_published(design, target, None if sides is None else weight)
    else:
        beta = fit_newton(design, target, weight)
    rate = float(predicted(beta, judged, counts, sides))
    difficulty = None if sides is None else float(beta[1])
    notes = list(sides.notes) if sides else []
    if sd == 0:
        notes.append("all answers differ from the reference's by the same length: no control")
    raw = float(judged.score.mean())
    if is_extreme(raw, rate):
        notes.append(
            f"length control moves the win rate from {raw:.1%} to {rate:.1%}: answers this short "
            "or long are beyond what the regression can tell"
        )
    name = MINIMAL if sides is None else FULL
    constant = float(beta[-1])
    return LengthControl(name, fit, rate, float(beta[0]), constant, difficulty, sd, tuple(notes))


def deviation(delta: np.ndarray, counts: np.ndarray) -> np.ndarray:
    """Standard deviation (...,) with ddof 1 of delta (n,), drawn counts (..., n) times."""
    total = counts.sum(-1)
    mean = (counts * delta).sum(-1) / total
    squares = (counts * (delta - mean[..., None]) ** 2).sum(-1)
    return np.sqrt(squares / np.maximum(total - 1, 1))


def regression(
    judged: Judged, counts: np.ndarray, sides: Sides | None
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Design (..., m, k), target (m,) and weight (..., m), the rows drawn counts (..., n) times.

    Gamed rows come first, as in alpaca_eval: the folds of its cross-validation depend on it.
    """
    sd = deviation(judged.delta, counts)[..., None]
    # Without any spread there is no length effect to speak of: its feature is 0.
    length = np.tanh(np.divide(judged.delta, sd, out=np.zeros(counts.shape), where=sd > 0))
    ones = np.ones(counts.shape)
    if sides is None:
        return np.stack([length, ones], -1), judged.score, counts
    hard = np.broadcast_to(_difficulty(judged, sides), counts.shape)
    own = np.stack([length, hard, ones], -1)
    gamed = np.stack(
        [
            np.tanh(sides.gamed_scaled_delta),
            sides.difficulty[sides.gamed_index],
            np.zeros(len(sides.gamed_score)),
        ],
        -1,
    )
    first = np.broadcast_to(gamed, (*counts.shape[:-1], *gamed.shape))
    lambdas = np.full((*counts.shape[:-1], len(gamed)), GAMED_WEIGHT)
    return (
        np.concatenate([first, own], -2),
        np.concatenate([sides.gamed_score, judged.score]),
        np.concatenate([lambdas, counts], -1),
    )


def predicted(
    beta: np.ndarray, judged: Judged, counts: np.ndarray, sides: Sides | None
) -> np.ndarray:
    """Mean predicted preference (...,) at equal lengths, for coefficients beta (..., k)."""
    if sides is None:
        return sigmoid(beta[..., -1])
    hard = _difficulty(judged, sides)
    chance = sigmoid(beta[..., 1:2] * hard + beta[..., 2:3])
    return (counts * chance).sum(-1) / counts.sum(-1)


def is_extreme(raw: float, controlled: float) -> bool:
    """Whether alpaca_eval would warn: more than 10 points and a quarter of the way away."""
    low = min(raw * 0.75, raw - 0.10)
    high = max(raw + (1 - raw) / 4, raw + 0.10)
    return not low <= controlled <= high


def _difficulty(judged: Judged, sides: Sides) -> np.ndarray:
    if judged.position is None:
        raise UserError(
            f"the {FULL!r} win rate needs to know which instruction is which; use {MINIMAL!r}"
        )
    if judged.size != len(sides.difficulty):
        raise UserError(
            f"the side files know {len(sides.difficulty)} instructions, this set has {judged.size};"
            f" they belong to AlpacaEval's own set in its order: give it, or use {MINIMAL!r}"
        )
    return sides.difficulty[judged.position]
