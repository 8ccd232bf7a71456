"""Protects greedy answers of pretrained models: ours, transformers' and vLLM's are one.

Where two part, the two tokens are a tie to rounding in plain transformers, and nothing is said of
what comes after.
"""

from __future__ import annotations

import os
from pathlib import Path

import pytest
import torch
from helpers.real_models import files_of
from transformers import AutoModelForCausalLM

from deltalearn.generate.engines.hf import TransformersEngine
from deltalearn.generate.engines.vllm_offline import VllmEngine, VllmOptions
from deltalearn.generate.stage import Window
from deltalearn.lm.chat import prompt_ids
from deltalearn.lm.load import Placement, end_ids_of_files, load_tokenizer
from deltalearn.lm.locate import locate
from deltalearn.records import Prompt, Request, Sampling
from deltalearn.util.files import digest

pytestmark = pytest.mark.slow
NAMES = ("smollm2", "qwen", "gemma")
MADE = Path(__file__).parents[2] / ".venv-vllm" / "bin" / "python"
TOKENS = 16
GREEDY = Sampling(0.0, 1.0, TOKENS)
QUESTIONS = [
    "What is the capital of France?",
    "Write a Python function that adds two numbers.",
    "Say hello in German and in Japanese.",
]
TIE = {"float32": 2e-3, "bfloat16": 0.26}  # in logits: two steps of bfloat16 at 16


@pytest.fixture(scope="module", params=NAMES)
def model_files(request, tmp_path_factory):
    files = files_of(request.param)
    if request.param != "gemma":
        return files
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("XDG_CACHE_HOME", str(tmp_path_factory.mktemp("cache")))
        return locate(str(files.directory), None, "raw")


@pytest.fixture(scope="module")
def prompts(model_files) -> list[list[int]]:
    tokenizer = load_tokenizer(model_files)
    return prompt_ids(tokenizer, [request(text).messages for text in QUESTIONS])


def request(text: str) -> Request:
    turns = ({"role": "user", "content": text},)
    return Request(digest(text), Prompt(text, turns), 0, turns)


def answers(engine) -> list[list[int]]:
    asked = [request(text) for text in QUESTIONS]
    window = Window(asked, frozenset(r.key for r in asked))
    try:
        groups = list(engine.answers(iter([window]), lambda: False))
    finally:
        engine.close()
    found = {r.key: r for group in groups for r in group}
    return [list(found[digest(text)].token_ids) for text in QUESTIONS]


@torch.no_grad()
def plain(model, prompts: list[list[int]], ends: list[int]) -> list[list[int]]:
    """`generate` of transformers, one prompt at a time, without the end."""
    found = []
    for ids in prompts:
        whole = model.generate(
            torch.tensor([ids]), do_sample=False, max_new_tokens=TOKENS, eos_token_id=ends
        )[0, len(ids) :].tolist()
        found.append(whole[:-1] if whole[-1] in ends else whole)
    return found


@torch.no_grad()
def assert_equal_but_for_ties(model, prompts, some, others, tie: float) -> None:
    assert any(len(answer) > 3 for answer in some)
    for prompt, a, b in zip(prompts, some, others, strict=True):
        at = next((i for i, (x, y) in enumerate(zip(a, b, strict=False)) if x != y), None)
        if at is None:
            continue
        logits = model(input_ids=torch.tensor([prompt + a[:at]])).logits[0, -1].float()
        gap = (logits[a[at]] - logits[b[at]]).abs().item()
        assert gap < tie, f"token {at}: {a} and {b} part, {gap} apart"


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_ours_are_those_of_transformers(model_files, prompts, dtype):
    model = AutoModelForCausalLM.from_pretrained(model_files.directory, dtype=getattr(torch, dtype))
    ends = sorted(end_ids_of_files(model_files, load_tokenizer(model_files)))
    theirs = plain(model.eval(), prompts, ends)
    ours = answers(TransformersEngine(model_files, Placement("cpu", dtype), GREEDY, 4096))
    assert_equal_but_for_ties(model, prompts, ours, theirs, TIE[dtype])


def test_ours_are_those_of_vllm(model_files, prompts, monkeypatch):
    python = Path(os.environ.get("DELTALEARN_VLLM_PYTHON") or MADE)
    if not python.exists():
        pytest.skip(f"no Python with vLLM at {python}; `make .venv-vllm/.installed` makes one")
    monkeypatch.setenv("VLLM_CPU_KVCACHE_SPACE", "1")
    options = {"dtype": "float32", "enforce_eager": True, "max_model_len": 256, "max_num_seqs": 4}
    theirs = answers(VllmEngine(model_files, GREEDY, VllmOptions(str(python), options)))
    ours = answers(TransformersEngine(model_files, Placement("cpu", "float32"), GREEDY, 4096))
    model = AutoModelForCausalLM.from_pretrained(model_files.directory, dtype=torch.float32)
    assert_equal_but_for_ties(model, prompts, ours, theirs, TIE["float32"])
