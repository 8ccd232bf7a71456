"""Protects the pipeline on real text: GSM8K questions, ordinary BPE tokenizers, long prompts.

Three tiny models are trained on the spot; no claim about quality, only that real text goes through
every stage unharmed and that its scores are what a slow computation gives.
"""

from __future__ import annotations

import json
from pathlib import Path

import pyarrow.parquet as pq
import pytest
import torch
from helpers.data import DATA
from helpers.results import item_rows

from deltalearn.lm.load import load_model, load_tokenizer, place
from deltalearn.lm.locate import locate
from deltalearn.pipeline.run import run_recipe
from deltalearn.pipeline.run_options import RunOptions
from deltalearn.recipe import load_recipe

GSM8K = DATA / "gsm8k"

pytestmark = [pytest.mark.slow, pytest.mark.data("gsm8k")]


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    from gsm8k.tiny_models import train_all

    folder = tmp_path_factory.mktemp("gsm8k")
    models = train_all(GSM8K / "train.jsonl", folder / "models")
    loaded = load_recipe(
        Path(__file__).with_name("gsm8k") / "recipe.yaml",
        [
            f"student.path={models['student']}",
            f"models.larger.path={models['larger']}",
            f"models.smaller.path={models['smaller']}",
            f"prompts.source={GSM8K / 'train.jsonl'}",
            f"evaluate.questions.gsm8k_solutions.source={GSM8K / 'test.jsonl'}",
        ],
    )
    lines: list[str] = []
    directory = run_recipe(loaded, RunOptions(out=folder / "run"), say=lines.append)
    return directory.path, models, lines


def test_every_stage_leaves_its_artefacts(run):
    path, _, lines = run
    manifest = json.loads((path / "run.json").read_text())
    stages = {name.split("/")[0] for name in manifest["stages"]}
    assert stages == {"prompts", "overlap", "generate", "pairs", "tune", "evaluate", "report"}
    assert all(record["state"] == "done" for record in manifest["stages"].values())
    assert len(lines) >= len(manifest["stages"])
    assert "<svg" in (path / "report.html").read_text()


def test_questions_arrive_unharmed(run):
    path, _, _ = run
    with (GSM8K / "train.jsonl").open(encoding="utf-8") as lines:
        questions = {json.loads(line)["question"] for line in lines}
    prompts = [json.loads(line) for line in (path / "prompts.jsonl").read_text().splitlines()]
    assert len(prompts) == 96
    assert all(p["messages"][0]["content"] in questions for p in prompts)
    assert max(len(p["messages"][0]["content"]) for p in prompts) > 400


def test_pairs_are_the_models_own_words(run):
    path, _, _ = run
    rows = pq.read_table(path / "pairs" / "larger_over_smaller.parquet").to_pylist()
    counts = json.loads((path / "run.json").read_text())["stages"]["pairs/larger_over_smaller"]
    assert len(rows) == counts["counts"]["pairs"] >= 64
    assert all(row["chosen"] != row["rejected"] for row in rows)
    cut = [row for row in rows if row["chosen_finish_reason"] == "length"]
    assert cut, "48 tokens must cut some answers"
    assert all(row["chosen_tokens"] == 48 for row in cut)


def test_scores_equal_a_slow_computation(run):
    path, models, _ = run
    files = locate(str(models["student"]))
    tokenizer, model = load_tokenizer(files), load_model(files, place("cpu", "float32")).double()
    table = item_rows(path / "scores" / "models" / "student", "gsm8k_solutions.loglik")
    with (GSM8K / "test.jsonl").open(encoding="utf-8") as lines:
        problems = [json.loads(line) for line, _ in zip(lines, range(3), strict=False)]
    for row, problem in zip(table, problems, strict=False):
        prompt = tokenizer.apply_chat_template(
            [{"role": "user", "content": problem["question"]}],
            add_generation_prompt=True,
            tokenize=False,
        )
        start = tokenizer(prompt, add_special_tokens=False)["input_ids"]
        answer = tokenizer(problem["answer"], add_special_tokens=False)["input_ids"]
        answer.append(tokenizer.eos_token_id)
        with torch.no_grad():
            logprobs = model(torch.tensor([start + answer])).logits[0].log_softmax(-1)
        tokens = [logprobs[len(start) + i - 1, token].item() for i, token in enumerate(answer)]
        size = len(problem["answer"].encode())  # nats a byte, whatever the tokenizer
        assert row["score"] == pytest.approx(sum(tokens) / size, rel=1e-4)


def test_summary_has_every_arm(run):
    path, _, _ = run
    summary = json.loads((path / "summary.json").read_text())
    assert set(summary["arms"]) == {"base", "delta", "sft"}
    assert set(summary["teachers"]) == {"larger", "smaller"}
    for arm in ("delta", "sft"):
        difference = summary["arms"][arm]["diff_vs_base"]["gsm8k_solutions.loglik"]
        assert difference["lo"] <= difference["mean"] <= difference["hi"]
        assert difference["mean"] != 0
    better = summary["teachers"]["larger"]["gsm8k_solutions.loglik"]["mean"]
    assert summary["arms"]["base"]["gsm8k_solutions.loglik"]["mean"] > better
    assert better > summary["teachers"]["smaller"]["gsm8k_solutions.loglik"]["mean"]
