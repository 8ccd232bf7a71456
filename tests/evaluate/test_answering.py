"""Protects how an evaluated model is asked: greedily, by its own ends, and graded by its answer.

Nothing that a model ships for sampling may change a score; what a thinking model writes before its
answer is neither graded nor cut at the benchmark's stop strings; and what has no answer is counted.
"""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest
import torch

pytest.importorskip("lm_eval")

from helpers.memorised import CHATML, OPENED, memorise, tokenizer_with
from helpers.scored import score_files
from lm_eval.api.instance import Instance
from transformers import AutoModelForCausalLM, AutoTokenizer, GenerationConfig

from deltalearn.errors import UserError
from deltalearn.evaluate.harness.backends import BackendOptions, load
from deltalearn.evaluate.harness.wanted import wanted
from deltalearn.evaluate.reference.score import Asked
from deltalearn.evaluate.reference.scorers import SCORERS
from deltalearn.evaluate.reply import CONTROL, UNFINISHED, Reply, reply_notes
from deltalearn.formats.questions import Item
from deltalearn.lm.locate import locate
from deltalearn.lm.reasoning import Parts
from deltalearn.records import Sampling

Q = "the capital of France?"
SHIPPED = {
    "repetition_penalty": 1.9, "top_k": 3, "temperature": 0.3, "top_p": 0.5, "do_sample": True,
    "no_repeat_ngram_size": 2, "min_new_tokens": 9, "suppress_tokens": [1, 2, 3, 40, 50],
    "forced_eos_token_id": 5, "num_beams": 2, "min_p": 0.4, "bad_words_ids": [[60]],
}  # fmt: skip
ANSWERS = {
    "thinks": (("[THINK]", "[/THINK]"), (), "[THINK]is it\n\nLyon[/THINK]Paris\n\nand<|im_end|>"),
    "opened": ((), ("<think>", "</think>"), "the\n\nfox</think>Paris\n\nand<|im_end|>"),
    "cut": ((), ("<think>", "</think>"), "the fox says the fox says the fox says the fox says"),
    "stray": (("[CALL]",), (), "Paris[CALL]the fox<|im_end|>"),
}


@pytest.fixture(scope="module")
def place(tmp_path_factory):
    """`place(name)` -> the folder of a model that gives that answer, made once."""
    made: dict[str, Path] = {}

    def make(name: str) -> Path:
        if name not in made:
            special, plain, answer = ANSWERS[name]
            template = OPENED if name in ("opened", "cut") else CHATML
            tokenizer = tokenizer_with(special, plain, template)
            made[name] = memorise(tmp_path_factory.mktemp("m") / name, tokenizer, {Q: answer})
        return made[name]

    return make


def backend(folder: Path, **options):
    return load(
        BackendOptions(kind="hf", model=str(folder), device="cpu", dtype="float32", **options)
    )


def prompt_of(folder: Path) -> str:
    tokenizer = AutoTokenizer.from_pretrained(folder)
    turns = [{"role": "user", "content": Q}]
    return tokenizer.apply_chat_template(turns, add_generation_prompt=True, tokenize=False)


def asked(model, *prompts: str, **options) -> list[Reply]:
    how = {"until": [], "max_gen_toks": 24, "do_sample": False, **options}
    requests = [Instance("generate_until", {}, (p, {**how}), i) for i, p in enumerate(prompts)]
    return model.generate_until(requests, disable_tqdm=True)


def argmax(folder: Path, prompt: str, steps: int) -> str:
    """Greedy decoding as it is defined: a loop over the model's own logits."""
    model, tokenizer = (
        kind.from_pretrained(folder) for kind in (AutoModelForCausalLM, AutoTokenizer)
    )
    ids = tokenizer(prompt, add_special_tokens=False, return_tensors="pt").input_ids
    start = ids.shape[1]
    with torch.no_grad():
        for _ in range(steps):
            ids = torch.cat([ids, model(ids).logits[:, -1:].argmax(-1)], 1)
            if ids[0, -1] == tokenizer.eos_token_id:
                break
    return tokenizer.decode(ids[0, start:]).removesuffix(tokenizer.eos_token)


@pytest.fixture(scope="module")
def shipped(place, tmp_path_factory) -> Path:
    """A model that ships every sampling default that would change a greedy answer."""
    folder = shutil.copytree(place("thinks"), tmp_path_factory.mktemp("m") / "shipped")
    file = folder / "generation_config.json"
    file.write_text(json.dumps(json.loads(file.read_text()) | SHIPPED))
    assert GenerationConfig.from_pretrained(folder).repetition_penalty == 1.9
    return folder


@pytest.mark.parametrize("options", [{}, {"options": {"attn_implementation": "eager"}}])
def test_greedy_is_argmax_whatever_a_model_ships(shipped, options):
    """Loaded by us, and by lm_eval where its own arguments ask for that."""
    model = backend(shipped, **options)
    prompts = [f"the fox {i} says" for i in range(3)]
    found = asked(model, *prompts)
    for prompt, reply in zip(prompts, found, strict=True):
        written = (reply.reasoning + reply).removeprefix("[THINK]")  # known by its end alone
        assert written == argmax(shipped, prompt, 24).removeprefix("[THINK]")


def test_sampling_is_what_the_benchmark_says_and_repeats(shipped):
    """Temperature and top_p alone, a seed for each request, whatever stands beside it."""
    model = backend(shipped, batch_size=3)
    how = {"do_sample": True, "temperature": 1.5, "top_p": 1.0, "max_gen_toks": 6}
    together = asked(model, *(["the fox"] * 3), **how, seed=7)
    alone = asked(model, "the fox", **how, seed=7)
    other = asked(model, "the fox", **how, seed=8)
    assert set(together) == set(alone) and other != alone


@pytest.mark.parametrize(
    ("name", "reasoning"),
    [("thinks", "[THINK]is it\n\nLyon[/THINK]"), ("opened", "<think>the\n\nfox</think>")],
)
def test_stop_strings_end_the_answer_and_not_the_reasoning(place, name, reasoning):
    folder = place(name)
    (reply,) = asked(backend(folder), prompt_of(folder), until=["\n\n", "never"])
    assert (reply, reply.reasoning, reply.fault) == ("Paris", reasoning, None)
    (whole,) = asked(backend(folder), prompt_of(folder))
    assert whole == "Paris\n\nand"


def test_a_row_that_has_stopped_does_not_disturb_the_others(place):
    folder = place("thinks")
    prompts = ["the fox", prompt_of(folder), "the capital of"]
    model = backend(folder, batch_size=3)
    together = asked(model, *prompts, until=["\n\n", "a"])
    assert [asked(model, p, until=["\n\n", "a"])[0] for p in prompts] == together


@pytest.mark.parametrize(
    ("name", "fault", "kept"),
    [("cut", UNFINISHED, "<think>the fox"), ("stray", CONTROL, "Paris[CALL]")],
)
def test_what_has_no_answer_is_empty_and_counted(place, name, fault, kept):
    folder = place(name)
    (reply,) = asked(backend(folder), prompt_of(folder), max_gen_toks=12)
    assert (reply, reply.fault) == ("", fault) and reply.reasoning.startswith(kept)
    (note,) = reply_notes([reply.fault, None])
    assert note.startswith("1 replies") and "empty answers" in note


def test_a_stop_string_may_be_a_control_token():
    """GSM8K names <|im_end|>: an answer ends there though the model goes on."""
    parts = Parts("", "7<|im_end|>\nuser", "<|im_end|>")
    assert Reply.of(parts, ["<|im_end|>"]).kept() == ["7", "", None]
    assert Reply.of(parts, []).fault == CONTROL


def test_own_questions_are_graded_by_the_answer(place, cpu):
    """The reference is the answer: reasoning before it neither helps nor hurts."""
    messages = ({"role": "user", "content": Q},)
    right = {}
    for name in ANSWERS:
        items = [Item("i", "", messages, "Paris\n\nand")]
        how = Asked(("greedy_accuracy",), SCORERS["exact"], 24, 1000)
        (row,) = score_files(locate(str(place(name))), items, how, placement=cpu)
        right[name] = (row["greedy_accuracy"], row["greedy_answer"], row["fault"])
    assert right == {
        "thinks": (1.0, "Paris\n\nand", None), "opened": (1.0, "Paris\n\nand", None),
        "cut": (0.0, "", UNFINISHED), "stray": (0.0, "", CONTROL),
    }  # fmt: skip


@pytest.mark.parametrize(
    ("options", "sampling"),
    [
        ({"max_gen_toks": 5}, (0, 1, 5)),
        ({"max_new_tokens": 6, "do_sample": False, "temperature": 0.7, "top_k": 50}, (0, 1, 6)),
        ({"do_sample": True, "temperature": 0.8, "top_p": 0.95}, (0.8, 0.95, 9)),
        ({"temperature": 0.5, "num_beams": 1}, (0.5, 1, 9)),
        ({"do_sample": True}, (0, 1, 9)),
    ],
)
def test_what_a_benchmark_asks_for(options, sampling):
    assert wanted(options, 9).sampling == Sampling(*sampling)
    assert wanted({**options, "until": "x"}, 9).until == ("x",)


@pytest.mark.parametrize(
    "options", [{"num_beams": 4}, {"repetition_penalty": 1.2}, {"temperature": 1, "top_k": 40}]
)
def test_what_would_change_an_answer_and_is_not_here_is_refused(options):
    with pytest.raises(UserError, match=f"asks for {list(options)[-1]}="):
        wanted(options, 9)


def test_files_that_lack_weights_are_refused(place, tmp_path):
    """As everywhere: lm_eval by itself would draw them at random."""
    from safetensors.torch import load_file, save_file

    folder = shutil.copytree(place("thinks"), tmp_path / "torn")
    weights = load_file(folder / "model.safetensors")
    del weights["model.layers.1.mlp.down_proj.weight"]
    save_file(weights, folder / "model.safetensors", metadata={"format": "pt"})
    with pytest.raises(UserError, match=r"lack.*down_proj"):
        backend(folder)


def test_marks_of_reasoning_are_the_models_own(place):
    with pytest.raises(UserError, match="think_end_token has no effect"):
        backend(place("thinks"), options={"think_end_token": "x"})
