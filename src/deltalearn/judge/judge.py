"""A judge: an evaluator and the model that answers; what it is shown, and what its reply means.

The texts of a comparison are hostile. They are put into the messages of the prompt after it was
split into turns, all at once, so that no output opens a turn or fills another's place. Marks of
turns (`<|im_start|>` and the like), which a server may take for its own, are spaced out; whatever
imitates the prompt is recorded. An output that talks a judge round remains possible: the prompt
is the published one and has no defence.
"""

from __future__ import annotations

import random
import re
from dataclasses import dataclass, replace
from pathlib import Path

from deltalearn.judge.evaluator import PLACES, PUBLISHED, Evaluator, load_evaluator
from deltalearn.judge.replies import READERS, Malformed, Reply
from deltalearn.judge.verdicts import ERROR, UNREACHED, JudgeIdentity, Pair, Verdict, clean
from deltalearn.records import Message
from deltalearn.util.files import canonical_json

TURN_MARK = re.compile(r"<\|(\w+)\|>")
PLACE = re.compile(r"\{(" + "|".join(PLACES) + r")\}")
SHORTEST_MARK = 3  # characters around a place that count as a delimiter


@dataclass(frozen=True)
class Judge:
    """An evaluator, the model that answers, and the seed of the order (alpaca_eval's is 0)."""

    evaluator: Evaluator
    model: str
    seed: int = 0

    @property
    def identity(self) -> JudgeIdentity:
        """Identity that every annotation of this judge carries."""
        evaluator = self.evaluator
        how = {
            "settings": dict(evaluator.settings),
            "parser": evaluator.parser,
            "options": {str(k): v for k, v in evaluator.options.items()},
            "swaps": evaluator.swaps,
        }
        version = f"alpaca_eval {evaluator.version}" if evaluator.version else None
        return JudgeIdentity(
            evaluator.name, self.model, evaluator.prompt, version, canonical_json(how)
        )

    def swapped(self, instruction: str) -> bool:
        """True if the model's answer is shown first: drawn by instruction and seed.

        The draw is alpaca_eval's own, of a generator seeded with the text.
        """
        if not self.evaluator.swaps:
            return False
        rng = random.Random(f"is_switched_outputs{instruction}{self.seed}")
        return rng.choices([False, True], k=1)[0]

    def conversation(self, pair: Pair) -> list[Message]:
        """The prompt for one pair, in the order that `swapped` says."""
        first, second = pair.output_1, pair.output_2
        if self.swapped(pair.instruction):
            first, second = second, first
        # Marks of turns are spaced out, `<|im_end|>` as `<| im_end |>`.
        defused = (TURN_MARK.sub(r"<| \1 |>", t) for t in (pair.instruction, first, second))
        texts = dict(zip(PLACES, defused, strict=True))
        return [
            Message(
                role=message["role"],
                content=PLACE.sub(lambda m: texts[m.group(1)], message["content"]).strip(),
            )
            for message in self.evaluator.messages
        ]

    def marks(self, pair: Pair) -> tuple[str, ...]:
        """Delimiters of the prompt, and marks of turns, that stand in the texts of a pair."""
        texts = (pair.instruction, pair.output_1, pair.output_2)
        found = {m.group() for text in texts for m in TURN_MARK.finditer(text)}
        found |= {mark for mark in delimiters(self.evaluator) if any(mark in t for t in texts)}
        return tuple(sorted(found))

    def verdict(self, pair: Pair, reply: Reply) -> Verdict:
        """Read a reply to `conversation(pair)`, with the order undone."""
        swapped = self.swapped(pair.instruction)
        preference = fault = None
        if reply.error is not None:
            fault = f"{UNREACHED if reply.unreached else ERROR}: {clean(reply.error)}"
        else:
            try:
                seen = READERS[self.evaluator.parser](reply, **self.evaluator.options)
                preference = 3 - seen if swapped else seen
            except Malformed as error:
                fault = f"malformed: {clean(str(error))}"
        logprobs = reply.logprobs
        if logprobs is not None:
            logprobs = tuple({clean(t): float(v) for t, v in top.items()} for top in logprobs)
        return Verdict(
            preference, fault, swapped, True, self.marks(pair), clean(reply.text), logprobs
        )


def load_judge(
    name: str | Path = PUBLISHED, model: str | None = None, *, text_only: bool = False
) -> Judge:
    """A judge of a published evaluator, or of a file of one's own.

    Args:
        name: Of the evaluator in alpaca_eval, or a YAML file in the same format.
        model: Who answers, by default whom the evaluator was published for.
        text_only: For servers without log-probabilities the verdict is the text; that is another
            judge, and it is called so.

    Raises:
        UserError: As of `load_evaluator`.
    """
    evaluator = load_evaluator(name)
    if text_only:
        asked = {k: v for k, v in evaluator.settings.items() if "logprobs" not in k}
        by_text = f"{evaluator.name}, by text"
        evaluator = replace(evaluator, name=by_text, settings=asked, parser="text")
    return Judge(evaluator, model or evaluator.model)


def delimiters(evaluator: Evaluator) -> set[str]:
    """List what an output could imitate: the places, what encloses them, and headings."""
    marks = {f"{{{place}}}" for place in PLACES}
    for message in evaluator.messages:
        for line in message["content"].splitlines():
            if line.startswith("#"):
                marks.add(line.strip())
            if PLACE.search(line):
                around = (part.strip(" ,") for part in PLACE.split(line)[::2])
                marks |= {part for part in around if len(part) >= SHORTEST_MARK}
    return marks
