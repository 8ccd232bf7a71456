"""Protects `deltalearn tune`: every shape of pairs, what it leaves, resuming, and its messages.

The command runs in this process, on the tiny model; several processes have tests of their own.
"""

from __future__ import annotations

import json
import os
import re
import shutil
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path

import pyarrow
import pyarrow.parquet
import pytest
import yaml
from safetensors.torch import load_file

from deltalearn import cli
from deltalearn.errors import UserError
from deltalearn.pipeline.tune_preview import check_modes
from deltalearn.recipe import TUNE, LoadedRecipe, load_recipe

QUESTIONS = ["fox?", "dog?", "lazy dog?", "over the lazy dog?", "mind?", "brown fox?"]
SETTINGS = ["--lr", "1e-3", "--batch-size", "2", "--max-length", "90", "--device", "cpu"]


def turn(role: str, content: str) -> dict[str, str]:
    return {"role": role, "content": content}


def shaped(shape: str) -> list[dict]:
    """The same pairs in every form that people keep them in."""
    rows = []
    for i, question in enumerate(QUESTIONS):
        good, bad = f"quick answer {i}", f"lazy {i}"
        user, chosen, rejected = (
            turn("user", question),
            turn("assistant", good),
            turn("assistant", bad),
        )
        rows.append(
            {
                "standard": {"prompt": question, "chosen": good, "rejected": bad},
                "conversational": {"prompt": [user], "chosen": [chosen], "rejected": [rejected]},
                "implicit": {"chosen": [user, chosen], "rejected": [user, rejected]},
                "text and turns": {"prompt": question, "chosen": [chosen], "rejected": [rejected]},
                "ladder": {"prompt": question, "big-model": good, "small-model": bad},
            }[shape]
        )
    return rows


LADDER = ["--chosen-column", "big-model", "--rejected-column", "small-model"]


def written(rows: list[dict], path: Path) -> Path:
    if path.suffix == ".parquet":
        pyarrow.parquet.write_table(pyarrow.Table.from_pylist(rows), path)
    else:
        path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return path


@dataclass
class Ended:
    code: int
    out: str
    err: str


@pytest.fixture
def tune(monkeypatch, capsys):
    """`tune("--student", ...)` runs the command and returns its exit code and what it printed."""

    def run(*arguments: str | Path) -> Ended:
        monkeypatch.setattr(sys, "argv", ["deltalearn", "tune", *map(str, arguments)])
        code = 0
        try:
            cli.main()
        except SystemExit as end:
            code = int(end.code or 0)
        return Ended(code, *capsys.readouterr())

    return run


@pytest.fixture
def pairs(tmp_path) -> Path:
    return written(shaped("conversational"), tmp_path / "pairs.jsonl")


@pytest.fixture
def base(tiny_model, pairs) -> list[str]:
    """Arguments of a small run without --out."""
    return ["--student", str(tiny_model), "--pairs", str(pairs), *SETTINGS]


@pytest.fixture
def stopped(tune, base, tmp_path, monkeypatch) -> Path:
    """A run interrupted, as by Ctrl-C, after its first step and checkpoint."""
    from deltalearn.tune.loop import Run

    step = Run.step

    def stop_after_first(self, number, *rest):
        if number == 1:
            raise KeyboardInterrupt
        return step(self, number, *rest)

    with monkeypatch.context() as patch:
        patch.setattr(Run, "step", stop_after_first)
        ended = tune(*base, "--set", "checkpoint_every=1", "--out", tmp_path / "stopped")
    assert ended.code == 130
    assert "interrupted; run the same command again to resume" in ended.err
    return tmp_path / "stopped"


def contents(out: Path) -> dict[Path, bytes]:
    """What a run left, but for the tokenised pairs, which can be had again."""
    files = [p for p in out.rglob("*") if p.is_file() and "examples" not in p.parts]
    return {p: p.read_bytes() for p in files if p.name != ".lock"}


def weights(out: Path) -> dict:
    return load_file(out / "final" / "model.safetensors")


class TestPairs:
    @pytest.mark.slow
    @pytest.mark.parametrize("ending", ["jsonl", "parquet"])
    @pytest.mark.parametrize(
        "shape", ["standard", "conversational", "implicit", "text and turns", "ladder"]
    )
    def test_every_shape_is_tuned_on(self, tune, tiny_model, tmp_path, shape, ending):
        source = written(shaped(shape), tmp_path / f"pairs.{ending}")
        columns = LADDER if shape == "ladder" else []
        out = tmp_path / "out"
        ended = tune("--student", tiny_model, "--pairs", source, *SETTINGS, *columns, "--out", out)
        assert ended.code == 0, ended.err
        assert "pairs: 6 of 6 used" in ended.out
        log = [json.loads(line) for line in (out / "log.jsonl").read_text().splitlines()]
        assert [record["step"] for record in log] == [1, 2, 3]
        assert log[0]["loss"] == pytest.approx(0.6931, abs=1e-3)

    def test_shapes_with_a_chat_template_train_the_same(self, tune, tiny_model, tmp_path):
        found = []
        for shape in ("conversational", "standard", "implicit", "text and turns", "ladder"):
            source = written(shaped(shape), tmp_path / f"{shape}.jsonl")
            columns = LADDER if shape == "ladder" else []
            out = tmp_path / shape
            tune("--student", tiny_model, "--pairs", source, *SETTINGS, *columns, "--out", out)
            found.append(weights(out))
        for other in found[1:]:
            assert all((found[0][name] == other[name]).all() for name in found[0])

    def test_a_missing_column_lists_those_there_are(self, tune, base, tmp_path):
        ended = tune(*base, "--chosen-column", "qwen", "--out", tmp_path / "out")
        assert ended.code == 2
        for text in ("no usable pair", "columns seen: prompt, chosen, rejected"):
            assert text in ended.err

    def test_limit_takes_the_first(self, tune, base, tmp_path):
        ended = tune(*base, "--limit", "4", "--out", tmp_path / "out")
        assert "pairs: 4 of 4 used" in ended.out

    def test_dropped_pairs_are_told(self, tune, base, pairs, tmp_path):
        same = turn("assistant", "same")
        row = {"prompt": [turn("user", "?")], "chosen": [same], "rejected": [same]}
        written([*shaped("conversational"), row], pairs)
        ended = tune(*base, "--out", tmp_path / "out")
        assert "pairs: 6 of 7 used; dropped: identical" in ended.out

    def test_where_each_reason_was_met_first_is_told_and_kept(self, tune, base, pairs, tmp_path):
        same = turn("assistant", "same")
        rows = [{"prompt": [turn("user", "?")], "chosen": [same], "rejected": [same]}] * 2
        written([*shaped("conversational"), *rows, {"prompt": "x", "\x1b[31m": "y"}], pairs)
        out = tmp_path / "out"
        ended = tune(*base, "--out", out)
        assert f"\n  first identical answers: {pairs}:7: both answers the same" in ended.out
        assert f"\n  first no column: {pairs}:9: no 'chosen'; there are prompt, \\x1b" in ended.out
        first = json.loads((out / "run.json").read_text())["stages"]["tune"]["counts"]["first"]
        assert first["identical_ids"].startswith(f"{pairs}:7: ")
        assert set(first) == {"identical_ids", "no_column"}

    def test_a_split_of_a_folder_is_taken_and_told(self, tune, tiny_model, tmp_path):
        (tmp_path / "data").mkdir()
        for split, number in (("train", 4), ("test", 6)):
            name = f"{split}-00000-of-00001.parquet"
            written(shaped("conversational")[:number], tmp_path / "data" / name)
        arguments = ["--student", tiny_model, "--pairs", tmp_path, *SETTINGS]
        ended = tune(*arguments, "--out", tmp_path / "one")
        files = "data/train-00000-of-00001.parquet; not read: data/test-00000-of-00001.parquet"
        assert f"split train of {tmp_path}: {files}\n" in ended.out
        assert "pairs: 4 of 4 used" in ended.out
        assert "pairs: 6 of 6 used" in tune(*arguments, "--split", "test", "--dry-run").out
        shown = tune(*arguments, "--split", "test", "--preview").out
        assert shown.startswith(f"split test of {tmp_path}: data/test-")
        ended = tune(*arguments, "--split", "dev", "--out", tmp_path / "two")
        assert "no split 'dev'; there are train, test" in ended.err


class TestChatTemplate:
    """One rule, whatever the columns are called, and a line that says what it gave and why."""

    @staticmethod
    def without_template(model: Path, place: Path) -> Path:
        shutil.copytree(model, place)
        (place / "chat_template.jinja").unlink()
        return place

    @pytest.mark.parametrize("shape", ["standard", "ladder"])
    @pytest.mark.parametrize("chat", ["auto", "yes", "no"])
    def test_text_is_a_turn_unless_told_otherwise(self, tune, tiny_model, tmp_path, shape, chat):
        source = written(shaped(shape), tmp_path / "pairs.jsonl")
        columns = LADDER if shape == "ladder" else []
        arguments = ["--student", tiny_model, "--pairs", source, *columns, "--chat-template", chat]
        shown = tune(*arguments, "--preview").out
        because = {"auto": f"yes, because {tiny_model} has one: text is a turn of the user",
                   "yes": "yes, because pairs.chat_template says so",
                   "no": "no, because pairs.chat_template says so"}  # fmt: skip
        assert f"rendered with the chat template: {because[chat]}" in shown
        assert ("<|user|>" in shown) == (chat != "no")

    def test_a_base_model_takes_text_as_it_is(self, tune, tiny_model, tmp_path):
        model = self.without_template(tiny_model, tmp_path / "base")
        source = written(shaped("standard"), tmp_path / "pairs.jsonl")
        arguments = ["--student", model, "--pairs", source, *SETTINGS]
        ended = tune(*arguments, "--out", tmp_path / "out")
        assert f"chat template: no, because {model} has none" in ended.out, ended.err
        refused = tune(*arguments, "--chat-template", "yes", "--out", tmp_path / "yes")
        assert refused.code == 2 and f"{model} has no chat template; say no" in refused.err

    def test_conversations_are_said_to_be_rendered_and_cannot_be_raw(
        self, tune, tiny_model, tmp_path
    ):
        source = written(shaped("conversational"), tmp_path / "pairs.jsonl")
        arguments = ["--student", tiny_model, "--pairs", source]
        assert "yes, because the pairs are conversations" in tune(*arguments, "--preview").out
        refused = tune(*arguments, "--chat-template", "no", "--preview")
        assert refused.code == 2 and "a conversation, where raw text was asked for" in refused.err

    def test_what_hh_rlhf_became_is_said_and_all_rows_are_counted(self, tune, tiny_model, tmp_path):
        rows = [
            {side: f"\n\nHuman: {i}?\n\nAssistant: {side}" for side in ("chosen", "rejected")}
            for i in range(4)
        ]
        source = written([*rows, {"chosen": "a", "rejected": "b"}], tmp_path / "pairs.jsonl")
        out = tmp_path / "out"
        ended = tune("--student", tiny_model, "--pairs", source, *SETTINGS, "--out", out)
        assert "Human: and Assistant: became turns in 4 pairs" in ended.out
        assert "pairs: 4 of 5 used; unusable rows: no prompt 1" in ended.out


class TestWhatIsLeft:
    def test_a_whole_run(self, tune, base, pairs, tmp_path):
        out = tmp_path / "out"
        ended = tune(*base, "--seed", "3", "--out", out)
        assert f"{out / 'final'}: 3 steps in" in ended.out
        assert {p.name for p in out.iterdir()} >= {
            "recipe.yaml", "run.json", "log.jsonl", "final", "reference", "examples",
        }  # fmt: skip
        assert not (out / "checkpoints").exists()
        run = json.loads((out / "run.json").read_text())
        assert run["seeds"] == [3]
        assert run["recipe"]["pairs"]["source"] == str(pairs)
        inputs = run["stages"]["tune"]["inputs"]
        assert len(inputs["pairs"]) == len(inputs["student"]) == 64
        assert inputs["student"] == run["models"]["student"]["fingerprint"]
        assert run["machine"]["device"] == "cpu"
        assert {"torch", "transformers"} <= set(run["versions"])
        counts = run["stages"]["tune"]["counts"]
        assert (counts["steps"], counts["reference_scored"]) == (3, 12)

    @pytest.mark.parametrize("best", [(), ("--set", "keep_best=true")])
    def test_the_closing_line_has_the_numbers_of_held_out_pairs(self, tune, base, tmp_path, best):
        """Of the model that is kept, which is not the last one's where the best is kept."""
        out = tmp_path / "out"
        ended = tune(*base, "--eval-pairs", "2", "--set", "eval_every=1", *best, "--out", out)
        assert ended.code == 0, ended.err
        evals = [json.loads(line) for line in (out / "evals.jsonl").read_text().splitlines()]
        counts = json.loads((out / "run.json").read_text())["stages"]["tune"]["counts"]
        kept = next(e for e in evals if e["step"] == counts["last"]["final_step"])
        said = ended.out.rstrip().rpartition("; ")[2]
        assert said == (
            f"held-out pairs: loss {kept['eval_loss']:.4f}, margin {kept['eval_margin']:.4f}, "
            f"accuracy {kept['eval_accuracy']:.4f}"
        )

    def test_questions_that_are_trained_on_are_said(self, tune, base, tmp_path):
        rows = [{"prompt": question, "answer": "a"} for question in QUESTIONS]
        dev = written([*rows, {"prompt": "another one", "answer": "a"}], tmp_path / "dev.jsonl")
        options = ["--set", f"dev.source={dev}", "--set", "eval_every=3"]
        ended = tune(*base, *options, "--out", tmp_path / "out")
        assert f"CONTAMINATED: {len(rows)} of {len(rows) + 1} items of tune.dev" in ended.out
        assert "; dev: " in ended.out.rstrip().splitlines()[-1]

    def test_the_resolved_recipe_says_where_values_are_from_and_runs_again(
        self, tune, base, tmp_path
    ):
        out = tmp_path / "out"
        tune(*base, "--set", "warmup_ratio=0.5", "--out", out)
        text = (out / "recipe.yaml").read_text()
        assert "  warmup_ratio: 0.5  # --set" in text
        assert "  lr: 0.001  # command line" in text
        assert "  beta: null  # default" in text
        tune("--recipe", out / "recipe.yaml", "--out", tmp_path / "again")
        first, again = weights(out), weights(tmp_path / "again")
        assert all((first[name] == again[name]).all() for name in first)

    def test_a_shared_reference_is_not_scored_again(self, tune, base, tmp_path):
        for name, beta in (("one", "5"), ("two", "7")):
            tune(*base, "--beta", beta, "--reference", tmp_path / "ref", "--out", tmp_path / name)
        counts = json.loads((tmp_path / "two" / "run.json").read_text())["stages"]["tune"]["counts"]
        assert counts["reference_scored"] == 0
        assert not (tmp_path / "two" / "reference").exists()


class TestAgain:
    def test_finished_says_so_and_does_nothing(self, tune, base, tmp_path):
        out = tmp_path / "out"
        tune(*base, "--out", out)
        before = (out / "run.json").stat().st_mtime_ns
        ended = tune(*base, "--out", out)
        assert ended.out == f"{out / 'final'}: finished already, nothing to do\n"
        assert (out / "run.json").stat().st_mtime_ns == before

    def test_changed_settings_are_named(self, tune, base, tmp_path):
        out = tmp_path / "out"
        tune(*base, "--out", out)
        ended = tune(*base, "--beta", "9", "--seed", "1", "--out", out)
        assert ended.code == 2
        assert "other settings (seeds, tune.beta)" in ended.err
        assert "--update" in ended.err

    def test_update_starts_over(self, tune, base, tmp_path):
        out = tmp_path / "out"
        tune(*base, "--out", out)
        before = weights(out)
        ended = tune(*base, "--beta", "9", "--update", "--out", out)
        assert "3 steps in" in ended.out
        assert f"what was there: {out / 'replaced' / '1'}" in ended.out
        kept, after = weights(out / "replaced" / "1"), weights(out)
        assert all((before[name] == kept[name]).all() for name in before)
        assert any((before[name] != after[name]).any() for name in before)

    def test_settings_of_speed_do_not_start_over(self, tune, base, tmp_path):
        out = tmp_path / "out"
        tune(*base, "--out", out)
        for more in ([], ["--update"]):
            ended = tune(*base, "--token-budget", "64", *more, "--out", out)
            assert "finished already" in ended.out, ended.err

    def test_settings_of_speed_continue_an_interrupted_run(self, tune, base, stopped):
        ended = tune(*base, "--token-budget", "64", "--out", stopped)
        assert ended.code == 0, ended.err
        counts = json.loads((stopped / "run.json").read_text())["stages"]["tune"]["counts"]
        assert counts["resumed_at"] == 1
        assert "token_budget: 64  # command line" in (stopped / "recipe.yaml").read_text()

    def test_changed_pairs_are_tuned_on_again_if_told_so(self, tune, base, pairs, tmp_path):
        """Not one byte of the finished model is gone until then."""
        out = tmp_path / "out"
        tune(*base, "--out", out)
        before = contents(out)
        written(shaped("conversational")[:4], pairs)
        ended = tune(*base, "--out", out)
        assert ended.code == 2
        assert "holds a run on other pairs (content). Pass --update" in ended.err
        assert contents(out) == before
        ended = tune(*base, "--update", "--out", out)
        assert "pairs: 4 of 4 used" in ended.out
        assert "2 steps in" in ended.out

    def test_changed_pairs_leave_a_checkpoint_alone(self, tune, base, pairs, stopped):
        written(shaped("conversational")[:4], pairs)
        ended = tune(*base, "--set", "checkpoint_every=1", "--out", stopped)
        assert "other pairs (content)" in ended.err
        written(shaped("conversational"), pairs)
        assert tune(*base, "--set", "checkpoint_every=1", "--out", stopped).code == 0
        counts = json.loads((stopped / "run.json").read_text())["stages"]["tune"]["counts"]
        assert counts["resumed_at"] == 1

    def test_a_changed_model_is_named(self, tune, tiny_model, pairs, tmp_path):
        model, out = tmp_path / "model", tmp_path / "out"
        shutil.copytree(tiny_model, model)
        arguments = ["--student", model, "--pairs", pairs, *SETTINGS, "--out", out]
        tune(*arguments)
        (model / "generation_config.json").write_text('{"eos_token_id": 1}')
        assert "holds a run on other student (content)." in tune(*arguments).err

    @pytest.mark.parametrize(
        ("arguments", "text"),
        [
            (["--batch-size", "7"], "6 pairs to train on do not fill one batch of 7"),
            (
                ["--eval-pairs", "5"],
                "1 pairs to train on do not fill one batch of 2 (eval_pairs holds out 5 of 6); "
                "give more pairs, fewer eval_pairs or",
            ),
            (["--max-length", "3"], "none of 6 pairs can be trained on"),
            (["--pairs", "./nowhere.jsonl"], "no such file"),
        ],
    )
    def test_an_update_that_cannot_run_deletes_nothing(self, tune, base, tmp_path, arguments, text):
        out = tmp_path / "out"
        tune(*base, "--out", out)
        before = contents(out)
        ended = tune(*base, *arguments, "--update", "--out", out)
        assert ended.code == 2
        assert text in ended.err
        assert contents(out) == before
        assert "finished already" in tune(*base, "--out", out).out

    def test_a_note_beside_the_pairs_is_no_change(self, tune, tiny_model, tmp_path):
        (tmp_path / "data").mkdir()
        written(shaped("conversational"), tmp_path / "data" / "pairs.jsonl")
        out = tmp_path / "out"
        arguments = ["--student", tiny_model, "--pairs", tmp_path / "data", *SETTINGS, "--out", out]
        tune(*arguments)
        (tmp_path / "data" / "README.md").write_text("about these pairs")
        assert "finished already" in tune(*arguments).out

    @pytest.mark.parametrize(
        "mistake",
        [
            ["--pairs", "./nowhere.jsonl"],
            ["--student", "./nowhere"],
            ["--batch-size", "100"],
            ["--set", "layout=packed", "--set", "attention=flex"],  # refused when weights are read
        ],
    )
    def test_a_start_that_failed_binds_to_nothing(self, tune, base, tmp_path, mistake):
        out = tmp_path / "out"
        assert tune(*base, *mistake, "--out", out).code == 2
        ended = tune(*base, "--out", out)
        assert ended.code == 0, ended.err
        assert "packed" not in (out / "recipe.yaml").read_text()

    def test_an_interrupted_run_goes_on(self, tune, base, tmp_path, stopped):
        """The weights are those of a whole run."""
        whole = tmp_path / "whole"
        tune(*base, "--out", whole)
        ended = tune(*base, "--set", "checkpoint_every=1", "--out", stopped)
        assert ended.code == 0
        counts = json.loads((stopped / "run.json").read_text())["stages"]["tune"]["counts"]
        assert (counts["resumed_at"], counts["steps"]) == (1, 3)
        one, other = weights(whole), weights(stopped)
        assert all((one[name] == other[name]).all() for name in one)

    def test_update_does_not_go_on_from_a_checkpoint_of_other_settings(self, tune, base, stopped):
        ended = tune(*base, "--beta", "9", "--update", "--out", stopped)
        assert ended.code == 0, ended.err
        counts = json.loads((stopped / "run.json").read_text())["stages"]["tune"]["counts"]
        assert (counts["resumed_at"], counts["steps"]) == (0, 3)


class TestModes:
    def test_preview_shows_two_pairs_and_stops(self, tune, base, tmp_path):
        ended = tune(*base, "--preview", "--out", tmp_path / "out")
        assert ended.code == 0
        assert ended.out.count("== pair ") == 2
        assert ended.out.count("'<|end|>':0") == 4
        assert not (tmp_path / "out").exists()

    def test_preview_needs_no_weights(self, tune, tiny_model, pairs, tmp_path):
        model = tmp_path / "model"
        shutil.copytree(tiny_model, model, ignore=shutil.ignore_patterns("*.safetensors"))
        assert tune("--student", model, "--pairs", pairs, "--preview").code == 0

    def test_preview_reads_on_until_there_is_something_to_show(self, tune, base, pairs):
        same = turn("assistant", "same")
        rows = [{"prompt": [turn("user", "?")], "chosen": [same], "rejected": [same]}] * 250
        written([*rows, *shaped("conversational") * 100], pairs)
        ended = tune(*base, "--preview")
        assert ended.code == 0, ended.err
        assert f"Of the first 300 pairs of {pairs}: 50 pairs;" in ended.out
        assert "300 read, 50 kept" in ended.out
        written(rows, pairs)
        assert "none of 250 pairs can be trained on" in tune(*base, "--preview").err

    def test_dry_run_counts_real_pairs_without_weights(self, tune, tiny_model, pairs, tmp_path):
        model = tmp_path / "model"
        shutil.copytree(tiny_model, model, ignore=shutil.ignore_patterns("*.safetensors"))
        ended = tune("--student", model, "--pairs", pairs, *SETTINGS, "--dry-run", "--tflops", "1")
        assert ended.code == 0, ended.err
        assert "ASSUMED" not in ended.out
        assert "pairs: 6 of 6 used" in ended.out
        assert "3 steps of 2 pairs" in ended.out
        assert "At 1 useful TFLOP/s a GPU" in ended.out

    @pytest.mark.parametrize(
        ("setting", "text"),
        [
            ("kernels=liger", "tune.kernels liger: its kernels run on a GPU, not on cpu"),
            ("float8=true", "tune.float8 needs a GPU of compute capability 8.9 or more, not cpu"),
        ],
    )
    def test_what_needs_a_gpu_is_refused_before_pairs_are_read(
        self, tune, base, tmp_path, setting, text
    ):
        ended = tune(*base, "--set", setting, "--device", "cpu", "--out", tmp_path / "out")
        assert ended.code == 2
        assert text in ended.err
        assert not list((tmp_path / "out").glob("examples*"))

    def test_dry_run_tells_the_time_of_a_run_that_has_begun(self, tune, base, tmp_path):
        """The steps that the run took, at their own speed; nothing is written beside it."""
        out = tmp_path / "out"
        before = tune(*base, "--out", out, "--dry-run")
        assert f"Time: unknown; give --tflops, or begin the run, whose log in {out}" in before.out
        assert not out.exists()
        assert tune(*base, "--out", out).code == 0
        after = tune(*base, "--out", out, "--dry-run")
        found = re.search(
            r"At ([\d.e-]+) useful TFLOP/s, measured over 3 steps in (\S+):", after.out
        )
        assert found and found[2] == str(out)
        assert "0.0 min of them left of that run" in after.out
        lines = [json.loads(x) for x in (out / "log.jsonl").read_text().splitlines()]
        step = (lines[-1]["seconds"] - lines[0]["seconds"]) / 2
        work = re.search(r"Useful work: ([\d.e-]+) TFLOP a step", after.out)
        assert float(found[1]) == pytest.approx(float(work[1]) / step, rel=0.01)

    def test_dry_run_holds_out_the_pairs_that_the_run_holds_out(self, tune, base, pairs):
        """By prompt: one pair of three to a prompt holds out all three."""
        rows = shaped("conversational")
        more = [{**rows[i // 3], "rejected": [turn("assistant", f"no {i}")]} for i in range(9)]
        written(more, pairs)
        ended = tune(*base, "--eval-pairs", "1", "--dry-run")
        assert "(1.00 epochs of 6 pairs)" in ended.out, ended.err

    @pytest.mark.slow
    def test_dry_run_assumes_only_what_is_missing(self, tune, base, tmp_path):
        """A recipe's `expect` stands in for a model that is not here, and for nothing else."""
        tune(*base, "--out", tmp_path / "out")
        recipe = yaml.safe_load((tmp_path / "out" / "recipe.yaml").read_text())
        recipe["expect"] = {
            "pairs": 80,
            "architecture": "llama-3.2-3b",
            "prompt_tokens": 9,
            "chosen_tokens": 9,
            "rejected_tokens": 9,
            "spread": 0.5,
        }
        (tmp_path / "mine.yaml").write_text(yaml.safe_dump(recipe))
        here = tune("--recipe", tmp_path / "mine.yaml", "--dry-run")
        assert "ASSUMED" not in here.out and "3 steps of 2 pairs" in here.out
        gone = tune("--recipe", tmp_path / "mine.yaml", "--student", "no/such", "--dry-run")
        assert "no/such: not on this disk; ASSUMED: the architecture of llama-3.2-3b" in gone.out
        assert "its pairs are here, but not the tokenizer; ASSUMED: 80 usable" in gone.out
        assert "40 steps of 2 pairs" in gone.out

    @pytest.mark.parametrize(
        ("arguments", "text"),
        [
            (["--preview", "--dry-run"], "give one of them"),
            (["--tflops", "3"], "--tflops has no effect without --dry-run"),
            (["--dry-run", "--tflops", "0"], "a rate above zero"),
            (["--method", "sft", "--reference", "ref"], "--reference has no effect on sft"),
        ],
    )
    def test_options_without_effect(self, tune, base, tmp_path, monkeypatch, arguments, text):
        monkeypatch.chdir(tmp_path)
        ended = tune(*base, *arguments)
        assert ended.code == 2
        assert text in ended.err
        assert not (tmp_path / "ref").exists() and not (tmp_path / "runs").exists()

    @pytest.mark.parametrize("mode", ["preview", "dry_run"])
    @pytest.mark.parametrize("option", [{"reference": Path("ref")}, {"update": True}])
    def test_what_only_shows_takes_no_option_of_a_run(self, mode, option):
        modes = {"preview": False, "dry_run": False, mode: True}
        (name,) = option
        text = f"--{name} has no effect with --{mode.replace('_', '-')}"
        with pytest.raises(UserError, match=text):
            check_modes(**modes, tflops=None, **option)


class TestMessages:
    @pytest.mark.parametrize(
        ("arguments", "texts"),
        [
            (["--betta", "3"], ["No such option: --betta", "--beta"]),
            (["--set", "bata=3"], ["tune.bata: unknown key", "did you mean 'beta'?"]),
            (["--set", "tune.learning_rate=1e-4"], ["did you mean 'lr'?"]),
            (["--method", "sft", "--beta", "3"], ["beta has no effect on sft"]),
            (["--method", "dpoo"], ["tune.method", "dpo_norm", "given: 'dpoo'"]),
            (["--set", "seed=1"], ["seed: unknown key; did you mean 'seeds'?"]),
            (["--set", "model.path=x"], ["model: unknown key; did you mean 'student'?"]),
            (["--set", "tune.dtype=float32"], ["tune.dtype: unknown key"]),
            (["--set", "pairs.split=test"], ["split 'test' has no effect on files"]),
            (["--lr=-1"], ["command line: tune.lr", "more than 0"]),
            (["--steps", "3", "--epochs", "1"], ["give one of them"]),
            (["--split", "train"], ["split 'train' has no effect on files"]),
            (["--student", "./nowhere"], ["./nowhere: no such model directory"]),
            (["--pairs", "nowhere.jsonl"], ["nowhere.jsonl: no such file"]),
        ],
    )
    def test_bad_options(self, tune, base, tmp_path, arguments, texts):
        ended = tune(*base, *arguments, "--out", tmp_path / "out")
        assert ended.code == 2
        for text in texts:
            assert text in ended.err, ended.err

    def test_nothing_to_tune(self, tune, pairs):
        assert "give --student, or a recipe" in tune("--pairs", pairs).err

    def test_a_folder_with_other_things_is_left_alone(self, tune, base, tmp_path):
        (tmp_path / "out").mkdir()
        (tmp_path / "out" / "thesis.tex").touch()
        assert "not a run of deltalearn" in tune(*base, "--out", tmp_path / "out").err


def tune_recipe(place: str | Path, options: dict, *overrides: str) -> LoadedRecipe:
    return load_recipe(place, overrides, command=TUNE, options=options)


class TestRecipe:
    def test_options_win_over_set_values_of_the_file(self):
        loaded = tune_recipe("tulu3-8b-pairs", {"tune.lr": 1e-6}, "beta=3", "tune.batch_size=64")
        tune = loaded.recipe.tune
        assert (tune.lr, tune.beta, tune.batch_size, tune.max_length) == (1e-6, 3, 64, 2048)
        assert loaded.origins["tune.lr"] == "command line"
        assert loaded.origins["tune.max_length"] == "tulu3-8b-pairs.yaml"

    def test_another_method_does_not_inherit_beta_nor_steps_epochs(self):
        tune = tune_recipe("tulu3-8b-pairs", {"tune.method": "dpo", "tune.steps": 5}).recipe.tune
        assert (tune.effective_beta, tune.steps, tune.epochs) == (0.1, 5, None)

    def test_an_option_below_a_null_of_the_file(self, tmp_path):
        text = tune_recipe("tulu3-8b-pairs", {}).resolved_yaml()
        (tmp_path / "mine.yaml").write_text(text)
        assert yaml.safe_load(text)["tune"]["lora"] is None
        loaded = tune_recipe(tmp_path / "mine.yaml", {"tune.lora.r": 8})
        assert loaded.recipe.tune.lora.r == 8


def test_help_imports_nothing_heavy():
    code = (
        "import sys; from deltalearn.cli import app; from typer.testing import CliRunner;"
        "result = CliRunner().invoke(app, ['tune', '--help']); assert result.exit_code == 0;"
        "heavy = {'torch', 'transformers', 'datasets', 'matplotlib', 'pyarrow', 'numpy'};"
        "print(sorted(heavy & set(sys.modules)))"
    )
    result = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert result.stdout.strip() == "[]", result.stdout + result.stderr


TORCHRUN = ["torch.distributed.run", "--nproc-per-node", "2"]
ACCELERATE = ["accelerate.commands.launch", "--num_processes", "2", "--num_machines", "1", "--cpu",
              "--mixed_precision", "no", "--dynamo_backend", "no"]  # fmt: skip


@pytest.mark.slow
@pytest.mark.parametrize("launcher", [TORCHRUN, ACCELERATE], ids=["torchrun", "accelerate"])
def test_under_a_launcher_one_process_speaks_for_all(tiny_model, pairs, tmp_path, launcher):
    """Two processes: trained once, told once, and a mistake is told once too."""

    def launch(*arguments: str) -> subprocess.CompletedProcess:
        command = [sys.executable, "-m", *launcher, "-m", "deltalearn", "tune"]
        command += ["--student", str(tiny_model), "--pairs", str(pairs)]
        return subprocess.run(
            [*command, *SETTINGS, "--out", str(tmp_path / "out"), *arguments],
            capture_output=True, text=True, env={**os.environ, "OMP_NUM_THREADS": "1"},
        )  # fmt: skip

    first = launch()
    assert first.returncode == 0, first.stderr
    assert first.stdout.count("pairs: 6 of 6 used") == first.stdout.count("3 steps in") == 1
    assert launch().stdout.count("finished already") == 1
    changed = launch("--seed", "4")
    assert changed.returncode != 0
    assert changed.stderr.count("error: ") == 1
    assert "other settings (seeds)" in changed.stderr
