"""Eleven string tasks, each with an expert answer and a novice answer.

The *novice* answer is a systematic, plausible mistake (an operation stopped half-way, an end
forgotten), not noise: a weak model that has mostly seen novice answers is wrong in a way that a
better one can contrast with. Every string belongs for good to either the training side or the
evaluation side, so an evaluated item was never seen in pretraining, prompts or pairs.
"""

from __future__ import annotations

import random
import zlib
from collections.abc import Callable
from dataclasses import dataclass
from itertools import groupby

ALPHABET = "abcdefghij"
MIN_LENGTH, MAX_LENGTH = 3, 6
EVAL_SHARE = 10  # one string in ten is reserved for evaluation
NEXT = str.maketrans(ALPHABET, ALPHABET[1:] + ALPHABET[:1])
PREVIOUS = str.maketrans(ALPHABET, ALPHABET[-1:] + ALPHABET[:-1])


def _smallest_first(text: str) -> str:
    smallest = min(text)
    at = text.index(smallest)
    return smallest + text[:at] + text[at + 1 :]


def _swap_pairs(text: str) -> str:
    return "".join(text[i : i + 2][::-1] for i in range(0, len(text), 2))


@dataclass(frozen=True)
class Task:
    """One string task: what it asks, the right answer and the novice's typical mistake."""

    name: str
    about: str
    expert: Callable[[str], str]
    mistake: str
    novice: Callable[[str], str]


TASKS: dict[str, Task] = {
    task.name: task
    for task in [
        Task("rev", "reverse", lambda s: s[::-1], "drops the last character", lambda s: s[:0:-1]),
        Task("sort", "sort the letters", lambda s: "".join(sorted(s)),
             "only moves the smallest to the front", _smallest_first),
        Task("next", "each letter's successor", lambda s: s.translate(NEXT),
             "leaves the last letter unchanged", lambda s: s[:-1].translate(NEXT) + s[-1]),
        Task("prev", "each letter's predecessor", lambda s: s.translate(PREVIOUS),
             "leaves the last letter unchanged", lambda s: s[:-1].translate(PREVIOUS) + s[-1]),
        Task("uniq", "drop repeated letters", lambda s: "".join(dict.fromkeys(s)),
             "only drops repeats that stand side by side",
             lambda s: "".join(letter for letter, _ in groupby(s))),
        Task("dup", "double every letter", lambda s: "".join(c * 2 for c in s),
             "forgets to double the last letter", lambda s: "".join(c * 2 for c in s)[:-1]),
        Task("rot", "move the first letter to the end", lambda s: s[1:] + s[0],
             "loses the moved letter", lambda s: s[1:]),
        Task("del", "delete the first letter wherever it occurs", lambda s: s.replace(s[0], ""),
             "only deletes it once", lambda s: s[1:]),
        Task("pal", "append the mirror image", lambda s: s + s[::-1],
             "does not repeat the middle letter", lambda s: s + s[-2::-1]),
        Task("odd", "letters at odd places (1st, 3rd, ...)", lambda s: s[::2],
             "starts at the second place", lambda s: s[1::2]),
        Task("swap", "swap neighbours pairwise", _swap_pairs,
             "only swaps the first pair", lambda s: s[1] + s[0] + s[2:]),
    ]
}  # fmt: skip


@dataclass(frozen=True)
class Question:
    """One prompt with both of its answers, which always differ and are never empty."""

    task: str
    text: str
    expert: str
    novice: str

    @property
    def prompt(self) -> str:
        """The question as a prompt: the task's word and the string."""
        return f"{self.task} {self.text}"


def is_eval_string(text: str) -> bool:
    """True if `text` is reserved for evaluation: a fixed tenth of all strings, by CRC-32."""
    return zlib.crc32(text.encode()) % EVAL_SHARE == 0


def draw_question(rng: random.Random, task: str, *, evaluation: bool) -> Question:
    """Draw a question of `task` from one side of the split, its two answers different."""
    spec = TASKS[task]
    while True:
        letters = ALPHABET
        if task in ("uniq", "del"):  # few letters, so that repeats happen
            letters = "".join(rng.sample(ALPHABET, 4))
        length = rng.randint(MIN_LENGTH, MAX_LENGTH)
        text = "".join(rng.choice(letters) for _ in range(length))
        expert, novice = spec.expert(text), spec.novice(text)
        if is_eval_string(text) == evaluation and expert != novice and expert and novice:
            return Question(task, text, expert, novice)


def draw_questions(seed: int, count: int, *, evaluation: bool) -> list[Question]:
    """`count` questions without repetition, tasks in rotation, reproducible from `seed`."""
    rng = random.Random(seed)
    names = list(TASKS)
    questions: dict[str, Question] = {}
    turn = 0
    while len(questions) < count:
        question = draw_question(rng, names[turn % len(names)], evaluation=evaluation)
        if question.prompt not in questions:
            questions[question.prompt] = question
            turn += 1
    return list(questions.values())
