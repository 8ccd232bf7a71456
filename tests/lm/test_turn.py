"""Protects where answers stand: behind their prompts as the chat template itself renders them."""

from __future__ import annotations

from typing import ClassVar

import pytest

pytest.importorskip("trl")

from helpers.templates import CHATML, REAL, real_tokenizer, tokenizer_of

from deltalearn.errors import UserError
from deltalearn.formats.preferences import PairRow
from deltalearn.lm.chat import answer_ids, prompt_ids
from deltalearn.lm.render import whole_text
from deltalearn.lm.turn import end_of_turn, turn_of
from deltalearn.records import Rendering
from deltalearn.tune.tokenize import prepare_examples

DAY = "2026-11-26"
ASKED = ({"role": "user", "content": "Say hi."},)
SYSTEM = ({"role": "system", "content": "Be brief."}, *ASKED)
LATER = (*ASKED, {"role": "assistant", "content": "Hi."}, {"role": "user", "content": "Again."})
THOUGHT = "<think>\nthe fox asks\n</think>\n\n"
HEADER = "{{ '<|im_start|>assistant\\n' }}"
OPENS = ("qwen3.5", "r1-distill")


def rendering(name: str) -> Rendering:
    return Rendering(REAL[name].arguments, DAY)


def trained(tokenizer, prompt, chosen, how, rejected="Bye now.", **row) -> tuple[str, str]:
    """What a pair becomes: its prompt, and prompt with chosen answer, decoded."""
    pair = PairRow("row", tuple(prompt), chosen, rejected, "stop", "stop", **row)
    examples, counts = prepare_examples(tokenizer, [pair], 2000, rendering=how)
    assert counts.altered_answers == 0
    asked = examples[0].prompt.tolist()
    return tokenizer.decode(asked), tokenizer.decode([*asked, *examples[0].chosen.tolist()])


@pytest.mark.parametrize("name", REAL)
@pytest.mark.parametrize("prompt", [ASKED, SYSTEM, LATER], ids=["question", "system", "turns"])
def test_prompt_and_answer_are_what_the_template_renders(name, prompt):
    tokenizer, how = real_tokenizer(name), rendering(name)
    whole = whole_text(tokenizer, [*prompt, {"role": "assistant", "content": "Hello."}], how)
    if whole is None:
        pytest.skip("the template refuses the conversation")
    asked, joint = trained(tokenizer, prompt, "Hello.", how)
    assert asked == whole_text(tokenizer, prompt, how, waiting=True)
    end = REAL[name].end
    expected = whole[: whole.rindex(end)].rstrip(" ") + end  # no space before an end is trained
    if name == "mistral-v0.3" and prompt == SYSTEM:  # the answer takes the system turn away
        expected = asked + " Hello.</s>"
    if name == "r1-distill":  # whose template takes thoughts away from answers
        expected = expected.replace(
            "<｜Assistant｜>Hello", "<｜Assistant｜><think>\n\n</think>\n\nHello"
        )
    assert joint == expected


@pytest.mark.parametrize("name", REAL)
def test_the_check_finds_what_stands_before_answers(name):
    tokenizer = real_tokenizer(name)
    turn = turn_of(tokenizer, rendering(name))
    assert turn.before == REAL[name].before
    assert turn.end == tokenizer.convert_tokens_to_ids(REAL[name].end)
    assert turn.closed == ("without thoughts" in name)
    assert turn.opened == ("<think>\n" if name in OPENS else "")


@pytest.mark.parametrize("answer", [" Hello. ", "\n\nHello.\n", "Hello.\t"])
@pytest.mark.parametrize("name", ["llama-3.1", "gemma-3", "qwen2.5", "vicuna", "gpt-oss"])
def test_white_space_of_an_answer_is_its_own(name, answer):
    """It is what a model has written; templates that trim it do so in earlier turns alone."""
    tokenizer, how = real_tokenizer(name), rendering(name)
    asked, joint = trained(tokenizer, ASKED, answer, how)
    before = REAL[name].before
    placed = answer if before and answer.startswith(before) else before + answer
    assert joint == asked + placed + REAL[name].end


def test_scored_answers_stand_where_trained_ones_do():
    for name in REAL:
        tokenizer, how = real_tokenizer(name), rendering(name)
        pair = PairRow("row", ASKED, "Hello.", "Bye.", "stop", "length")
        examples, _ = prepare_examples(tokenizer, [pair], 2000, rendering=how)
        assert prompt_ids(tokenizer, [ASKED], None, how) == [examples[0].prompt.tolist()]
        scored = answer_ids(tokenizer, ["Hello.", "Bye."], [True, False], how)
        assert scored == [examples[0].chosen.tolist(), examples[0].rejected.tolist()]


def test_control_tokens_of_the_template_are_not_the_answers():
    tokenizer = real_tokenizer("gpt-oss")
    rows = [PairRow("row", ASKED, chosen, "Bye.", "stop", "stop") for chosen in ("Hi.", "<|end|>x")]
    _, counts = prepare_examples(tokenizer, rows, 2000)
    assert counts.special_token_answers == 1


class TestThoughts:
    @pytest.mark.parametrize("name", ["qwen3", *OPENS])
    def test_kept_thoughts_have_one_mark(self, name):
        tokenizer, how = real_tokenizer(name), rendering(name)
        _, joint = trained(tokenizer, ASKED, THOUGHT + "Paris", how)
        assert joint.endswith(f"{THOUGHT}Paris{REAL[name].end}")
        assert joint.count("<think>") == joint.count("</think>") == 1

    @pytest.mark.parametrize("name", OPENS)
    def test_what_was_written_behind_an_opened_mark(self, name):
        """The store puts the mark alone before it, and a file may have none at all."""
        tokenizer, how = real_tokenizer(name), rendering(name)
        for written in ("<think>the fox\n</think>\n\nParis", "the fox\n</think>\n\nParis"):
            _, joint = trained(tokenizer, ASKED, written, how)
            assert joint.endswith(f"<think>\nthe fox\n</think>\n\nParis{REAL[name].end}")

    def test_thoughts_of_another_family_get_the_students_marks(self):
        tokenizer = real_tokenizer("r1-distill")
        _, joint = trained(tokenizer, ASKED, "[THINK]the fox\n[/THINK]\n\nParis", Rendering())
        assert "<think>\nthe fox\n</think>\n\nParis" in joint
        assert "THINK]" not in joint

    def test_a_prompt_that_has_closed_them_leaves_no_place(self):
        tokenizer, how = real_tokenizer("qwen3"), Rendering({"enable_thinking": False})
        rows = [
            PairRow("row 1", ASKED, "Paris", "Lyon", "stop", "stop"),
            PairRow("row 2", ASKED, THOUGHT + "Paris", "Lyon", "stop", "stop"),
            PairRow("row 3", ASKED, "<think>\n\n</think>\n\nParis", "Rome", "stop", "stop"),
        ]
        examples, counts = prepare_examples(tokenizer, rows, 2000, rendering=how)
        assert counts.dropped["refused"] == 1
        assert "row 2: an answer begins with its reasoning" in counts.first["refused"]
        assert examples[0].chosen.tolist() == examples[1].chosen.tolist()
        with pytest.raises(UserError, match="has closed"):
            answer_ids(tokenizer, [THOUGHT + "Paris"], [True], how)

    def test_the_students_arguments_win_over_a_rows(self):
        """A row of a mixed data set says for itself, unless the student is always asked one way."""
        tokenizer = real_tokenizer("qwen3")
        asked = {"chat_template_kwargs": {"enable_thinking": False}}["chat_template_kwargs"]
        closed, _ = trained(tokenizer, ASKED, "Paris", Rendering(), template=asked)
        assert closed.endswith("<think>\n\n</think>\n\n")
        own = Rendering({"enable_thinking": True})
        opened, joint = trained(tokenizer, ASKED, "Paris", own, template=asked)
        assert opened.endswith("assistant\n")
        assert joint.count("<think>") == 1


class TestRefusals:
    # Each renders a prompt that its own conversations do not begin with.
    INCONSISTENT: ClassVar = {
        "other header": CHATML.replace(HEADER, "{{ 'Answer: ' }}"),
        "more in the prompt": CHATML.replace(HEADER, HEADER + "{{ 'Sure, ' }}"),
        "answers cut": CHATML.replace("message['content']", "message['content'][:1]"),
        "only with a system turn": (
            "{% set sys = messages[0]['role'] == 'system' %}{% for m in messages %}"
            "{{ m['role'] + ':' + (' ' if m['role'] == 'assistant' and sys else '') + "
            "m['content'] + '<|im_end|>' }}{% endfor %}"
            "{% if add_generation_prompt %}{{ 'assistant:' }}{% endif %}"
        ),
    }

    @pytest.mark.parametrize("name", INCONSISTENT)
    def test_both_texts_are_shown(self, name):
        tokenizer = tokenizer_of(self.INCONSISTENT[name])
        row = PairRow("row", ASKED, "Hello.", "Bye.", "stop", "stop")
        with pytest.raises(UserError, match=r"(?s)prompt: '.*with an answer: '.*Mend the template"):
            prepare_examples(tokenizer, [row], 2000)
        with pytest.raises(UserError, match="with an answer"):
            answer_ids(tokenizer, ["Hello."], [True])

    def test_a_template_of_one_turn_is_taken_as_it_is(self):
        template = (
            "{% if messages | length > 1 %}{{ raise_exception('one turn') }}{% endif %}"
            "{{ messages[0].content }}"
        )
        tokenizer = tokenizer_of(template)
        asked, joint = trained(tokenizer, ASKED, "Hello.", Rendering())
        assert (asked, joint) == ("Say hi.", "Say hi.Hello.<|im_end|>")
        assert end_of_turn(tokenizer) == tokenizer.eos_token_id
