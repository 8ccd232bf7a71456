r"""BIG-Bench Hard, answered in prose (CoT): the answer an output settles on, by sub-task.

Source: OLMES, task `bbh:cot-v1::tulu` of the Tülu 3 suite. What follows from its rules and is kept,
since published numbers contain it:

- 15 targets of word_sorting have an apostrophe or "&", which the answer pattern lacks, and 3
  targets of broken questions are no letter: 18 of the 6,511 questions cannot be answered correctly.
- The comparison ignores punctuation, so the sign of an integer: -5 is as good as 5.
- A word_sorting answer must follow "answer is " directly: after "answer is: " the word "is" itself
  is taken for the answer.
- So must one of dyck_languages: a space alone is a match, so "the answer is **] )**" answers "".
- "yes", "no", "valid", "true", ... need not be whole words: "the answer is not known" answers "no".
- Each rule takes its last match, so "the answer is (A), not (B)" is (A), yet "(A), not (B)" is (B).
"""

from __future__ import annotations

import re
import string
from types import MappingProxyType

from deltalearn.evaluate.tulu3.grade import Grade

_LETTERS = (
    "date_understanding", "disambiguation_qa", "geometric_shapes", "hyperbaton",
    "logical_deduction_five_objects", "logical_deduction_seven_objects",
    "logical_deduction_three_objects", "movie_recommendation", "penguins_in_a_table",
    "reasoning_about_colored_objects", "ruin_names", "salient_translation_error_detection",
    "snarks", "temporal_sequences", "tracking_shuffled_objects_five_objects",
    "tracking_shuffled_objects_seven_objects", "tracking_shuffled_objects_three_objects",
)  # fmt: skip
_YES_NO = ("causal_judgement", "navigate", "sports_understanding", "web_of_lies")

ANSWERS = MappingProxyType(  # the pattern of an answer, by sub-task
    {
        **dict.fromkeys(_LETTERS, r"\([A-Z]\)"),
        **dict.fromkeys(_YES_NO, r"[yY]es|[nN]o"),
        "boolean_expressions": r"[tT]rue|[fF]alse",
        "dyck_languages": r"[\]\)\}\> ]+",
        "formal_fallacies": r"[iI]nvalid|[vV]alid",
        "multistep_arithmetic_two": r"-?\d+",
        "object_counting": r"\d+",
        "word_sorting": r"[a-z ]+",
    }
)
_NO_PUNCTUATION = str.maketrans("", "", string.punctuation)


def grade(output: str, target: str, task: str) -> Grade:
    """1 if the answer found in `output` is `target`, else 0; no answer is wrong.

    target, task: as in the data (task is a key of `ANSWERS`; ValueError otherwise). Case and
    punctuation are ignored, punctuation not in dyck_languages, where it is the answer.
    """
    found = extract(output, task)
    verbatim = task == "dyck_languages"
    return Grade(float(_plain(found, verbatim) == _plain(target, verbatim)), found)


def _plain(answer: str, verbatim: bool) -> str:
    return answer.lower() if verbatim else answer.lower().translate(_NO_PUNCTUATION)


def extract(output: str, task: str) -> str:
    """The answer of `output` to a question of `task`, without spaces around it, or "".

    ANS being the pattern of the sub-task, the last match of the first of these that hits: "So the
    answer is ANS", "answer is ANS", "answer:" with ANS anywhere behind it on the line, the word
    "answer" likewise, ANS anywhere, ANS anywhere in any case (all but the last two ignore case).
    OLMES has one more rule, a lone capital letter, whose pattern never matches (its word boundary
    is a backspace in a string that is not raw); it is left out.
    """
    if task not in ANSWERS:
        raise ValueError(f"no BBH sub-task {task!r}; there are {', '.join(ANSWERS)}")
    answer = ANSWERS[task]
    rules = (
        lambda: _last(f"(?i)So the answer is ({answer})", output),
        lambda: _last(f"(?i)answer is ({answer})", output),
        lambda: _last_behind(re.compile(r"(?i)answer:"), answer, output),
        lambda: _last_behind(re.compile(r"(?i)answer\b"), answer, output),
        lambda: _last(f"({answer})", output),
        lambda: _last(f"(?i)({answer})", output),
    )
    return next((found for rule in rules if (found := rule()) is not None), "").strip()


def _last(pattern: str, output: str) -> str | None:
    """The group of the last match of `pattern`, which has one group; None without a match."""
    found = re.findall(pattern, output)
    return found[-1] if found else None


def _last_behind(prefix: re.Pattern[str], answer: str, output: str) -> str | None:
    """The last match of `prefix.*?(answer)`, in linear time.

    The one pattern would, for every "answer" that is followed by none, read to the end of its
    line: minutes for a long line of them. Where one finds nothing, later ones of its line cannot.
    """
    wanted = re.compile(f"(?i){answer}")
    last = None
    for line in output.split("\n"):
        at = 0
        while (lead := prefix.search(line, at)) and (match := wanted.search(line, lead.end())):
            last, at = match[0], match.end()
    return last
