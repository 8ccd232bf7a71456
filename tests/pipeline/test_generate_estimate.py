"""Protects the dry run of generation: it tells what a run would ask, and asks nothing.

Requests, tokens and costs are worked out by hand; what the store has is not counted again; no
engine is made, no weights are loaded, no server is spoken to and nothing is written.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import yaml
from helpers.cli import small

from deltalearn.generate import estimate as plan
from deltalearn.lm import load
from deltalearn.pipeline import generate_estimate as generating
from deltalearn.pipeline.generator import Generator, make_generators
from deltalearn.prompts.read import read_prompts
from deltalearn.recipe import GENERATE, load_recipe
from deltalearn.records import Request, Response
from deltalearn.responses.store import ResponseStore

SERVER = {"url": "http://127.0.0.1:9/v1", "key_env": "NOT_SET"}  # nobody listens there
PRICES = {"prompt": 1000.0, "completion": 4000.0}


@pytest.fixture(autouse=True)
def no_engine(monkeypatch):
    """To make an engine, to load a model or to ask where to load one fails."""

    def fails(*_: Any, **__: Any) -> None:
        raise AssertionError("a dry run asks nothing")

    monkeypatch.setattr(Generator, "engine", fails)
    monkeypatch.setattr(load, "load_model", fails)
    monkeypatch.setattr(load, "place", fails)


class Planned:
    """A recipe of `generate` in a folder of its own, and what its dry run says."""

    def __init__(self, folder: Path, models: dict[str, Any], prompts: list[Any], **generate: Any):
        self.out = folder / "out"
        self.source = folder / "prompts.jsonl"
        self.source.write_text("".join(json.dumps(prompt) + "\n" for prompt in prompts))
        values = {
            "models": models, "prompts": {"source": str(self.source)}, "generate": generate,
        }  # fmt: skip
        file = folder / "recipe.yaml"
        file.write_text(yaml.safe_dump(values))
        self.loaded = load_recipe(file, command=GENERATE)

    def lines(self, **options: bool) -> list[str]:
        return generating.dry_run(self.loaded, self.out, **options).split("\n")

    def requests(self, model: int = 0) -> list[Request]:
        found = read_prompts(str(self.source)).prompts
        generators = list(make_generators(self.loaded.recipe, None, lambda: None).values())
        return list(generators[model].requests(found, len(found)))

    def store(self, *answered: tuple[Request, Response]) -> None:
        with ResponseStore(self.out / "responses.sqlite") as store:
            store.add(answered, engine="engine")


def answer(request: Request, tokens: int | None, ids: int = 0) -> tuple[Request, Response]:
    found = Response(request.key, "a", tuple(range(ids)), "stop", 5, completion_tokens=tokens)
    return request, found


def failure(request: Request) -> tuple[Request, Response]:
    return request, Response(request.key, "", (), "error", 0, "no", completion_tokens=0)


@pytest.fixture
def served(tmp_path) -> Planned:
    """Four prompts of 4,000 characters: of a thousand tokens each, as tokens are guessed."""
    prompts = [{"prompt": f"{i:4}" * 1000} for i in range(4)]
    models = {"a": {"path": "m", "server": SERVER | {"prices": PRICES}}}
    return Planned(tmp_path, models, prompts, max_tokens=500)


def test_nothing_answered_yet(served):
    assert served.lines() == [
        "prompts: read 4, prompts 4",
        "a: 4 requests, 0 answered already, 4 to ask",
        "  prompt tokens: about 4,000 (1,000 each, at 4 characters a token)",
        "  answer tokens: at most 2,000 (500 each)",
        # 4,000 tokens at 1,000 a million, and 2,000 at 4,000 a million.
        "  cost: about 12.00, at most 12.00",
    ]
    assert not served.out.exists(), "a dry run leaves nothing behind"


def test_what_is_there_is_not_asked_again_and_tells_how_long_answers_are(served):
    first, second, *_ = served.requests()
    served.store(answer(first, 100), answer(second, None, ids=150))
    before = (served.out / "responses.sqlite").read_bytes()
    assert served.lines()[1:] == [
        "a: 4 requests, 2 answered already, 2 to ask",
        "  prompt tokens: about 2,000 (1,000 each, at 4 characters a token)",
        "  answer tokens: about 250 (125 each, the mean of 2 answers in the store), at most 1,000",
        "  cost: about 3.00, at most 6.00",
    ]
    assert (served.out / "responses.sqlite").read_bytes() == before
    assert [path.name for path in served.out.iterdir()] == ["responses.sqlite"]


def test_everything_answered_costs_nothing(served):
    served.store(*(answer(r, 100) for r in served.requests()))
    lines = served.lines()
    assert lines[1] == "a: 4 requests, 4 answered already, 0 to ask"
    assert lines[-1] == "  cost: about 0.00, at most 0.00"


def test_errors_count_as_answered_but_not_as_short_answers(served):
    first, second, *_ = served.requests()
    served.store(failure(first), answer(second, 300))
    lines = served.lines()
    assert lines[1] == "a: 4 requests, 2 answered already, 2 to ask"
    assert "about 600 (300 each, the mean of 1 answers" in lines[3]
    before = (served.out / "responses.sqlite").read_bytes()
    lines = served.lines(retry_errors=True)
    assert lines[1] == "a: 4 requests, 1 answered already, 3 to ask, 1 of them again"
    assert "about 900 (300 each" in lines[3]
    assert (served.out / "responses.sqlite").read_bytes() == before, "errors are still there"


def test_answers_that_nobody_counted_are_not_taken_for_empty_ones(served):
    """Some servers give neither ids nor usage: the run would look free."""
    served.store(*(answer(r, None) for r in served.requests()[:2]))
    assert served.lines()[-2:] == [
        "  answer tokens: at most 1,000 (500 each)",
        "  cost: about 6.00, at most 6.00",
    ]


def test_longer_answers_of_another_limit_do_not_exceed_this_one(served, tmp_path):
    other = Planned(tmp_path, served.loaded.recipe.model_dump()["models"],
                    [{"prompt": "short"}], max_tokens=2000)  # fmt: skip
    other.store(answer(other.requests()[0], 1800))
    served.source.write_text("".join(f'{{"prompt": "{i:4}"}}\n' for i in range(3)))
    asked, prompts, answers, cost = served.lines()[1:]
    assert asked == "a: 3 requests, 0 answered already, 3 to ask"
    assert prompts == "  prompt tokens: about 3 (1 each, at 4 characters a token)"
    assert "about 1,500 (500 each, the mean of 1 answers" in answers
    assert answers.endswith("at most 1,500")
    assert cost == "  cost: about 6.00, at most 6.00", "three prompts of one token are 0.003"


def test_answers_of_other_models_are_not_this_ones(served):
    models = {"b": {"path": "other", "server": SERVER}}
    other = Planned(served.out.parent, models, [{"prompt": f"{i:4}" * 1000} for i in range(4)])
    other.store(*(answer(r, 9) for r in other.requests()))
    assert served.lines()[1] == "a: 4 requests, 0 answered already, 4 to ask"
    assert "at most" in served.lines()[3] and "mean" not in served.lines()[3]


def test_prompts_are_counted_as_a_run_counts_them_and_samples_multiply(tmp_path):
    prompts = [{"prompt": "x" * 8}, {"prompt": "x" * 8}, {"no": "prompt"}, {"prompt": "y" * 12}]
    models = {"a": {"path": "m", "server": SERVER}, "b": {"path": "n", "server": SERVER}}
    sampled = Planned(
        tmp_path, models, prompts, temperature=1.0, samples=3, system="s" * 4, max_tokens=10
    )
    *_, last = sampled.requests(1)
    sampled.store(answer(last, 4))
    assert sampled.lines() == [
        "prompts: read 4, duplicates 1, rejected 1, prompts 2",
        "a: 6 requests, 0 answered already, 6 to ask",
        # The system turn and the prompt: 12 and 16 characters.
        "  prompt tokens: about 21 (4 each, at 4 characters a token)",
        "  answer tokens: at most 60 (10 each)",
        "b: 6 requests, 1 answered already, 5 to ask",
        "  prompt tokens: about 18 (4 each, at 4 characters a token)",
        "  answer tokens: about 20 (4 each, the mean of 1 answers in the store), at most 50",
    ]


def test_a_local_models_prompts_are_counted_by_its_tokenizer(tiny_model, tiny_tokenizer, tmp_path):
    texts = ["a", "The quick brown fox", "Größe 🙂"]
    prompts = [{"prompt": text} for text in texts]
    local = Planned(tmp_path, {"tiny": {"path": str(tiny_model)}}, prompts, max_tokens=7)
    tokens = sum(len(tiny_tokenizer(f"<|user|>{text}<|assistant|>")["input_ids"]) for text in texts)
    assert local.lines()[1:] == [
        "tiny: 3 requests, 0 answered already, 3 to ask",
        f"  prompt tokens: about {tokens} ({tokens / 3:.0f} each, counted on 3 of them)",
        "  answer tokens: at most 21 (7 each)",
    ]


def test_many_prompts_are_judged_by_the_first(tiny_model, tiny_tokenizer, tmp_path, monkeypatch):
    monkeypatch.setattr(plan, "SAMPLE", 2)
    prompts = [{"prompt": "a"}, {"prompt": "b"}, {"prompt": "long " * 9}, {"prompt": "c"}]
    local = Planned(tmp_path, {"tiny": {"path": str(tiny_model)}}, prompts)
    each = len(tiny_tokenizer("<|user|>a<|assistant|>")["input_ids"])
    (line,) = (line for line in local.lines() if "prompt tokens" in line)
    assert line == f"  prompt tokens: about {4 * each} ({each} each, counted on 2 of them)"


def test_a_recipe_of_run_plans_its_generating_models_alone(tmp_path):
    """Prompts of the lab's tasks are a few characters; the student answers nothing here."""
    loaded = load_recipe(str(small(tmp_path)))
    lines = generating.dry_run(loaded, tmp_path / "out").split("\n")
    asked = [line for line in lines if "requests" in line]
    assert asked == [f"{m}: 15 requests, 0 answered already, 15 to ask" for m in ("s", "xs")]
    assert lines.count("  answer tokens: at most 240 (16 each)") == 2
    assert not (tmp_path / "out").exists()
