"""Protects models that are no ordinary directories with a template, through a whole run.

A GGUF student, a GGUF file inside a directory, and a base model under a chosen chat template.
"""

from __future__ import annotations

import json
import shutil
from contextlib import chdir
from pathlib import Path

import pytest
import torch
from helpers.cli import small
from helpers.gguf_files import gguf_of, tiny
from transformers import AutoModelForCausalLM, AutoTokenizer

from deltalearn.errors import UserError
from deltalearn.lm.load import load_model
from deltalearn.lm.locate import locate
from deltalearn.pipeline import missing
from deltalearn.pipeline.evaluate_recipe import evaluate_recipe
from deltalearn.pipeline.first_look import check_run
from deltalearn.pipeline.generate import run_generate
from deltalearn.pipeline.run import run_recipe
from deltalearn.pipeline.run_estimate import estimate_run
from deltalearn.pipeline.run_options import Rates, RunOptions
from deltalearn.pipeline.tune import run_tune
from deltalearn.pipeline.tune_preview import preview_pairs
from deltalearn.recipe import EVALUATE, GENERATE, TUNE, load_recipe

pytest.importorskip("gguf")
QUESTIONS = [{"prompt": f"question {i}?", "answer": f"answer {i}"} for i in range(4)]


@pytest.fixture(scope="module")
def folder(tmp_path_factory, tiny_tokenizer) -> Path:
    """Models and data of a run: a GGUF file, one in a directory, and a base model."""
    path = tmp_path_factory.mktemp("sources")
    for kind in ("llama", "qwen2"):
        tiny(kind, tiny_tokenizer, path / "originals" / kind)
    gguf_of(path / "originals" / "llama", path / "student.gguf", "Q8_0")
    (path / "larger").mkdir()
    gguf_of(path / "originals" / "qwen2", path / "larger" / "q8.gguf", "Q8_0")
    shutil.copytree(path / "originals" / "llama", path / "base")
    (path / "base" / "chat_template.jinja").unlink()
    (path / "questions.jsonl").write_text("".join(json.dumps(row) + "\n" for row in QUESTIONS))
    asked = [{"prompt": row["prompt"]} for row in QUESTIONS]
    (path / "asked.jsonl").write_text("".join(json.dumps(row) + "\n" for row in asked))
    pairs = [{"prompt": q["prompt"], "chosen": q["answer"], "rejected": "no"} for q in QUESTIONS]
    (path / "pairs.jsonl").write_text("".join(json.dumps(row) + "\n" for row in pairs))
    return path


@pytest.fixture(autouse=True)
def cache(folder, monkeypatch) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(folder / "xdg"))


def recipe(folder: Path, **changes) -> Path:
    values = {
        "student": {"path": "student.gguf"},
        "models": {
            "q": {"path": "larger", "file": "q8.gguf"},
            "b": {"path": "base", "chat_template": "raw"},
        },
        "prompts": {"source": "asked.jsonl"},
        "generate": {"max_tokens": 4},
        "pairs": {"truncated": "keep"},
        "arms": {"base": {}, "delta": {"chosen": "q", "rejected": "b"}},
        "tune": {"lr": 1e-3, "batch_size": 2, "steps": 2},
        "evaluate": {"questions": {"own": {"source": "questions.jsonl", "max_tokens": 4}}},
        **changes,
    }
    return small(folder, **values)


@pytest.mark.slow
def test_whole_run(folder):
    said: list[str] = []
    with chdir(folder):
        loaded = load_recipe(recipe(folder))
        assert "nothing stands in the way" in check_run(loaded, RunOptions(out=Path("run")))
        assert "missing here\n  nothing" in estimate_run(loaded, RunOptions(), Rates())
        run_recipe(loaded, RunOptions(out=Path("run")), say=said.append)
        assert [line for line in said if "chosen chat_template raw" in line] == [
            "b: conversations are rendered by the chosen chat_template raw"
        ]
        again = run_recipe(loaded, RunOptions(out=Path("run")), say=said.append)
        assert not again.done_now
    record = json.loads((folder / "run" / "run.json").read_text())
    assert record["models"]["student"]["path"] == "student.gguf"
    assert record["models"]["q"]["path"] == "larger/q8.gguf"
    final = folder / "run" / "arms" / "delta" / "seed-0" / "final"
    tuned = AutoModelForCausalLM.from_pretrained(final)
    source = AutoModelForCausalLM.from_pretrained(locate(str(folder / "student.gguf")).directory)
    kept, before = tuned.state_dict(), source.state_dict()
    assert kept.keys() == before.keys() and any(not kept[n].equal(before[n]) for n in kept)
    tokenizer = AutoTokenizer.from_pretrained(final)
    assert (
        tokenizer.apply_chat_template(
            [{"role": "user", "content": "fox"}], tokenize=False, add_generation_prompt=True
        )
        == "<|user|>fox<|assistant|>"
    )
    scores = json.loads((folder / "run" / "scores" / "models" / "b" / "results.json").read_text())
    assert scores["model"]["path"] == "base"


def test_base_model_is_refused_without_a_choice(folder):
    with chdir(folder):
        loaded = load_recipe(recipe(folder, models={"q": {"path": "base"}, "b": {"path": "base"}}))
        with pytest.raises(UserError, match=r"no chat template.*chat_template: chatml, raw"):
            check_run(loaded, RunOptions(out=Path("other")))


@pytest.mark.parametrize("lora", [None, {"r": 2}])
def test_tuning_a_gguf_student(folder, lora, cpu):
    options = {
        "student.path": "student.gguf", "pairs.source": "pairs.jsonl", "tune.steps": 2,
        "tune.batch_size": 2, "tune.lr": 1e-3, "device": "cpu", "dtype": "float32",
    }  # fmt: skip
    out = folder / f"tuned-{bool(lora)}"
    with chdir(folder):
        loaded = load_recipe(
            None, command=TUNE, options={**options, **({"tune.lora": lora} if lora else {})}
        )
        assert "because student.gguf has one" in preview_pairs(loaded)
        final = run_tune(loaded, out, say=lambda line: None)
        whole = load_model(locate(str(final)), cpu)
        if lora:  # an adapter of a GGUF file, which peft alone could not load
            adapter = locate(str(out / "adapter"))
            merged = load_model(adapter, cpu)
            for name, weight in whole.state_dict().items():
                torch.testing.assert_close(merged.state_dict()[name], weight)


def test_single_commands(folder):
    said: list[str] = []
    with chdir(folder):
        options = {
            "models.g": {"path": "student.gguf"},
            "prompts.source": "asked.jsonl",
            "generate.max_tokens": 4, "device": "cpu", "dtype": "float32",
        }  # fmt: skip
        assert not run_generate(load_recipe(None, command=GENERATE, options=options), Path("a"))
        scored = {
            "student.path": "base", "student.chat_template": "raw",
            "evaluate.benchmarks": ["own"], "device": "cpu", "dtype": "float32",
            "evaluate.questions": {"own": {"source": "questions.jsonl", "max_tokens": 4}},
        }  # fmt: skip
        loaded = load_recipe(None, command=EVALUATE, options=scored)
        results = evaluate_recipe(loaded, Path("e"), say=said.append)
    assert results["model"]["chat_template"] == "raw" and results["benchmarks"]
    assert "base: conversations are rendered by the chosen chat_template raw" in said


def test_what_is_missing_for_them(folder, monkeypatch):
    models = {
        "q": {"path": "owner/name", "file": "x.gguf"},
        "b": {"path": "nowhere.gguf", "chat_template": "absent.jinja"},
    }
    monkeypatch.setattr(missing, "find_spec", lambda name: None if name == "gguf" else True)
    with chdir(folder):
        found = missing.what_is_missing(load_recipe(recipe(folder, models=models)).recipe)
    for text in (
        "model q: owner/name/x.gguf is not on this disk; it is downloaded from the Hugging Face",
        "model b: nowhere.gguf is not on this disk; check the path",
        "chat_template of b: absent.jinja is not on this disk; check the path",
        "package gguf, for owner/name/x.gguf of model q: pip install -e '.[gguf]'",
    ):
        assert any(text in line for line in found), text


@pytest.mark.parametrize(
    ("model", "said"),
    [
        ({"path": "m.gguf", "file": "n.gguf"}, "leave file out"),
        ({"path": "m", "file": "n.bin"}, "file must be a .gguf file"),
        ({"path": "m", "file": "../n.gguf"}, "file must lie in"),
        ({"path": "m", "file": "/n.gguf"}, "file must lie in"),
        ({"path": "m", "server": {"url": "http://h/v1"}, "chat_template": "raw"}, "no effect"),
        ({"path": "m", "server": {"url": "http://h/v1"}, "file": "n.gguf"}, "no effect"),
    ],
)
def test_settings_that_cannot_be(folder, model, said):
    with pytest.raises(UserError, match=said):
        load_recipe(recipe(folder, models={"q": model, "b": {"path": "base"}}))


def test_choice_at_a_server_is_refused(folder):
    options = {
        "student.path": "m", "student.chat_template": "raw", "evaluate.benchmarks": ["gsm8k"],
        "evaluate.backend.kind": "openai", "evaluate.backend.url": "http://localhost:1/v1",
    }  # fmt: skip
    with pytest.raises(UserError, match=r"student\.chat_template has no effect at a server"):
        evaluate_recipe(load_recipe(None, command=EVALUATE, options=options), folder / "s")
