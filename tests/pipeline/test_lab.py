"""Protects the embedded lab: its tasks, its split, and that what is shipped is what is stated.

The lab is the evidence people look at first, so its claims are checked: the answers of every task
on an example worked by hand, no evaluation string anywhere in the prompts, shipped models that have
the stated hashes, scores and order, and training that gives the same bytes twice.
"""

from __future__ import annotations

import json
import math
import random
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from deltalearn.lab.pretrain import (
    LADDER,
    MARGIN,
    Rung,
    _batches,
    _schedule,
    compare_with_shipped,
    is_ordered,
    measure,
    pretrain,
    write_data,
)
from deltalearn.lab.tasks import (
    ALPHABET,
    TASKS,
    draw_question,
    draw_questions,
    is_eval_string,
)
from deltalearn.lab.tokenizer import build_tokenizer
from deltalearn.lm.chat import answer_ids, prompt_ids
from deltalearn.lm.locate import locate
from deltalearn.lm.logprobs import collate, padded_logprobs
from deltalearn.util.files import file_digest, read_jsonl

# -- tasks ---------------------------------------------------------------------------------------

BY_HAND = {  # task: (question, expert answer, novice answer)
    "rev": ("abcd", "dcba", "dcb"),
    "sort": ("dbca", "abcd", "adbc"),
    "next": ("ajc", "bad", "bac"),
    "prev": ("baj", "aji", "ajj"),
    "uniq": ("aabab", "ab", "abab"),
    "dup": ("abc", "aabbcc", "aabbc"),
    "rot": ("abc", "bca", "bc"),
    "del": ("abaca", "bc", "baca"),
    "pal": ("abc", "abccba", "abcba"),
    "odd": ("abcde", "ace", "bd"),
    "swap": ("abcde", "badce", "bacde"),
}


def test_there_are_eleven_tasks_and_each_is_worked_by_hand():
    assert list(TASKS) == list(BY_HAND) and len(TASKS) == 11


@pytest.mark.parametrize("task", BY_HAND)
def test_answers_by_hand(task):
    text, expert, novice = BY_HAND[task]
    assert (TASKS[task].expert(text), TASKS[task].novice(text)) == (expert, novice)


@pytest.mark.parametrize(
    ("task", "text", "expert"),
    [
        ("swap", "abcd", "badc"),
        ("swap", "abc", "bac"),
        ("odd", "abcd", "ac"),
        ("sort", "bab", "abb"),
    ],
)
def test_even_and_odd_lengths_and_repeats(task, text, expert):
    assert TASKS[task].expert(text) == expert


@pytest.mark.parametrize("task", TASKS)
@pytest.mark.parametrize("evaluation", [True, False])
def test_drawn_questions_have_two_different_answers_on_their_side_of_the_split(task, evaluation):
    rng = random.Random(0)
    for _ in range(200):
        question = draw_question(rng, task, evaluation=evaluation)
        assert question.expert and question.novice and question.expert != question.novice
        assert 3 <= len(question.text) <= 6 and set(question.text) <= set(ALPHABET)
        assert is_eval_string(question.text) == evaluation
        assert question.expert == TASKS[task].expert(question.text)
        assert question.novice == TASKS[task].novice(question.text)
        assert question.prompt == f"{task} {question.text}"


def test_a_tenth_of_all_strings_is_for_evaluation_for_good():
    """A fixed function of the string: CRC-32 of "abc" is 0x352441C2 = 891568578, so not."""
    strings = [a + b + c for a in ALPHABET for b in ALPHABET for c in ALPHABET]
    share = sum(map(is_eval_string, strings)) / len(strings)
    assert share == pytest.approx(0.1, abs=0.02)
    assert not is_eval_string("abc")


def test_questions_are_distinct_reproducible_and_in_rotation():
    questions = draw_questions(5, 220, evaluation=False)
    assert len({q.prompt for q in questions}) == 220
    assert [q.task for q in questions] == [*TASKS] * 20
    assert questions == draw_questions(5, 220, evaluation=False)
    assert questions != draw_questions(6, 220, evaluation=False)


# -- shipped data --------------------------------------------------------------------------------


def test_shipped_data_is_what_write_data_writes(lab_ladder, tmp_path):
    write_data(tmp_path)
    for name in ("prompts.jsonl", "eval.jsonl"):
        assert (tmp_path / name).read_bytes() == (lab_ladder / name).read_bytes(), name


def test_no_evaluation_string_occurs_in_the_prompts(lab_ladder):
    prompts = read_jsonl(lab_ladder / "prompts.jsonl")
    items = read_jsonl(lab_ladder / "eval.jsonl")
    assert (len(prompts), len(items)) == (5000, 1100)
    asked = {row["prompt"].split(" ")[1] for row in prompts}
    evaluated = {row["prompt"].split(" ")[1] for row in items}
    assert not asked & evaluated
    assert all(map(is_eval_string, evaluated)) and not any(map(is_eval_string, asked))


def test_shipped_items_are_balanced_and_right(lab_ladder):
    items = read_jsonl(lab_ladder / "eval.jsonl")
    for task in TASKS:
        own = [row for row in items if row["task"] == task]
        assert len(own) == 100
        for row in own:
            assert row["prompt"].startswith(f"{task} ")
            assert row["answer"] == TASKS[task].expert(row["prompt"].split(" ")[1])


# -- tokenizer -----------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def tokenizer():
    return build_tokenizer()


@given(st.text("abcdefghijklmnopqrstuvwxyz ", max_size=20))
def test_every_lower_case_text_survives_the_tokenizer(tokenizer, text):
    (ids,) = answer_ids(tokenizer, [text], [False])
    assert tokenizer.decode(ids, skip_special_tokens=True) == text
    assert tokenizer.unk_token_id not in ids


def test_a_task_word_is_one_id_and_a_letter_one_id(tokenizer):
    (ids,) = answer_ids(tokenizer, ["rev abc"], [True])
    assert tokenizer.convert_ids_to_tokens(ids) == ["rev ", "a", "b", "c", "<|end|>"]


def test_rendered_prompt_by_hand(tokenizer):
    turns = [
        {"role": "user", "content": "rev ab"},
        {"role": "assistant", "content": "ba"},
        {"role": "user", "content": "dup c"},
    ]
    (ids,) = prompt_ids(tokenizer, [turns])
    assert tokenizer.convert_ids_to_tokens(ids) == [
        "<|user|>", "rev ", "a", "b", "<|assistant|>", "b", "a", "<|end|>",
        "<|user|>", "dup ", "c", "<|assistant|>",
    ]  # fmt: skip


def test_pretraining_ids_equal_those_of_template_and_chat(tokenizer):
    """`_batches` builds ids by hand; generation and evaluation render them: they must agree."""
    rung = replace(LADDER[0], batch_size=16)
    vocabulary = {i: piece for piece, i in tokenizer.get_vocab().items()}
    batches = _batches(rung, tokenizer)
    rows = [row for _ in range(20) for row in next(batches)]
    assert {vocabulary[prompt[1]].strip() for prompt, _ in rows} == set(TASKS)
    for prompt, answer in rows:
        question = "".join(vocabulary[i] for i in prompt[1:-1])
        text = "".join(vocabulary[i] for i in answer[:-1])
        rendered = prompt_ids(tokenizer, [[{"role": "user", "content": question}]])
        assert rendered == [prompt]
        assert answer_ids(tokenizer, [text], [True]) == [answer]


def test_pretraining_text_has_the_stated_share_of_expert_answers_and_no_evaluation_string(
    tokenizer,
):
    """Share 0.25 of 8,000 rows: standard error 0.005."""
    rung = replace(LADDER[0], batch_size=500)
    vocabulary = {i: piece for piece, i in tokenizer.get_vocab().items()}
    batches = _batches(rung, tokenizer)
    experts = 0
    for _ in range(16):
        for prompt, answer in next(batches):
            task = TASKS[vocabulary[prompt[1]].strip()]
            text = "".join(vocabulary[i] for i in prompt[2:-1])
            given = "".join(vocabulary[i] for i in answer[:-1])
            assert not is_eval_string(text)
            assert given in (task.expert(text), task.novice(text))
            experts += given == task.expert(text)
    assert experts / 8000 == pytest.approx(rung.expert_share, abs=0.02)


def test_a_system_turn_is_refused_by_the_lab_template(tokenizer):
    with pytest.raises(Exception, match="the lab knows only user and assistant turns"):
        prompt_ids(tokenizer, [[{"role": "system", "content": "be brief"}]])


# -- shipped models ------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def manifest(lab_ladder):
    return json.loads((lab_ladder / "manifest.json").read_text())


@pytest.mark.parametrize("name", ["xs", "s", "m"])
def test_shipped_weights_have_the_stated_hash_and_size(lab_ladder, manifest, name, loaded):
    entry = manifest["models"][name]
    assert file_digest(lab_ladder / name / "model.safetensors") == entry["sha256"]
    model, _ = loaded(lab_ladder / name)
    assert sum(p.numel() for p in model.parameters()) == entry["parameters"]


@pytest.mark.slow
@pytest.mark.parametrize("name", ["xs", "s", "m"])
def test_shipped_model_scores_what_the_manifest_says(lab_ladder, manifest, name, loaded):
    measured = measure(*loaded(lab_ladder / name))
    for key, value in measured.items():
        assert value == pytest.approx(manifest["models"][name][key], abs=1e-3), key


def test_manifest_is_in_order_and_of_the_ladder_in_the_code(manifest):
    assert manifest["ordered"] is True and manifest["margin"] == MARGIN
    assert list(manifest["models"]) == [rung.name for rung in LADDER]
    for rung in LADDER:
        entry = manifest["models"][rung.name]
        assert {key: entry[key] for key in vars(rung)} == vars(rung)
    accuracies = [entry["expected_accuracy"] for entry in manifest["models"].values()]
    assert is_ordered(accuracies)


def test_every_shipped_model_is_still_weak(manifest):
    """Delta learning is about weak teachers and a student with room to grow."""
    assert all(entry["expected_accuracy"] < 0.5 for entry in manifest["models"].values())


@pytest.mark.parametrize("name", ["xs", "s", "m"])
def test_shipped_tokenizer_is_the_one_in_the_code(lab_ladder, tokenizer, name, loaded):
    _, shipped = loaded(lab_ladder / name)
    assert shipped.get_vocab() == tokenizer.get_vocab()
    assert shipped.chat_template == tokenizer.chat_template
    assert (shipped.eos_token_id, shipped.pad_token_id) == (
        tokenizer.eos_token_id,
        tokenizer.pad_token_id,
    )
    text = "rev abc <|end|>"
    assert shipped(text)["input_ids"] == tokenizer(text)["input_ids"]


def test_ladder_is_small_and_holds_nothing_that_runs(lab_ladder):
    files = [path for path in lab_ladder.rglob("*") if path.is_file()]
    assert sum(path.stat().st_size for path in files) < 2_000_000
    assert {path.suffix for path in files} == {".json", ".jsonl", ".jinja", ".safetensors"}


# -- order and comparison ------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("accuracies", "ordered"),
    [
        ([0.1, 0.2, 0.3], True),
        ([0.1, 0.15625, 0.21875], True),
        ([0.25, 0.3125, 0.34375], False),  # the last step is 1/32, below 0.05
        ([0.3, 0.2, 0.4], False),
        ([0.1, 0.1], False),
        ([0.1], True),
    ],
)
def test_is_ordered(accuracies, ordered):
    assert is_ordered(accuracies) is ordered


def test_margin_is_inclusive():
    assert is_ordered([0.0, MARGIN])
    assert not is_ordered([0.0, MARGIN - 1e-7])


def test_comparison_says_what_differs(manifest):
    text = compare_with_shipped(manifest)
    assert text.count("identical") == 3 and "in order" in text and "rounding" not in text
    changed = json.loads(json.dumps(manifest))
    changed["models"]["s"] |= {"sha256": "0", "expected_accuracy": 0.01}
    changed |= {"ordered": False, "torch": "0.1"}
    text = compare_with_shipped(changed)
    assert text.count("identical") == 2 and text.count("different") >= 1
    assert "NOT in order" in text and "rounding" in text


# -- pretraining ---------------------------------------------------------------------------------


def test_schedule_by_hand():
    """Warm-up over 50 steps times a cosine from 1 to 0.05: at step 0, 1/50; in the middle 0.525."""
    assert _schedule(0, 1000) == pytest.approx(1 / 50)
    assert _schedule(500, 1000) == pytest.approx(0.525)
    assert _schedule(1000, 1000) == pytest.approx(0.05)
    assert max(_schedule(step, 1000) for step in range(1000)) <= 1


TINY = Rung("tiny", 0.5, width=16, layers=1, steps=6, lr=5e-3, seed=4, batch_size=8)


@pytest.fixture(scope="module")
def runs(tmp_path_factory) -> list[tuple[Path, dict]]:
    """The same very short pretraining twice, and once from another seed."""
    threads = torch.get_num_threads()
    out = tmp_path_factory.mktemp("pretrain")
    try:
        return [
            (out / str(i), pretrain(rung, out / str(i)))
            for i, rung in enumerate([TINY, TINY, replace(TINY, seed=5)])
        ]
    finally:
        torch.set_num_threads(threads)  # pretrain uses a process of its own, with one thread


def test_pretraining_twice_gives_the_same_bytes(runs):
    (one, first), (two, second), (_, other) = runs
    assert first["sha256"] == second["sha256"] == file_digest(one / "model.safetensors")
    assert other["sha256"] != first["sha256"]
    same = {key: value for key, value in first.items() if key != "seconds"}
    assert same == {key: value for key, value in second.items() if key != "seconds"}
    names = sorted(p.name for p in one.iterdir())
    assert names == sorted(p.name for p in two.iterdir())


def test_pretrained_directory_is_an_ordinary_model_with_the_stated_scores(runs, loaded):
    directory, entry = runs[0]
    files = locate(str(directory))
    model, tokenizer = loaded(files.directory)
    assert model.config.hidden_size == 16 and model.config.num_hidden_layers == 1
    measured = measure(model, tokenizer)
    assert measured["expected_accuracy"] == pytest.approx(entry["expected_accuracy"], abs=1e-3)
    assert {key: entry[key] for key in vars(TINY)} == vars(TINY)


def test_pretraining_learns(tmp_path, loaded):
    """A few hundred steps of a tiny model give the answers far more probability than chance."""
    threads = torch.get_num_threads()
    try:
        pretrain(replace(TINY, steps=60, width=32), tmp_path / "some")
    finally:
        torch.set_num_threads(threads)
    model, tokenizer = loaded(tmp_path / "some")
    rows = next(_batches(replace(TINY, seed=99, batch_size=200), tokenizer))
    with torch.no_grad():
        loss = -padded_logprobs(model, collate(rows)).mean().item()
    assert loss < math.log(len(tokenizer)) - 1
