"""Protects one rendering of a model in a whole run: arguments of its template, and the day."""

from __future__ import annotations

import json
import shutil
import sqlite3
from contextlib import chdir
from pathlib import Path

import pyarrow.parquet as pq
import pytest
from helpers.cli import LADDER, small
from transformers import AutoTokenizer

import deltalearn.pipeline.manifest as manifest
from deltalearn.errors import UserError
from deltalearn.pipeline import evaluate as evaluation
from deltalearn.pipeline import generator
from deltalearn.pipeline.evaluate_recipe import evaluate_recipe
from deltalearn.pipeline.generate import run_generate
from deltalearn.pipeline.run import run_recipe
from deltalearn.pipeline.run_options import RunOptions
from deltalearn.pipeline.tune_preview import preview_pairs
from deltalearn.recipe import EVALUATE, GENERATE, TUNE, load_recipe

NOTHING = "no thoughts "  # in letters that the lab's models have
HYBRID = "{% if enable_thinking is defined and not enable_thinking %}" + NOTHING + "{% endif %}"
DAYS = "abcdefghijklmnopqrstuvwxyz"  # a letter for each, from the 26th on
DATED = "{{ '" + DAYS + "'[(strftime_now('%d') | int) % 26] }} "
QUESTIONS = {"lab": {"source": str(LADDER / "eval.jsonl"), "limit": 4, "max_tokens": 4}}


def models(folder: Path, before: str) -> None:
    """The lab's models, with something before every conversation."""
    for name in ("m", "s", "xs"):
        shutil.copytree(LADDER / name, folder / name)
        tokenizer = AutoTokenizer.from_pretrained(folder / name)
        tokenizer.chat_template = before + tokenizer.chat_template
        tokenizer.save_pretrained(folder / name)


def recipe(folder: Path, **changes) -> Path:
    return small(
        folder,
        **{
            "student": {"path": "./m"},
            "models": {name: {"path": f"./{name}"} for name in ("s", "xs")},
            "prompts": {"source": "prompts.jsonl", "limit": 6},
            "generate": {"max_tokens": 8},
            "pairs": {"truncated": "keep"},
            "evaluate": {"questions": QUESTIONS},
            **changes,
        },
    )


def run(folder: Path, *changes: str, until: str = "evaluate") -> list[str]:
    said: list[str] = []
    with chdir(folder):
        options = RunOptions(Path("run"), False, until)
        run_recipe(load_recipe("small.yaml", changes), options, say=said.append)
    return said


def on(monkeypatch, day: str) -> None:
    """Let it be another day, wherever one is asked for."""
    for module in (manifest, generator, evaluation):
        monkeypatch.setattr(module, "today", lambda: day)


def asked_tokens(store: Path) -> list[int]:
    with sqlite3.connect(store) as db:
        return sorted(n for (n,) in db.execute("select prompt_tokens from responses"))


def prompts_of_examples(folder: Path) -> set[str]:
    """Prompts of the pairs that were prepared for the students."""
    from deltalearn.tune.dataset import Examples

    tokenizer = AutoTokenizer.from_pretrained(folder / "m")
    (prepared,) = (folder / "run/examples").glob("s_over*")
    examples = Examples.open(prepared)
    return {tokenizer.decode(examples[i].prompt) for i in range(len(examples))}


def scored_prompts(folder: Path) -> set[str]:
    files = (folder / "run/scores").rglob("items/*.parquet")
    return {prompt for f in files for prompt in pq.read_table(f)["prompt"].to_pylist()}


@pytest.fixture(scope="module")
def hybrid(tmp_path_factory) -> Path:
    """A run whose models have an argument of their template, all the same one."""
    folder = tmp_path_factory.mktemp("hybrid")
    models(folder, HYBRID)
    recipe(folder, generate={"max_tokens": 8, "template": {"enable_thinking": False}})
    run(folder)
    return folder


class TestArguments:
    def test_a_model_is_asked_trained_and_scored_alike(self, hybrid):
        trained, scored = prompts_of_examples(hybrid), scored_prompts(hybrid)
        assert trained
        assert all(prompt.startswith(NOTHING) for prompt in trained | scored)
        results = hybrid / "run/scores/models/student/results.json"
        settings = json.loads(results.read_text())
        for entry in settings["benchmarks"].values():
            assert entry["template"] == {"enable_thinking": False}

    def test_pairs_say_how_their_prompts_are_rendered(self, hybrid):
        """So that they are tuned on elsewhere, by TRL too, as they were asked."""
        file = hybrid / "run/pairs/s_over_xs.parquet"
        rows = pq.read_table(file).to_pylist()
        assert {row["chat_template_kwargs"]["enable_thinking"] for row in rows} == {False}
        loaded = load_recipe(
            None, (), command=TUNE,
            options={"student.path": str(hybrid / "m"), "pairs.source": str(file)},
        )  # fmt: skip
        assert "'t':24 'h':12" in " ".join(preview_pairs(loaded).split())

    def test_a_models_own_win_over_those_of_all(self, tmp_path):
        models(tmp_path, HYBRID)
        recipe(
            tmp_path,
            student={"path": "./m", "template": {"enable_thinking": True}},
            generate={"max_tokens": 8, "template": {"enable_thinking": False}},
        )
        with chdir(tmp_path):
            loaded = load_recipe("small.yaml")
        assert loaded.recipe.student.template == {"enable_thinking": True}
        assert loaded.recipe.models["s"].template == {"enable_thinking": False}
        assert loaded.origins["models.s.template.enable_thinking"] == "generate.template"
        run(tmp_path, until="tune")
        assert not any(p.startswith(NOTHING) for p in prompts_of_examples(tmp_path))

    def test_other_arguments_are_another_question(self, hybrid, tmp_path):
        """Answers are kept by them, and so are scores."""
        shutil.copytree(hybrid, tmp_path / "again")
        with pytest.raises(UserError, match=r"student\.template"):
            run(tmp_path / "again", "student.template.enable_thinking=true")

    @pytest.mark.parametrize(
        "wrong",
        ["tune.template={enable_thinking: false}", "evaluate.chat_template_kwargs={a: 1}",
         "tune.enable_thinking=false", "evaluate.backend.chat_template_args={a: 1}"],
    )  # fmt: skip
    def test_elsewhere_they_are_shown_their_place(self, tmp_path, wrong):
        recipe(tmp_path)
        with chdir(tmp_path), pytest.raises(UserError, match=r"belong to the model.*student\.temp"):
            load_recipe("small.yaml", [wrong])

    def test_arguments_of_lm_eval_that_would_have_no_effect(self, tmp_path):
        recipe(tmp_path, evaluate={"benchmarks": ["gsm8k"]})
        wrong = "evaluate.backend.options={enable_thinking: false}"
        with chdir(tmp_path), pytest.raises(UserError, match=r"no effect.*student\.template"):
            load_recipe("small.yaml", [wrong])

    def test_a_template_without_a_place_for_answers_is_told_before_anybody_is_asked(self, tmp_path):
        models(tmp_path, "")
        tokenizer = AutoTokenizer.from_pretrained(tmp_path / "m")
        tokenizer.chat_template = tokenizer.chat_template.replace(
            "{% if add_generation_prompt %}{{ '<|assistant|>'",
            "{% if add_generation_prompt %}{{ '<|user|>'",
        )
        tokenizer.save_pretrained(tmp_path / "m")
        recipe(tmp_path)
        with pytest.raises(UserError, match="with an answer"):
            run(tmp_path)
        assert not (tmp_path / "run/responses.sqlite").exists()

    def test_from_python(self, hybrid, tmp_path):
        from deltalearn import api

        given = {"questions": QUESTIONS, "benchmarks": ["lab"], "say": lambda line: None}
        for out, template in (("a", {"enable_thinking": False}), ("b", None)):
            api.evaluate(hybrid / "xs", tmp_path / out, template=template, **given)
        a, b = (next((tmp_path / out / "items").glob("*.parquet")) for out in "ab")
        starts = [pq.read_table(f)["prompt"][0].as_py().startswith(NOTHING) for f in (a, b)]
        assert starts == [True, False]

    def test_on_the_command_line(self, hybrid, tmp_path, monkeypatch):
        from deltalearn import cli

        prompts = hybrid / "prompts.jsonl"
        for given, out in ((["--template", "enable_thinking=false"], "a"), ([], "b")):
            arguments = ["generate", "--model", f"s={hybrid / 's'}", "--prompts", str(prompts)]
            limits = ["--limit", "2", "--max-tokens", "4", "--device", "cpu"]
            to = ["--out", str(tmp_path / out)]
            monkeypatch.setattr("sys.argv", ["deltalearn", *arguments, *limits, *to, *given])
            with pytest.raises(SystemExit) as ended:
                cli.main()
            assert not ended.value.code
        a, b = (asked_tokens(tmp_path / out / "responses.sqlite") for out in "ab")
        assert all(x > y for x, y in zip(a, b, strict=True))


class TestDay:
    def test_a_run_that_lasts_past_midnight_goes_on_as_it_began(self, tmp_path, monkeypatch):
        models(tmp_path, DATED)
        recipe(tmp_path)
        on(monkeypatch, "2026-11-26")
        run(tmp_path, until="pairs")
        tokens = asked_tokens(tmp_path / "run/responses.sqlite")
        on(monkeypatch, "2026-11-27")
        said = run(tmp_path)
        assert not any(line.startswith("generate/") for line in said), "answers are found again"
        assert asked_tokens(tmp_path / "run/responses.sqlite") == tokens
        assert all(p.startswith("a <") for p in prompts_of_examples(tmp_path))
        assert all(p.startswith("a <") for p in scored_prompts(tmp_path))
        assert json.loads((tmp_path / "run/run.json").read_text())["day"] == "2026-11-26"
        on(monkeypatch, "2026-11-28")
        assert run(tmp_path) == []

    def test_a_day_that_is_given(self, tmp_path, monkeypatch):
        models(tmp_path, DATED)
        recipe(tmp_path)
        on(monkeypatch, "2026-11-26")
        run(tmp_path, "day=2020-02-29", until="tune")
        assert all(p.startswith("d <") for p in prompts_of_examples(tmp_path))
        with pytest.raises(UserError, match="day"):
            run(tmp_path, "day=2021-01-01", until="tune")
        with pytest.raises(UserError, match="expected a day"):
            run(tmp_path, "day=tomorrow", until="tune")

    def test_an_evaluation_keeps_its_own(self, tmp_path, monkeypatch):
        models(tmp_path, DATED)
        options = {"student.path": str(tmp_path / "xs"), "evaluate.questions": QUESTIONS}
        loaded = load_recipe(None, ["device=cpu"], command=EVALUATE, options=options)
        for day in ("2026-11-26", "2026-11-27"):
            on(monkeypatch, day)
            said: list[str] = []
            found = evaluate_recipe(loaded, tmp_path / "out", say=said.append)
            assert found["day"] == "2026-11-26"
            assert {e["day"] for e in found["benchmarks"].values()} == {"2026-11-26"}
        assert any("done before" in line for line in said)

    def test_answers_of_a_dry_run_after_midnight_are_found(self, tmp_path, monkeypatch):
        from deltalearn.pipeline.generate_estimate import dry_run

        models(tmp_path, DATED)
        on(monkeypatch, "2026-11-26")
        options = {"models.xs": {"path": str(tmp_path / "xs")}, "prompts.source": "prompts.jsonl"}
        recipe(tmp_path)
        with chdir(tmp_path):
            loaded = load_recipe(
                None, ["device=cpu", "generate.max_tokens=4"], command=GENERATE, options=options
            )
            run_generate(loaded, Path("out"), say=lambda line: None)
            on(monkeypatch, "2026-11-27")
            assert "0 to ask" in dry_run(loaded, Path("out"))

    def test_models_that_do_not_ask_have_no_day_in_their_keys(self, hybrid):
        stages = json.loads((hybrid / "run/run.json").read_text())["stages"]
        assert not any("day" in record["inputs"] for record in stages.values())
        with sqlite3.connect(hybrid / "run/responses.sqlite") as db:
            assert "day" not in str(db.execute("select * from settings").fetchall())
