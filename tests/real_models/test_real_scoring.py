"""Protects log-probabilities of pretrained models: shared = packed = padded = plain transformers.

In float32 to rounding; in bfloat16 no farther from float32 than transformers' own.
"""

from __future__ import annotations

import subprocess
import sys

import numpy as np
import pytest
import torch
from transformers import AutoModelForCausalLM

from deltalearn.errors import UserError
from deltalearn.lm.layout import Tree
from deltalearn.lm.load import Placement, load_model, load_tokenizer
from deltalearn.lm.rows import choose_rows
from deltalearn.lm.scoring import score_batch

pytestmark = [pytest.mark.slow, pytest.mark.timeout(1800)]
NAMES = ("smollm2", "qwen", "gemma")
ASKED = [  # a prompt, and two answers of other lengths
    ("What is the capital of France?", ("The capital of France is Paris.", "Lyon, I think.")),
    ("Add 17 and 25.", ("17 + 25 = 42", "It is 32, since 1 + 2 = 3 and 5 + 7 = 12.")),
    ("Übersetze: dog, 犬", ("Hund 🐕", "der Hund\n\n```\nwau\n```")),
]


@pytest.fixture(scope="module", params=NAMES)
def model_files(request, short):
    return short(request.param)


@pytest.fixture(scope="module")
def trees(model_files) -> list[Tree]:
    tokenizer = load_tokenizer(model_files, chat=False)

    def ids(text: str):
        return np.array(tokenizer(text, add_special_tokens=False)["input_ids"])

    return [Tree(ids(prompt + "\n"), tuple(map(ids, answers))) for prompt, answers in ASKED]


@torch.no_grad()
def plain(model_files, trees: list[Tree], dtype: torch.dtype) -> list[float]:
    """One answer at a time, all logits, by transformers alone."""
    model = AutoModelForCausalLM.from_pretrained(model_files.directory, dtype=dtype).eval()
    found = []
    for tree in trees:
        for answer in tree.answers:
            ids = torch.tensor(np.concatenate([tree.prompt, answer]))[None]
            logprobs = model(input_ids=ids).logits[0].float().log_softmax(-1)
            start = len(tree.prompt) - 1
            found.append(sum(logprobs[start + i, t].item() for i, t in enumerate(answer)))
    return found


def ours(model, trees: list[Tree], layout: str) -> list[float] | None:
    try:
        rows = choose_rows(model, trees, layout)
    except UserError as error:
        assert "window" in str(error), error  # the one reason why a real model may not
        return None
    assert rows.layout == layout
    return [s for sums in score_batch(model, trees, rows, "cpu") for s in sums]


def test_every_layout_is_plain_transformers(model_files, trees):
    exact = plain(model_files, trees, torch.float32)
    half = plain(model_files, trees, torch.bfloat16)
    own = max(abs(a - b) for a, b in zip(half, exact, strict=True))
    for dtype in ("float32", "bfloat16"):
        model = load_model(model_files, Placement("cpu", dtype))
        for layout in ("shared", "packed", "padded"):
            sums = ours(model, trees, layout)
            assert sums is not None, f"{layout} rows are refused"
            away = max(abs(a - b) for a, b in zip(sums, exact, strict=True))
            assert away < 2e-3 if dtype == "float32" else away < 2 * own + 0.1, (layout, dtype)


MEMORY = """
import sys, torch
from deltalearn.lm import head
from deltalearn.lm.forward import answer_logprobs, make_layout
from deltalearn.lm.layout import Tree
from deltalearn.lm.load import Placement, load_model
from deltalearn.lm.locate import locate
from deltalearn.lm.rows import choose_rows

def read(key):
    for line in open("/proc/self/status"):
        if line.startswith(key):
            return int(line.split()[1]) << 10

head.KEEP_BYTES = int(sys.argv[2])
model = load_model(locate(sys.argv[1]), Placement("cpu", "float32"))
draw = torch.Generator().manual_seed(0)
trees = [Tree(torch.randint(5, 1000, (8,), generator=draw).numpy(),
              (torch.randint(5, 1000, (64,), generator=draw).numpy(),)) for _ in range(8)]
rows = choose_rows(model, trees)
before = read("VmRSS")
open("/proc/self/clear_refs", "w").write("5")
with torch.no_grad():
    answer_logprobs(model, make_layout(trees, rows, "cpu"), rows)
scored = read("VmHWM") - before
before = read("VmRSS")
open("/proc/self/clear_refs", "w").write("5")
answer_logprobs(model, make_layout(trees, rows, "cpu"), rows).sum().backward()
ends = model.get_input_embeddings().weight, model.get_output_embeddings().weight
twice = ends[0].numel() if ends[0] is ends[1] else 0  # gradients of both uses, before their sum
print(scored, read("VmHWM") - before, 4 * (sum(p.numel() for p in model.parameters()) + twice))
"""
TOKENS = 512  # of answers, in one forward
MIB = 1 << 20
KEPT = 128 * MIB  # of probabilities; a gigabyte otherwise
OTHERS = 192 * MIB  # activations, and two chunks of logits


@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="reads /proc")
@pytest.mark.parametrize(
    ("name", "vocabulary"), [("smollm2", 49152), ("qwen", 151936), ("gemma", 262144)]
)
def test_memory_of_large_vocabularies_is_bounded(short, name, vocabulary):
    """512 answer tokens at a time, whose logits are 96, 297 and 512 MiB.

    Scoring needs chunks of them and no more; a step its gradients, and the probabilities that may
    be kept. docs/models.md has these bounds.
    """
    command = [sys.executable, "-c", MEMORY, str(short(name).directory), str(KEPT)]
    result = subprocess.run(command, capture_output=True, text=True, check=True)
    scored, step, gradients = map(int, result.stdout.split())
    kept = min(TOKENS * 4 * vocabulary, KEPT)
    assert scored < OTHERS, f"{scored / MIB:.0f} MiB"
    assert step < gradients + kept + OTHERS, f"{(step - gradients) / MIB:.0f} MiB and gradients"
