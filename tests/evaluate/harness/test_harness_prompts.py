"""Protects prompts of benchmarks: exact behind the chat template, whatever it trims."""

from __future__ import annotations

from types import SimpleNamespace

import pytest

pytest.importorskip("trl")

from helpers.templates import REAL, real_tokenizer, tokenizer_of

from deltalearn.errors import UserError
from deltalearn.evaluate.harness.cache import Answers
from deltalearn.evaluate.harness.model import CachedLM
from deltalearn.evaluate.harness.prompts import prompts_of
from deltalearn.lm.render import whole_text
from deltalearn.records import Rendering

DAY = "2026-11-26"
ASKED = [{"role": "user", "content": "Complete this:\n\ndef f():\n"}]
BEGUN = ("Here is the completed function:\n\n```python\n", "Answer:", " - \n\n", "\n")


def model(tokenizer, tmp_path, how: Rendering, *, scored: bool = False) -> CachedLM:
    inner = SimpleNamespace(tokenizer=tokenizer)
    prompts = prompts_of(inner, how, scored=scored)
    return CachedLM(inner, "it", Answers(tmp_path / "answers.sqlite"), chat=prompts)


@pytest.mark.parametrize("begun", BEGUN)
@pytest.mark.parametrize("name", REAL)
def test_a_begun_answer_is_exact_behind_any_template(name, begun, tmp_path):
    tokenizer, how = real_tokenizer(name), Rendering(REAL[name].arguments, DAY)
    lm = model(tokenizer, tmp_path, how)
    history = [*ASKED, {"role": "assistant", "content": begun}]
    prompt = whole_text(tokenizer, ASKED, how, waiting=True)
    expected = prompt + REAL[name].before + begun
    assert lm.apply_chat_template(history, add_generation_prompt=False) == expected
    assert lm.apply_chat_template(ASKED, add_generation_prompt=True) == prompt


@pytest.mark.parametrize(
    "name", ["gpt-oss", "vicuna", "qwen3", "r1-distill", "qwen2.5", "llama-3.1"]
)
def test_what_is_scored_stands_where_answers_do(name, tmp_path):
    tokenizer, how = real_tokenizer(name), Rendering(REAL[name].arguments, DAY)
    lm = model(tokenizer, tmp_path, how, scored=True)
    prompt = whole_text(tokenizer, ASKED, how, waiting=True)
    assert lm.apply_chat_template(ASKED) == prompt + REAL[name].before


def test_worked_examples_are_turns_of_the_template(tmp_path):
    tokenizer = real_tokenizer("gemma-3")
    history = [*ASKED, {"role": "assistant", "content": "x"}, *ASKED]
    lm = model(tokenizer, tmp_path, Rendering())
    assert lm.apply_chat_template(history) == whole_text(tokenizer, history, waiting=True)


def test_a_system_turn_that_is_refused_is_left_out(tmp_path):
    """As lm_eval does; what is refused without it too is an error of this benchmark."""
    tokenizer = real_tokenizer("gemma-2")
    lm = model(tokenizer, tmp_path, Rendering())
    system = {"role": "system", "content": "Be brief."}
    assert lm.apply_chat_template([system, *ASKED]) == lm.apply_chat_template(ASKED)
    with pytest.raises(UserError, match="the chat template refuses the conversation"):
        lm.apply_chat_template([*ASKED, *ASKED])


def test_a_template_without_a_place_for_answers_is_refused(tmp_path):
    lm = model(tokenizer_of("{{ messages[0].content }}"), tmp_path, Rendering(), scored=True)
    with pytest.raises(UserError, match="with an answer"):
        lm.apply_chat_template(ASKED)


def test_a_server_renders_its_own_conversations(tmp_path):
    assert prompts_of(SimpleNamespace(tokenizer=None), Rendering(), scored=False) is None
    given = []
    inner = SimpleNamespace(apply_chat_template=lambda *a, **k: given.append((a, k)))
    lm = CachedLM(inner, "it", Answers(tmp_path / "answers.sqlite"))
    lm.apply_chat_template(ASKED, add_generation_prompt=False)
    assert given == [((ASKED,), {"add_generation_prompt": False})]
