"""IFEval: does an output follow every verifiable instruction of its prompt?

The 25 checks are those of lm_eval (the maintained copy of the official ones: Zhou et al. 2023,
arXiv 2311.07911). What is decided here, and differs from calling lm_eval's own scorer:

- Nothing is downloaded. lm_eval fetches nltk's sentence model `punkt_tab` when it is imported; here
  two of the 25 checks fall back to nltk's untrained splitter if the model is absent, and
  `notes` says so: length_constraints:number_sentences (untrained, "Dr. Smith" is two
  sentences) and change_case:capital_word_frequency (words are cut sentence by sentence). The other
  23 need no model: words are counted by a regular expression. Measured on 1,076 answers of models
  with all 52 sentence instructions of the data: 8% of the sentence counts differ from those of the
  trained model, 0.2% of the verdicts, and no count of capital words.
- The language detector (three checks: language:response_language, change_case:english_capital,
  change_case:english_lowercase) is seeded, so that a verdict is the same on every run.
- A keywords:letter_frequency of something that is no letter (two prompts ask for "#" and "!") is
  counted as asked; lm_eval, like the original, draws a random letter instead.
- Hostile text costs linear time and raises nothing. See `_REDUCED`.
"""

from __future__ import annotations

import contextlib
import functools
import logging
import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from types import MappingProxyType, ModuleType
from typing import Any

from deltalearn.errors import UserError, needs
from deltalearn.evaluate.tulu3.grade import Grade

Check = Callable[[str], bool]
_SENTENCES = "length_constraints:number_sentences"
_CAPITALS = "change_case:capital_word_frequency"
_LETTERS = "keywords:letter_frequency"
_MODEL = "tokenizers/punkt_tab/english/"


def grade(
    output: str,
    instruction_ids: Sequence[str],
    kwargs: Sequence[Mapping[str, Any]],
) -> Grade:
    """1 if all instructions of the prompt are followed, else 0; `extracted` lists the verdicts.

    instruction_ids, kwargs: `instruction_id_list` and `kwargs` of the data, one entry each per
    instruction. Prompt-level loose accuracy, the suite's metric.
    """
    followed = verdicts(output, instruction_ids, kwargs)
    said = [f"{i} {'yes' if f else 'no'}" for i, f in zip(instruction_ids, followed, strict=True)]
    return Grade(float(all(followed)), "; ".join(said))


def verdicts(
    output: str,
    instruction_ids: Sequence[str],
    kwargs: Sequence[Mapping[str, Any]],
) -> list[bool]:
    """Check whether each instruction is followed; an empty output follows none.

    Loose: by at least one of 8 variants of the output, so that an introductory or closing line or
    asterisks do no harm. ValueError without instructions or if the lists differ in length.
    UserError if an instruction is unknown or lacks an argument, or if lm_eval is not installed.
    """
    if not instruction_ids or len(instruction_ids) != len(kwargs):
        raise ValueError(f"{len(instruction_ids)} instructions with {len(kwargs)} arguments")
    texts = [text for text in dict.fromkeys(_variants(output)) if text.strip()]
    checks = [_check(i, k) for i, k in zip(instruction_ids, kwargs, strict=True)]
    return [any(check(text) for text in texts) for check in checks]


def notes() -> list[str]:
    """A sentence for the results if nltk's sentence model is not installed."""
    told = (
        f"nltk's punkt_tab is not installed: {_SENTENCES} and {_CAPITALS} split sentences by "
        "nltk's untrained Punkt, which ends one after every abbreviation; to split as the "
        "official checks do, run `python -m nltk.downloader punkt_tab` and evaluate again"
    )
    return [] if _has_model() else [told]


def _variants(output: str) -> list[str]:
    """The output, without its first line, its last, both; and each of these without asterisks."""
    lines = output.split("\n")
    cut = ["\n".join(part).strip() for part in (lines[1:], lines[:-1], lines[1:-1])]
    return [variant for text in (output, *cut) for variant in (text, text.replace("*", ""))]


def _check(instruction_id: str, kwargs: Mapping[str, Any]) -> Check:
    """The check of one instruction: text -> followed?"""
    known = _checks().INSTRUCTION_DICT
    if instruction_id not in known:
        raise UserError(f"IFEval: lm_eval has no check for the instruction {instruction_id!r}")
    instruction = known[instruction_id](instruction_id)
    # The published rows fill up what an instruction does not take with None, which is no argument.
    given = {key: value for key, value in kwargs.items() if value is not None}
    if (needed := set(instruction.get_instruction_args_keys())) != set(given):
        raise UserError(
            f"IFEval: {instruction_id} takes the arguments {sorted(needed)}, but the data gives "
            f"{sorted(given)}; a check without an argument would draw it at random"
        )
    if instruction_id == _LETTERS and not re.fullmatch("[A-Za-z]", given["letter"]):
        letter, relation = given["letter"].lower(), given["let_relation"]
        return lambda text: _related(text.lower().count(letter), relation, given["let_frequency"])
    instruction.build_description(**given)
    check, reduce = instruction.check_following, _REDUCED.get(instruction_id)
    if instruction_id in (_SENTENCES, _CAPITALS) and not _has_model():
        check = _untrained_check(instruction_id, given)

    def safe(text: str) -> bool:
        try:
            return bool(check(reduce(text) if reduce else text))
        except (RecursionError, TimeoutError):  # JSON nested too deeply; nltk's regexes, 5 s
            return False

    return safe


def _untrained_check(instruction_id: str, given: Mapping[str, Any]) -> Check:
    """The two checks that need sentences, by a splitter that needs no data."""
    from nltk.tokenize import NLTKWordTokenizer, PunktSentenceTokenizer

    sentences = PunktSentenceTokenizer().tokenize
    if instruction_id == _SENTENCES:
        relation, limit = given["relation"], given["num_sentences"]
        return lambda text: _related(len(sentences(text)), relation, limit)
    words = NLTKWordTokenizer().tokenize
    relation, limit = given["capital_relation"], given["capital_frequency"]
    return lambda text: _related(
        sum(word.isupper() for part in sentences(text) for word in words(part)), relation, limit
    )


def _related(count: int, relation: str, limit: int) -> bool:
    return count < limit if relation == "less than" else count >= limit


# Four of lm_eval's patterns take quadratic time on degenerate outputs (endless newlines, brackets).
# What is dropped here cannot change their verdict, and leaves no such run. Sentences are split by
# nltk, which gives up on very long texts: 2,048 tokens, the suite's limit, are never that long.


def _up_to_last(mark: str) -> Callable[[str], str]:
    """Cut every line behind its last `mark`, which ends the pattern."""
    return lambda text: "\n".join("".join(s.rpartition(mark)[:2]) for s in text.split("\n"))


_REDUCED: Mapping[str, Callable[[str], str]] = MappingProxyType(
    {
        "detectable_content:number_placeholders": _up_to_last("]"),  # \[.*?\]
        "detectable_format:title": _up_to_last(">>"),  # <<[^\n]+>>
        # \s*p\.\s?s\..*$ and the like
        "detectable_content:postscript": lambda text: re.sub(r"(\s\s)\s+", r"\1", text),
        # ^\s*\*[^\*].*$ and ^\s*-.*$ by line; a blank line more or less begins no bullet
        "detectable_format:number_bullet_lists": lambda text: re.sub(r"\n\s*\n", "\n\n", text),
        _SENTENCES: lambda text: text[:50_000],
        _CAPITALS: lambda text: text[:50_000],
    }
)


def _has_model() -> bool:
    import nltk

    try:
        nltk.data.find(_MODEL)
    except LookupError:
        return False
    return True


@functools.cache
def _checks() -> ModuleType:
    """lm_eval's registry of checks, imported without a download; langdetect seeded."""
    with needs("IFEval needs the checks of lm_eval", "evaluate"):
        import nltk

        with _no_download(nltk):
            from lm_eval.tasks.ifeval import instructions, instructions_registry
        from langdetect import DetectorFactory
    DetectorFactory.seed = 0
    # It prints every text whose language cannot be told; a model's output is not for terminals.
    instructions.logger.setLevel(logging.CRITICAL)
    return instructions_registry


@contextlib.contextmanager
def _no_download(nltk: Any) -> Iterator[None]:
    """lm_eval looks for punkt_tab when it is imported, and downloads what it does not find."""
    find, download = nltk.data.find, nltk.download
    nltk.data.find = lambda name, *a, **k: name if "punkt" in name else find(name, *a, **k)
    nltk.download = lambda *args, **kwargs: False
    try:
        yield
    finally:
        nltk.data.find, nltk.download = find, download
