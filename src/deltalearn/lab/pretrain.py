"""Pretraining of the lab's ladder on text of mixed quality: weak, less weak, and the student.

Constructed: the tasks, the novice's mistakes, and each model's share of expert answers in its
training text. Learnt: everything else, with ordinary next-token training of ordinary Llama models
whose sizes and training lengths differ. No model sees an evaluation string.
"""

from __future__ import annotations

import json
import math
import random
import time
from collections.abc import Iterator, Sequence
from concurrent.futures import ProcessPoolExecutor
from dataclasses import asdict, dataclass
from itertools import pairwise
from multiprocessing import get_context
from pathlib import Path
from typing import Any

import torch
from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerBase
from transformers.utils import logging as transformers_logging

from deltalearn.lab.tasks import TASKS, draw_question, draw_questions
from deltalearn.lab.tokenizer import build_tokenizer
from deltalearn.lm.chat import answer_ids, prompt_ids
from deltalearn.lm.logprobs import collate, padded_logprobs
from deltalearn.lm.scoring import score_answers
from deltalearn.util.files import file_digest, write_json, write_jsonl

POOL_BATCHES = 16  # batches drawn together and sorted by length, so that little is padding
WARMUP_STEPS = 50
PROMPTS, PROMPTS_SEED = 5000, 777
EVAL_ITEMS, EVAL_SEED = 1100, 12345
SHIPPED = Path(__file__).parent / "ladder"
MARGIN = 0.05  # expected accuracy by which each rung must beat the one below


@dataclass(frozen=True)
class Rung:
    """One model of the ladder. expert_share: share of expert answers in its training text."""

    name: str
    expert_share: float
    width: int
    layers: int
    steps: int
    lr: float
    seed: int
    batch_size: int = 128


LADDER = (
    Rung("xs", expert_share=0.25, width=48, layers=2, steps=800, lr=5e-3, seed=1),
    Rung("s", expert_share=0.45, width=64, layers=2, steps=1000, lr=4e-3, seed=2),
    Rung("m", expert_share=0.55, width=64, layers=2, steps=2200, lr=5e-3, seed=3),
)


def pretrain_ladder(
    out: Path, *, rungs: Sequence[Rung] = LADDER, workers: int = 2, device: str = "cpu"
) -> dict[str, Any]:
    """Train every model of the ladder; write prompts, evaluation items and manifest.json too.

    Each model trains in a process of one thread, so that the result does not depend on the number
    of cores.

    Args:
        out: Folder; each model goes to `out`/<name>.
        rungs: Models, weakest first.
        workers: Processes that train at the same time.
        device: Where they train, a torch device name.

    Returns:
        The manifest. Its `ordered` tells whether each model beats the one below by at least MARGIN:
        tiny models are sensitive to their seed, so this is checked, not assumed.
    """
    write_data(out)
    context = get_context("spawn")
    longest_first = sorted(rungs, key=lambda rung: -rung.steps * rung.width)
    with ProcessPoolExecutor(workers, mp_context=context) as pool:
        jobs = {
            rung.name: pool.submit(pretrain, rung, out / rung.name, device)
            for rung in longest_first
        }
        results = {rung.name: jobs[rung.name].result() for rung in rungs}
    manifest = {
        "made_by": "deltalearn lab pretrain",
        "torch": torch.__version__,
        "margin": MARGIN,
        "ordered": is_ordered([results[rung.name]["expected_accuracy"] for rung in rungs]),
        "models": results,
    }
    write_json(out / "manifest.json", manifest)
    return manifest


def is_ordered(accuracies: list[float], margin: float = MARGIN) -> bool:
    """True if each accuracy exceeds the one before it by at least `margin`."""
    return all(b - a >= margin for a, b in pairwise(accuracies))


def write_data(out: Path) -> None:
    """Write the lab's prompts (training side) and evaluation items (evaluation side) as JSONL."""
    prompts = draw_questions(PROMPTS_SEED, PROMPTS, evaluation=False)
    write_jsonl(out / "prompts.jsonl", ({"id": q.prompt, "prompt": q.prompt} for q in prompts))
    items = draw_questions(EVAL_SEED, EVAL_ITEMS, evaluation=True)
    write_jsonl(
        out / "eval.jsonl",
        ({"id": q.prompt, "task": q.task, "prompt": q.prompt, "answer": q.expert} for q in items),
    )


def pretrain(rung: Rung, out: Path, device: str = "cpu") -> dict[str, Any]:
    """Train one rung, save it as a Hugging Face directory and return its manifest entry.

    Args:
        rung: What to train.
        out: The directory.
        device: Where it trains, a torch device name.

    Returns:
        The rung, its size, its scores and the digest of its weights.
    """
    torch.set_num_threads(1)
    transformers_logging.disable_progress_bar()
    torch.manual_seed(rung.seed)
    tokenizer = build_tokenizer()
    model = _new_model(rung, tokenizer).to(device)
    optimizer = torch.optim.AdamW(
        model.parameters(), lr=rung.lr, betas=(0.9, 0.98), weight_decay=0.01, fused=True
    )
    batches = _batches(rung, tokenizer)
    start = time.monotonic()
    for step in range(rung.steps):
        for group in optimizer.param_groups:
            group["lr"] = rung.lr * _schedule(step, rung.steps)
        loss = -padded_logprobs(model, collate(next(batches)).to(device)).mean()
        loss.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        optimizer.zero_grad()
    seconds = time.monotonic() - start
    model.half().save_pretrained(out)  # half the bytes; loaded and run in float32
    tokenizer.save_pretrained(out)
    return {
        **asdict(rung),
        "parameters": sum(p.numel() for p in model.parameters()),
        "seconds": round(seconds, 1),
        **measure(model.float().eval(), tokenizer),
        "sha256": file_digest(out / "model.safetensors"),
    }


def compare_with_shipped(manifest: dict[str, Any]) -> str:
    """A table of this ladder beside the one in the package, and whether it is in order."""
    shipped = json.loads((SHIPPED / "manifest.json").read_text())
    lines = [f"{'model':<6} {'expected accuracy':>18} {'shipped':>8}   weights"]
    for name, entry in manifest["models"].items():
        known = shipped["models"].get(name, {})
        same = "identical" if known.get("sha256") == entry["sha256"] else "different"
        lines.append(
            f"{name:<6} {entry['expected_accuracy']:>18.4f} "
            f"{known.get('expected_accuracy', math.nan):>8.4f}   {same}"
        )
    if manifest["ordered"]:
        lines.append(f"in order: every model beats the one before by at least {MARGIN}")
    else:
        lines.append(
            f"NOT in order: some model does not beat the one before by {MARGIN}. Tiny models are "
            "sensitive to their seed; train this ladder again with another one before using it."
        )
    if manifest["torch"] != shipped["torch"]:
        lines.append(
            f"(torch {manifest['torch']} here, {shipped['torch']} there: small differences in "
            "rounding grow over training, so weights and scores need not be equal)"
        )
    return "\n".join(lines)


def _new_model(rung: Rung, tokenizer: PreTrainedTokenizerBase) -> LlamaForCausalLM:
    config = LlamaConfig(
        vocab_size=len(tokenizer),
        hidden_size=rung.width,
        num_hidden_layers=rung.layers,
        num_attention_heads=4,
        intermediate_size=int(rung.width * 8 / 3) // 8 * 8,
        max_position_embeddings=tokenizer.model_max_length,
        tie_word_embeddings=True,
        pad_token_id=tokenizer.pad_token_id,
        eos_token_id=tokenizer.eos_token_id,
        bos_token_id=None,
    )
    return LlamaForCausalLM(config)


def _schedule(step: int, steps: int) -> float:
    warm = min(1.0, (step + 1) / WARMUP_STEPS)
    return warm * (0.05 + 0.95 * 0.5 * (1 + math.cos(math.pi * step / steps)))


def _batches(
    rung: Rung, tokenizer: PreTrainedTokenizerBase
) -> Iterator[list[tuple[list[int], list[int]]]]:
    """Endless batches of (prompt ids, answer ids) of similar length, in random order."""
    rng = random.Random(rung.seed)
    ids = tokenizer.get_vocab()
    user, assistant = ids["<|user|>"], ids["<|assistant|>"]
    names = list(TASKS)
    while True:
        pool = []
        for _ in range(rung.batch_size * POOL_BATCHES):
            question = draw_question(rng, rng.choice(names), evaluation=False)
            expert = rng.random() < rung.expert_share
            answer = question.expert if expert else question.novice
            # The chat template by hand (a test compares): 500,000 renderings would dominate.
            prompt = [user, ids[f"{question.task} "], *map(ids.get, question.text), assistant]
            pool.append((prompt, [*map(ids.get, answer), tokenizer.eos_token_id]))
        pool.sort(key=lambda row: len(row[0]) + len(row[1]))
        size = rung.batch_size
        batches = [pool[i : i + size] for i in range(0, len(pool), size)]
        rng.shuffle(batches)
        yield from batches


def measure(model: LlamaForCausalLM, tokenizer: PreTrainedTokenizerBase) -> dict[str, float]:
    """Mean probability of the expert and of the novice answer on the evaluation items."""
    questions = draw_questions(EVAL_SEED, EVAL_ITEMS, evaluation=True)
    prompts = prompt_ids(tokenizer, [[{"role": "user", "content": q.prompt}] for q in questions])
    result = {}
    for name, side in (("expected_accuracy", "expert"), ("novice_probability", "novice")):
        answers = [getattr(q, side) for q in questions]
        rows = list(
            zip(prompts, answer_ids(tokenizer, answers, [True] * len(answers)), strict=True)
        )
        total = sum(math.exp(logprob) for _, logprob in score_answers(model, rows))
        result[name] = round(total / len(rows), 4)
    return result
