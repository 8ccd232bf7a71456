"""Protects preparation on real chat templates: random conversations against TRL's own ids.

Where we differ from TRL it is on purpose and for a reason that docs/pitfalls.md gives; each is
proven on the text that the template renders, and counted. Nothing may differ for no reason.
"""

from __future__ import annotations

import random
from collections import Counter

import pytest

pytest.importorskip("trl")

from helpers.templates import REAL, real_tokenizer, tokenizer_of
from helpers.trl import trl_ids

from deltalearn.formats.preferences import PairRow
from deltalearn.lm.clock import on_day
from deltalearn.lm.render import whole_text
from deltalearn.lm.turn import turn_of
from deltalearn.records import Message, Rendering
from deltalearn.tune.tokenize import prepare_examples

DAY = "2026-11-26"
CONVERSATIONS = 24  # of each template
WORDS = (
    "fox", "The", "12,345", "Größe", "你好", "🙂🚀", "naïve", "a\tb", "x = y;", "\n\n", " ", "é",
    "don't", "<|im_sta", "</s", "[INST", "<b>", "{{ x }}", "{% if %}", "\\n", "user:", "end.",
)  # fmt: skip
IN_QUESTIONS = ("<|im_end|>", "</s>", "<think>", "[/INST]", "<|eot_id|>")  # read as control tokens
EDGES = ("", "", "", " ", "\n", "\n\n ", "\t")
# Whose rendering of a whole conversation does not begin with the prompt that inference sees.
PROMPT_IS_OTHERWISE = {"r1-distill", "mistral-v0.3"}
SPACE_BEFORE_END = {"llama-2"}
KINDS = ("the same", "white space of an answer", "a token across the boundary",
         "a space before the end", "another prompt than at inference")  # fmt: skip


def text(draw: random.Random, words: tuple[str, ...], edges: bool = True) -> str:
    inner = " ".join(draw.choice(words) for _ in range(draw.randint(1, 6))).strip() or "fox"
    return draw.choice(EDGES) + inner + draw.choice(EDGES) if edges else inner


def conversation(draw: random.Random) -> list[Message]:
    turns: list[Message] = []
    if draw.random() < 0.4:
        turns.append(Message(role="system", content=draw.choice(["", text(draw, WORDS)])))
    for _ in range(draw.randint(0, 3)):
        turns.append(Message(role="user", content=text(draw, WORDS + IN_QUESTIONS)))
        turns.append(Message(role="assistant", content=draw.choice(["", text(draw, WORDS)])))
    return [*turns, Message(role="user", content=text(draw, WORDS + IN_QUESTIONS))]


def rows_of(name: str, how: Rendering) -> list[PairRow]:
    """Random pairs that the template takes, chosen and rejected answers different."""
    draw, rows = random.Random(f"{name} 0"), []
    tokenizer = real_tokenizer(name)
    for number in range(CONVERSATIONS):
        turns = conversation(draw)
        answers = [text(draw, WORDS, edges=draw.random() < 0.5) for _ in range(2)]
        if answers[0] != answers[1] and whole_text(tokenizer, turns, how, waiting=True):
            rows.append(
                PairRow(str(number), tuple(turns), *answers, "stop", "stop", dict(how.arguments))
            )
    assert len(rows) > CONVERSATIONS / 4
    return rows


def reason(name, tokenizer, how, row, answer, ours, theirs) -> str:
    """Why our ids are not TRL's; AssertionError if the rendered conversation does not tell."""
    end = REAL[name].end
    whole = whole_text(tokenizer, [*row.prompt, {"role": "assistant", "content": answer}], how)
    prompt = whole_text(tokenizer, row.prompt, how, waiting=True)
    before = REAL[name].before
    assert tokenizer.decode(ours[0]) == prompt, "the prompt is what inference sees"
    placed = answer if before and answer.startswith(before) else before + answer
    assert tokenizer.decode(ours[1]) == placed + end, "the answer is what was written"
    if ours == theirs:
        return "the same"
    if not whole.startswith(prompt):
        assert name in PROMPT_IS_OTHERWISE
        return "another prompt than at inference"
    behind = whole.removeprefix(prompt)
    if behind.startswith(placed + end):
        assert tokenizer.decode(theirs[0] + theirs[1]) == prompt + placed + end
        return "a token across the boundary"
    kept = behind[: behind.rindex(end)]
    if kept == placed + " ":
        assert name in SPACE_BEFORE_END
        return "a space before the end"
    assert kept.split() == placed.split() and answer != answer.strip(), (name, kept, placed)
    return "white space of an answer"


def until_end(ids: list[int], end: int) -> list[int]:
    """TRL's answer up to its end; what the template writes behind it is never generated."""
    return ids[: len(ids) - ids[::-1].index(end)]


def compared(name: str) -> Counter[str]:
    """How often ids of random conversations differ from TRL's, by reason."""
    model, tokenizer = REAL[name], real_tokenizer(name)
    how = Rendering(model.arguments, DAY)
    rows = rows_of(name, how)
    theirs = tokenizer_of(on_day(model.text, DAY), model.end, model.control, model.plain, model.eos)
    examples, counts = prepare_examples(tokenizer, rows, 10**6, rendering=how)
    assert (counts.examples, counts.altered_answers) == (len(rows), 0)
    end, found = turn_of(tokenizer, how).end, Counter[str]()
    of_trl = trl_ids(theirs, *rows)
    for row, example, (prompt, *answers) in zip(rows, examples, of_trl, strict=True):
        for side, ids, other in zip(
            ("chosen", "rejected"), (example.chosen, example.rejected), answers, strict=True
        ):
            ours = example.prompt.tolist(), ids.tolist()
            answer = getattr(row, side)
            told = reason(name, tokenizer, how, row, answer, ours, (prompt, until_end(other, end)))
            found[told] += 1
    return found


@pytest.fixture(scope="module")
def differences() -> dict[str, Counter[str]]:
    return {name: compared(name) for name in REAL}


def test_nothing_differs_without_a_reason(differences):
    assert len(differences) >= 12
    assert {kind for found in differences.values() for kind in found} == set(KINDS)
    total = sum(differences.values(), Counter())
    assert total["the same"] > total.total() / 2, total


def test_templates_that_trim_nothing_are_trls_to_the_id(differences):
    """But for tokens that TRL lets straddle the boundary where an answer begins with a space."""
    for name in ("qwen2.5", "smollm2", "phi-4", "mistral-v7", "command-r", "granite", "qwen3"):
        assert set(differences[name]) <= {
            "the same", "a token across the boundary", "white space of an answer"
        }, name  # fmt: skip
        assert differences[name]["the same"] >= 0.4 * differences[name].total(), name


def test_where_trl_trains_on_another_prompt_it_is_ours_that_inference_sees(differences):
    kind = "another prompt than at inference"
    assert {name for name, found in differences.items() if found[kind]} == PROMPT_IS_OTHERWISE
    kind = "a space before the end"
    assert {name for name, found in differences.items() if found[kind]} == SPACE_BEFORE_END
