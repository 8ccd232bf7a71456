"""Score a model in memory on development questions, as tuning does to choose when to stop."""

from __future__ import annotations

from collections.abc import Callable

from transformers import PreTrainedModel

from deltalearn.evaluate.reference.score import Asked, score_model
from deltalearn.evaluate.reference.scorers import scorer
from deltalearn.formats.questions import read_items
from deltalearn.lm.load import load_tokenizer
from deltalearn.lm.locate import ModelFiles
from deltalearn.lm.render import PLAIN
from deltalearn.recipe import DevSpec
from deltalearn.records import Rendering

TOKEN_BUDGET = 16384


def dev_scores(
    settings: DevSpec, student: ModelFiles, rendering: Rendering = PLAIN
) -> Callable[[PreTrainedModel], dict[str, float]]:
    """Make a function from a model in evaluation mode to {metric: mean over the questions}.

    Args:
        settings: Which questions, and how they are scored.
        student: Its tokenizer is taken, and its name.
        rendering: Arguments of its chat template, and its day.
    """
    tokenizer = load_tokenizer(student)
    items = read_items(**settings.reading)
    asked = Asked(
        (settings.metric,),
        scorer(settings.scorer, settings.pattern),
        settings.max_tokens,
        TOKEN_BUDGET,
        rendering,
    )

    def score(model: PreTrainedModel) -> dict[str, float]:
        rows = score_model(model, tokenizer, items, asked, title="dev", name=student.name)
        return {settings.metric: sum(row[settings.metric] for row in rows) / len(rows)}

    return score
