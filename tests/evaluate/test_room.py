"""Protects the room that reasoning has beyond a limit: the limit stays the answer's, to the token.

A model that does not reason answers as it did, an answer after reasoning is cut where an answer
would be, and what is asked of whom is in requests, results and comparisons.
"""

from __future__ import annotations

import json

import pytest

pytest.importorskip("lm_eval")

from helpers.memorised import CHATML, OPENED, memorise, tokenizer_with
from helpers.scored import score_files
from lm_eval.api.instance import Instance
from pydantic import ValidationError
from transformers import AutoTokenizer

from deltalearn.compare.comparable import ASKED
from deltalearn.evaluate.harness.backends import BackendOptions, load
from deltalearn.evaluate.harness.cache import Answers
from deltalearn.evaluate.harness.model import CachedLM
from deltalearn.evaluate.harness.served import Server
from deltalearn.evaluate.harness.wanted import REASONING
from deltalearn.evaluate.reference.score import Asked
from deltalearn.evaluate.reference.scorers import SCORERS
from deltalearn.evaluate.reply import UNFINISHED
from deltalearn.evaluate.room import Room
from deltalearn.formats.questions import Item
from deltalearn.lm.control import AnswerReader
from deltalearn.lm.locate import locate
from deltalearn.recipe.evaluation import EvaluateSpec

Q = "the capital of France?"
LONG = "the fox says the fox says"
SAYS = "Paris is the capital of France"
MARKS = ("<think>", "</think>")
WRITTEN = {  # (special, plain, template, what is written)
    "thinks": (MARKS, (), CHATML, f"<think>{LONG}</think>{SAYS}<|im_end|>"),
    "opened": ((), MARKS, OPENED, f"{LONG}</think>{SAYS}<|im_end|>"),
    "plain": ((), (), CHATML, f"{SAYS}<|im_end|>"),
    "knows": ((), MARKS, CHATML, f"{SAYS}<|im_end|>"),  # marks, and does not use them
}
LIMIT = 5
ALL = ["thinks", *(pytest.param(n, marks=pytest.mark.slow) for n in WRITTEN if n != "thinks")]


@pytest.fixture(scope="module")
def place(tmp_path_factory):
    made = {}

    def make(name: str):
        if name not in made:
            special, plain, template, text = WRITTEN[name]
            tokenizer = tokenizer_with(special, plain, template)
            made[name] = memorise(
                tmp_path_factory.mktemp("m") / name, tokenizer, {Q: text}, steps=70
            )
        return made[name]

    return make


def first_tokens(folder) -> str:
    """As much of the answer as the limit lets through."""
    tokenizer = AutoTokenizer.from_pretrained(folder)
    return tokenizer.decode(tokenizer(SAYS, add_special_tokens=False).input_ids[:LIMIT])


def asked(folder, tmp_path, room: int, limit: int = LIMIT, **options):
    """(the reply, notes) of lm_eval's own request through a model that remembers."""
    backend = BackendOptions(kind="hf", model=str(folder), device="cpu", dtype="float32", **options)
    tokenizer = AutoTokenizer.from_pretrained(folder)
    turns = [{"role": "user", "content": Q}]
    prompt = tokenizer.apply_chat_template(turns, add_generation_prompt=True, tokenize=False)
    answers = Answers(tmp_path / "answers.sqlite")
    model = CachedLM(load(backend), "m", answers, reasoning_tokens=room)
    how = {"until": ["never"], "max_gen_toks": limit, "do_sample": False}
    (reply,) = model.generate_until([Instance("generate_until", {}, (prompt, how), 0)])
    answers.close()
    return reply, model.issues.notes()


@pytest.mark.parametrize("name", ALL)
def test_the_limit_is_the_answers(place, tmp_path, name):
    reply, notes = asked(place(name), tmp_path, 100)
    assert reply == first_tokens(place(name)) and reply.fault is None
    reasons = name in ("thinks", "opened")
    assert (LONG in reply.reasoning) == reasons
    told = f"{int(reasons)} of 1 replies reason, in 100 tokens beyond the limit"
    assert notes == ([] if name == "plain" else [told])
    whole, _ = asked(place(name), tmp_path, 100, limit=60)
    assert whole == SAYS


@pytest.mark.parametrize("name", ALL[:2])
def test_without_room_reasoning_has_no_answer(place, tmp_path, name):
    reply, notes = asked(place(name), tmp_path, 0)
    assert (reply, reply.fault) == ("", UNFINISHED) and "reason, in" not in "".join(notes)
    little, _ = asked(place(name), tmp_path, 1)
    assert (little, little.fault) == ("", UNFINISHED)


def test_a_context_takes_of_the_room_before_it_takes_of_the_answer(place, tmp_path):
    _, notes = asked(place("thinks"), tmp_path, 10_000, context=300)
    assert "the context left 1 answers less than the limit" in notes


@pytest.mark.parametrize("name", ALL)
def test_own_questions_have_the_same_room(place, cpu, name):
    items = [Item("i", "", ({"role": "user", "content": Q},), first_tokens(place(name)))]
    how = (("greedy_accuracy",), SCORERS["contains"], LIMIT, 1000)
    files = locate(str(place(name)))
    rows = [
        score_files(files, items, Asked(*how, reasoning_tokens=room), placement=cpu)[0]
        for room in (100, 0)
    ]
    assert rows[0]["greedy_answer"] == first_tokens(place(name))
    assert rows[0]["greedy_accuracy"] == 1.0
    reasons = name in ("thinks", "opened")
    assert rows[1]["fault"] == (UNFINISHED if reasons else None)
    cut = Asked(("greedy_accuracy",), SCORERS["exact"], LIMIT, 1000, reasoning_tokens=100)
    (row,) = score_files(files, items, cut, placement=cpu)
    assert row["greedy_accuracy"] == 0.0, "what was cut has not ended"


@pytest.mark.parametrize("name", ["thinks", "opened", "knows"])
def test_an_answer_begins_where_its_text_does(name):
    special, plain, template, text = WRITTEN[name]
    tokenizer = tokenizer_with(special, plain, template)
    reader = AnswerReader(tokenizer)
    text = text.removesuffix("<|im_end|>")
    ids = tokenizer(text, add_special_tokens=False).input_ids
    mark = "<think>" if name == "opened" else ""
    start = reader.answer_start(ids, mark)
    assert tokenizer.decode(ids[start:]) == SAYS == reader.read(ids, mark).answer
    assert reader.answer_start(ids[:3], mark) == (0 if name == "knows" else 3)
    room = Room(reader, LIMIT, 100)
    full = [n for n in range(len(ids) + 1) if room.is_full(ids[:n], mark)]
    assert all(n > start + LIMIT for n in full) and room.cut(ids, mark) == ids[: start + LIMIT]
    assert Room(reader, LIMIT).cut(ids, mark) == ids


def test_a_server_is_asked_for_both():
    inner = load(BackendOptions(kind="openai", model="m", url="http://127.0.0.1:9/v1"))
    chat = json.dumps([{"role": "user", "content": Q}])
    how = {"until": [], "max_gen_toks": LIMIT, "do_sample": False, REASONING: 100}
    context = inner.apply_chat_template(json.loads(chat))
    body, _ = Server(inner)._call("generate_until", (context, how))
    assert body["max_tokens"] == LIMIT + 100 and REASONING not in body


def test_other_room_is_another_score():
    assert "reasoning_tokens" in ASKED
    own = {"questions": {"q": {"source": "x"}}}
    assert "reasoning_tokens" not in EvaluateSpec(**own).content()
    assert EvaluateSpec(**own, reasoning_tokens=9).content()["reasoning_tokens"] == 9
    likely = {"questions": {"q": {"source": "x", "metrics": ["loglik"]}}}
    with pytest.raises(ValidationError, match="where nothing is written"):
        EvaluateSpec(**likely, reasoning_tokens=9)
