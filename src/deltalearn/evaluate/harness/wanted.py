"""What lm_eval asks a model to write, as our engines are asked."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from deltalearn.errors import UserError
from deltalearn.evaluate.room import Room
from deltalearn.lm.control import AnswerReader
from deltalearn.records import Sampling

LIMITS = ("max_gen_toks", "max_new_tokens", "max_tokens", "max_completion_tokens")  # first counts
REASONING = "reasoning_tokens"  # beyond the limit; of a request of ours alone
OF_SAMPLING = {"temperature", "top_p", "top_k", "min_p", "typical_p"}  # without effect on greedy
IDLE: dict[str, tuple[Any, ...]] = {  # values that change nothing
    "top_k": (None, 0, -1), "min_p": (None, 0), "typical_p": (None, 1), "num_beams": (None, 1),
    "repetition_penalty": (None, 1), "length_penalty": (None, 1), "presence_penalty": (None, 0),
    "frequency_penalty": (None, 0), "no_repeat_ngram_size": (None, 0), "use_cache": (None, True),
}  # fmt: skip


@dataclass(frozen=True)
class Wanted:
    """One text that a model is to write.

    Attributes:
        sampling: Greedy, or as the benchmark says.
        until: Strings that end an answer.
        seed: Of a sampled one.
        reasoning: Tokens of the limit that only reasoning may take.
    """

    sampling: Sampling
    until: tuple[str, ...]
    seed: int | None
    reasoning: int = 0

    def room(self, reader: AnswerReader) -> Room:
        """Make the room of its answer and of its reasoning, for one tokenizer."""
        return Room(reader, self.sampling.max_tokens - self.reasoning, self.reasoning)


def wanted(options: Mapping[str, Any], limit: int) -> Wanted:
    """Read the options of a request of lm_eval.

    Args:
        options: Its generation arguments, with a `seed` where it is sampled.
        limit: Tokens, where they do not say.

    Returns:
        What is wanted: temperature and top_p of a sampled text, nothing of a greedy one.

    Raises:
        UserError: If they ask for what would change a text and is not here.
    """
    values = dict(options)
    until = values.pop("until", None) or ()
    limits = [values.pop(name, None) for name in LIMITS]
    seed = values.pop("seed", None)
    reasoning = int(values.pop(REASONING, 0))
    temperature = float(values.get("temperature") or 0)
    sampled = values.pop("do_sample", None)
    if temperature <= 0 or not (sampled or sampled is None):
        values = {name: value for name, value in values.items() if name not in OF_SAMPLING}
        temperature = 0.0
    top_p = float(values.pop("top_p", None) or 1.0)
    values.pop("temperature", None)
    for name, value in values.items():
        if value not in IDLE.get(name, (None,)):
            raise UserError(
                f"the benchmark asks for {name}={value!r}, which would change its answers and "
                "is not supported; temperature, top_p, do_sample, until and a limit are"
            )
    tokens = next((int(value) for value in limits if value is not None), limit)
    texts = (until,) if isinstance(until, str) else tuple(until)
    return Wanted(Sampling(temperature, top_p, tokens + reasoning), texts, seed, reasoning)
