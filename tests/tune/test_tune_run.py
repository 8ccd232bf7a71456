"""Protects a tuning run as a whole: guards, evaluation on the way, checkpoints, stop and resume.

Pitfalls of tuning that others met are listed in docs/pitfalls.md, with their tests.
"""

from __future__ import annotations

import json
import os
import re
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
from helpers.scored import score_files
from pydantic import ValidationError
from safetensors.torch import load_file, save_file

from deltalearn.errors import UserError
from deltalearn.evaluate.reference.dev import dev_scores
from deltalearn.evaluate.reference.score import Asked
from deltalearn.evaluate.reference.scorers import SCORERS
from deltalearn.formats.questions import read_items
from deltalearn.lm.layout import Tree
from deltalearn.lm.load import load_model, load_tokenizer, place
from deltalearn.lm.locate import locate
from deltalearn.lm.rows import choose_rows
from deltalearn.lm.scoring import score_answers
from deltalearn.pipeline.tune import run_tune
from deltalearn.recipe import TUNE, DevSpec, LoraSpec, TuneSpec, load_recipe
from deltalearn.recipe.methods import METHODS
from deltalearn.tune import PairRow, ReferenceCache, prepare_examples, tune
from deltalearn.tune.loop import Run
from deltalearn.tune.train import split_held_out

CPU = place("cpu", "float32")
STUDENT = "package://deltalearn.lab/ladder/m"
TEXTS = ["abcd", "bcda", "cdab", "dabc", "acbd", "bdca", "cadb", "dbac"]


def row(prompt: str, chosen: str, rejected: str) -> PairRow:
    turns = ({"role": "user", "content": prompt},)
    return PairRow(prompt, turns, chosen, rejected, "stop", "stop")


def rows() -> list[PairRow]:
    return [row(f"rev {t}", t[::-1], t[:0:-1]) for t in TEXTS]


@pytest.fixture(scope="module")
def student():
    return locate(STUDENT)


@pytest.fixture(scope="module")
def tokenizer(student):
    return load_tokenizer(student)


def run(
    student, tokenizer, out: Path, spec: TuneSpec, seed: int = 0, cache: Path | None = None, **more
):
    examples, _ = prepare_examples(tokenizer, rows(), 64)
    with ReferenceCache(cache or out / "reference.sqlite") as reference:
        more = {"placement": CPU, **more}
        result = tune(student, examples, spec, seed, out, reference=reference, **more)
        return result, reference.scored


def weights(out: Path) -> dict[str, torch.Tensor]:
    return load_file(out / "final" / "model.safetensors")


def log(out: Path) -> list[dict]:
    return [json.loads(line) for line in (out / "log.jsonl").read_text().splitlines()]


def test_arms_share_references_and_other_settings_do_not_score_again(student, tokenizer, tmp_path):
    cache = tmp_path / "shared.sqlite"
    spec = TuneSpec(lr=1e-4, batch_size=4, steps=1)
    _, first = run(student, tokenizer, tmp_path / "a", spec, cache=cache)
    assert first == 16
    for name, changes in {
        "b": {"lr": 2e-4},
        "c": {"beta": 10.0, "steps": 2},
        "d": {"method": "dpo"},
        "e": {"method": "ipo", "token_budget": 64},
        "f": {"max_length": 60, "weight_decay": 0.1},
    }.items():
        other = spec.model_copy(update=changes)
        _, scored = run(student, tokenizer, tmp_path / name, other, cache=cache)
        assert scored == 0, name


def test_changed_weights_under_the_same_path_score_again(tokenizer, tmp_path):
    """End to end: the fingerprint is of the files, not of the path."""
    folder = tmp_path / "model"
    load_model(locate(STUDENT), CPU).save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    cache, spec = tmp_path / "r.sqlite", TuneSpec(lr=1e-4, batch_size=4, steps=1)
    run(locate(str(folder)), tokenizer, tmp_path / "a", spec, cache=cache)
    tensors = load_file(folder / "model.safetensors")
    tensors["model.norm.weight"] *= 1.5
    save_file(tensors, folder / "model.safetensors", metadata={"format": "pt"})
    _, scored = run(locate(str(folder)), tokenizer, tmp_path / "b", spec, cache=cache)
    assert scored == 16


class TestRun:
    spec = TuneSpec(lr=1e-3, batch_size=4, steps=12, checkpoint_every=3)

    def test_learns_and_leaves_a_hugging_face_directory(self, student, tokenizer, tmp_path):
        run(student, tokenizer, tmp_path, self.spec)
        lines = log(tmp_path)
        assert [line["step"] for line in lines] == list(range(1, 13))
        assert lines[0]["loss"] == pytest.approx(0.693147, abs=1e-3)
        assert lines[-1]["loss"] < 0.5
        assert lines[-1]["accuracy"] == 1
        tuned = locate(str(tmp_path / "final"))
        assert load_tokenizer(tuned).chat_template == tokenizer.chat_template
        before, after = load_model(student, CPU), load_model(tuned, CPU)
        for (name, a), b in zip(before.named_parameters(), after.parameters(), strict=True):
            assert not torch.equal(a, b), name
        assert not (tmp_path / "checkpoints").exists()

    def test_the_final_model_holds_no_pickle(self, student, tokenizer, tmp_path):
        run(student, tokenizer, tmp_path, self.spec)
        suffixes = {p.suffix for p in tmp_path.rglob("*") if p.is_file()}
        assert suffixes <= {".safetensors", ".json", ".jsonl", ".jinja", ".md", ".sqlite"}

    def test_same_seed_same_weights_other_seed_others(self, student, tokenizer, tmp_path):
        for name, seed in (("a", 0), ("b", 0), ("c", 1)):
            run(student, tokenizer, tmp_path / name, self.spec, seed)
        a, b, c = (weights(tmp_path / name) for name in "abc")
        assert all(torch.equal(a[key], b[key]) for key in a)
        assert any(not torch.equal(a[key], c[key]) for key in a)

    def test_first_loss_must_be_ln_2(self, student, tokenizer, tmp_path):
        """A reference that is not the student's stops the run at once."""
        from deltalearn.tune import train as engine

        original = engine.reference_logprobs

        def wrong(*args, **kwargs):
            values = original(*args, **kwargs)
            return values - 0.1 * torch.arange(len(values))

        with pytest.MonkeyPatch.context() as patch, pytest.raises(UserError, match="instead of"):
            patch.setattr(engine, "reference_logprobs", wrong)
            run(student, tokenizer, tmp_path, self.spec)
        assert not (tmp_path / "final").exists()

    def test_too_few_pairs(self, student, tokenizer, tmp_path):
        with pytest.raises(UserError, match="8 pairs to train on do not fill one batch of 32"):
            run(student, tokenizer, tmp_path, TuneSpec())

    def test_a_diverging_run_stops_with_the_remedy(self, student, tokenizer, tmp_path):
        spec = TuneSpec(lr=1e30, batch_size=4, steps=12)
        with pytest.raises(UserError, match=r"lower tune\.lr"):
            run(student, tokenizer, tmp_path, spec)

    @pytest.mark.slow
    @pytest.mark.parametrize("method", [m for m in METHODS if m != "dpo_norm"])
    def test_every_method_learns(self, student, tokenizer, tmp_path, method):
        """Chosen answers become likelier against rejected ones, or likelier at all (sft)."""
        beta = {"sppo": 1.0, "ipo": 1.0}.get(method)
        spec = TuneSpec(method=method, beta=beta, lr=1e-3, batch_size=4, steps=8)
        run(student, tokenizer, tmp_path, spec)
        lines = log(tmp_path)
        assert lines[-1]["loss"] < lines[0]["loss"]
        if method != "sft":
            assert lines[-1]["margin"] > lines[0]["margin"]

    @pytest.mark.slow
    @pytest.mark.parametrize("scheduler", ["cosine", "linear", "constant"])
    @pytest.mark.parametrize("optimizer", ["adamw", "adafactor"])
    def test_schedulers_and_optimisers_take_effect(
        self, student, tokenizer, tmp_path, scheduler, optimizer
    ):
        changes = {"scheduler": scheduler, "optimizer": optimizer}
        run(student, tokenizer, tmp_path, self.spec.model_copy(update=changes))
        rates = [line["lr"] for line in log(tmp_path)]
        assert (rates[-1] == 1e-3) == (scheduler == "constant")
        assert log(tmp_path)[-1]["loss"] < 0.69

    @pytest.mark.parametrize("betas", [(0.9, 1), (1, 0.95)])
    def test_a_moment_that_would_never_move_is_refused(self, betas):
        """At 1 Adam divides by zero: the first step would be no number."""
        with pytest.raises(ValidationError, match="less than 1"):
            TuneSpec(adam_betas=betas)

    @pytest.mark.parametrize("attention", ["sdpa", "segments"])
    def test_bfloat16_is_mixed_precision(self, student, tokenizer, tmp_path, attention):
        """Weights stay float32 while training; the saved model is bfloat16."""
        spec = self.spec.model_copy(update={"attention": attention})
        examples, _ = prepare_examples(tokenizer, rows(), 64)
        with ReferenceCache(tmp_path / "r.sqlite") as reference:
            bf16 = place("cpu", "bfloat16")
            tune(student, examples, spec, 0, tmp_path, reference=reference, placement=bf16)
        assert {t.dtype for t in weights(tmp_path).values()} == {torch.bfloat16}
        run(student, tokenizer, tmp_path / "full", spec)
        losses = [line["loss"] for line in log(tmp_path)]
        exact = [line["loss"] for line in log(tmp_path / "full")]
        assert losses == pytest.approx(exact, abs=0.05)
        assert losses != exact

    def test_a_small_beta_is_warned_of(self, student, tokenizer, tmp_path, capsys):
        """Beta 0.1, meant for sums, makes the normalised loss nearly a no-op."""
        spec = TuneSpec(lr=1e-4, batch_size=4, steps=1, beta=0.1)
        run(student, tokenizer, tmp_path, spec)
        assert "beta 0.1 is small for dpo_norm" in capsys.readouterr().err
        run(student, tokenizer, tmp_path / "b", spec.model_copy(update={"method": "dpo"}))
        assert "small" not in capsys.readouterr().err

    def test_says_layout_and_memory_before_the_start(self, student, tokenizer, tmp_path):
        said = []
        run(student, tokenizer, tmp_path, self.spec, say=said.append)
        assert any("shared rows, sdpa attention (short texts on a CPU)" in line for line in said)
        assert any("memory estimated" in line and "moments" in line for line in said)

    def test_sft_needs_no_reference(self, student, tokenizer, tmp_path):
        spec = TuneSpec(method="sft", lr=1e-3, batch_size=4, steps=6)
        _, scored = run(student, tokenizer, tmp_path, spec)
        assert scored == 0
        lines = log(tmp_path)
        assert lines[-1]["loss"] < lines[0]["loss"]
        assert "margin" not in lines[0]


class TestEvaluation:
    """Held-out pairs and a dev suite on the way, keep-best, early stopping."""

    spec = TuneSpec(lr=1e-3, batch_size=3, steps=6, eval_pairs=2, eval_every=2)

    def evals(self, out: Path) -> list[dict]:
        return [json.loads(line) for line in (out / "evals.jsonl").read_text().splitlines()]

    def test_held_out_pairs_are_not_trained_on(self, student, tokenizer, tmp_path):
        examples, _ = prepare_examples(tokenizer, [*rows(), *rows()], 64)
        train, held = split_held_out(examples, 3)
        assert len(train) + len(held) == 16
        prompts = [{tuple(examples[i].prompt) for i in side} for side in (train, held)]
        assert not prompts[0] & prompts[1], "a prompt is on one side"
        assert len(held) == 4, "both pairs of the second prompt"
        result, _ = run(student, tokenizer, tmp_path, self.spec)
        assert (result["examples"], result["held_out"]) == (6, 2)

    def test_metrics_equal_those_of_the_final_model(self, student, tokenizer, tmp_path):
        run(student, tokenizer, tmp_path, self.spec)
        evals = self.evals(tmp_path)
        assert [e["step"] for e in evals] == [2, 4, 6]
        examples, _ = prepare_examples(tokenizer, rows(), 64)
        _, held = split_held_out(examples, 2)
        sums = {}
        for name, files in {"now": locate(str(tmp_path / "final")), "before": student}.items():
            model = load_model(files, CPU)
            answers = [(examples[i].prompt, a) for i in held
                       for a in (examples[i].chosen, examples[i].rejected)]  # fmt: skip
            scores = dict(score_answers(model, answers))
            sums[name] = torch.tensor([scores[i] / len(answers[i][1]) for i in range(4)])
        moved = sums["now"] - sums["before"]
        margin = (moved[0::2] - moved[1::2]).mean()
        assert evals[-1]["eval_margin"] == pytest.approx(margin.item(), abs=1e-4)

    def test_keep_best_saves_the_best_and_patience_stops(self, student, tokenizer, tmp_path):
        """A dev score that falls after the first evaluation: the final model is that of step 2."""
        scores = iter([0.5, 0.4, 0.3, 0.9, 0.9])
        spec = self.spec.model_copy(
            update={"keep_best": True, "patience": 2, "steps": 12, "checkpoint_every": 1}
        )
        result, _ = run(
            student, tokenizer, tmp_path, spec, dev=lambda model: {"accuracy": next(scores)}
        )
        assert (result["best_step"], result["steps"]) == (2, 6)
        lines = log(tmp_path)
        assert result["last"] == {**lines[-1], "final_step": 2}
        assert (lines[-1]["stopped_early"], lines[-1]["planned_steps"]) == (True, 12)
        assert [line["step"] for line in lines] == [1, 2, 3, 4, 5, 6]
        assert not any("stopped_early" in line for line in lines[:-1])
        stop_at_two = self.spec.model_copy(update={"steps": 12})

        class Enough(Exception):
            pass

        original, kept = Run.evaluate, {}

        def evaluate(self, step, lines):
            model = self.accelerator.unwrap_model(self.policy)
            kept.update({n: p.detach().clone() for n, p in model.named_parameters()})
            raise Enough

        with pytest.MonkeyPatch.context() as patch, pytest.raises(Enough):
            patch.setattr(Run, "evaluate", evaluate)
            run(student, tokenizer, tmp_path / "two", stop_at_two)
        assert original is Run.evaluate
        final = load_model(locate(str(tmp_path / "final")), CPU)
        for name, parameter in final.named_parameters():
            assert torch.equal(parameter, kept[name]), name

    @pytest.mark.slow
    @pytest.mark.parametrize(
        ("losses", "best", "told"),
        [
            ([0.5, 0.6], True, "stopped early after 4 of 40 steps in # s; final is step 2;"),
            ([0.5, 0.6], False, "stopped early after 4 of 40 steps in # s; last step:"),
            ([0.5] + 18 * [0.4, 0.5] + 3 * [0.6], True, "40 steps in # s; final is step 4;"),
            ([1 / n for n in range(1, 21)], True, "40 steps in # s; last step:"),
        ],
        ids=["early, best", "early, last", "whole, best", "whole, last"],
    )
    def test_the_closing_line_says_what_was_done(
        self, tmp_path, write_lines, monkeypatch, losses, best, told
    ):
        """Steps taken, not planned, and which of them `final` is."""
        left = iter(losses)
        monkeypatch.setattr(Run, "held_out_metrics", lambda self: {"loss": next(left)})
        texts = [{"prompt": t, "chosen": t[::-1], "rejected": t[1:]} for t in TEXTS]
        options = {
            "student.path": STUDENT,
            "pairs.source": str(write_lines(texts)),
            "device": "cpu",
        }
        settings = [
            "device=cpu",
            "batch_size=2",
            "steps=40",
            "eval_pairs=2",
            "eval_every=2",
            "lr=1e-5",
        ]
        patience = 1 if len(losses) == 2 else 40
        settings += [f"patience={patience}", f"keep_best={str(best).lower()}"]
        said = []
        loaded = load_recipe(None, settings, command=TUNE, options=options)
        run_tune(loaded, tmp_path / "out", say=said.append)
        shown = re.sub(r"in [\d.]+ s", "in # s", said[-1])
        assert shown.startswith(f"{tmp_path / 'out' / 'final'}: {told}"), said[-1]

    def test_best_survives_a_resume(self, student, tokenizer, tmp_path):
        spec = self.spec.model_copy(update={"keep_best": True, "checkpoint_every": 1})
        whole = [0.5, 0.4, 0.3]
        with pytest.raises(KeyboardInterrupt):
            run(student, tokenizer, tmp_path, spec, dev=scores_then_stop(whole[:1]))
        result, _ = run(student, tokenizer, tmp_path, spec, dev=scores_then_stop(whole[1:]))
        assert result["resumed_at"] == 3
        assert result["best_step"] == 2
        assert [e["dev_accuracy"] for e in self.evals(tmp_path)] == whole

    @pytest.mark.slow
    @pytest.mark.parametrize("metric", ["expected_accuracy", "greedy_accuracy"])
    @pytest.mark.parametrize("lora", [None, LoraSpec(r=4)], ids=["full", "lora"])
    def test_dev_suite_of_a_recipe(self, student, tokenizer, tmp_path, lab_ladder, lora, metric):
        """The score of the final model by the evaluate stage is the last one logged.

        With adapters too, which are merged into the final model and must count on the way.
        """
        dev = DevSpec(source=str(lab_ladder / "eval.jsonl"), limit=30, metric=metric, max_tokens=8)
        spec = TuneSpec(lr=1e-2 if lora else 1e-3, batch_size=4, steps=4, dev=dev, eval_every=2)
        spec = spec.model_copy(update={"lora": lora})
        run(student, tokenizer, tmp_path, spec, dev=dev_scores(dev, student))

        def mean(files) -> float:
            rows = score_files(
                files, read_items(dev.source, limit=30),
                Asked((metric,), SCORERS["exact"], 8, 4096), placement=CPU
            )  # fmt: skip
            return sum(row[metric] for row in rows) / len(rows)

        last = self.evals(tmp_path)[-1][f"dev_{metric}"]
        assert last == pytest.approx(mean(locate(str(tmp_path / "final"))), rel=1e-4)
        assert last != pytest.approx(mean(student), rel=0.02)

    @pytest.mark.parametrize("lora", [None, LoraSpec(r=4)], ids=["full", "lora"])
    @pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
    def test_a_dev_suite_shares_prompts_in_low_precision_too(
        self, student, tokenizer, tmp_path, dtype, lora
    ):
        """Weights under autocast are float32, but must not be held to float32's rounding."""
        trees = [Tree([5, 6, 7], ([8, 9], [10, 11, 12]))]
        spec = TuneSpec(lr=1e-4, batch_size=4, steps=1, lora=lora)
        said = []

        def dev(model):
            said.append(str(choose_rows(model, trees)))
            return {"score": 0.0}

        run(student, tokenizer, tmp_path, spec, dev=dev, placement=place("cpu", dtype))
        assert said == ["shared rows, sdpa attention (short texts on a CPU)"]


def scores_then_stop(scores):
    """A dev suite that gives `scores`, then Ctrl-C at the evaluation after them."""
    left = list(scores)

    def dev(model):
        if not left:
            raise KeyboardInterrupt
        return {"accuracy": left.pop(0)}

    return dev


class TestStop:
    """SIGINT and SIGTERM finish the step, save and leave; the next start goes on from there."""

    spec = TuneSpec(lr=1e-3, batch_size=4, steps=12, checkpoint_every=100)

    @pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
    def test_saves_and_resumes_bit_exactly(self, student, tokenizer, tmp_path, number):
        run(student, tokenizer, tmp_path / "whole", self.spec)
        original = Run.step

        def step(self, at, stop):
            if at == 5:
                os.kill(os.getpid(), number)
            return original(self, at, stop)

        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(Run, "step", step)
            with pytest.raises(KeyboardInterrupt, match=r"stopped after step [67] of 12"):
                run(student, tokenizer, tmp_path / "cut", self.spec)
        assert signal.getsignal(number) is not None
        result, _ = run(student, tokenizer, tmp_path / "cut", self.spec)
        assert result["resumed_at"] in (6, 7)
        whole, cut = weights(tmp_path / "whole"), weights(tmp_path / "cut")
        assert all(torch.equal(whole[key], cut[key]) for key in whole)


class TestResume:
    """Killed and resumed equals uninterrupted, to the bit; another run is refused."""

    spec = TuneSpec(lr=1e-3, batch_size=4, steps=12, checkpoint_every=3)

    def interrupted(self, student, tokenizer, out: Path, at: int, spec=None) -> None:
        original = Run.step

        def step(self, number, stop):
            if number == at:
                raise KeyboardInterrupt
            return original(self, number, stop)

        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(Run, "step", step)
            with pytest.raises(KeyboardInterrupt):
                run(student, tokenizer, out, spec or self.spec)

    @pytest.mark.slow
    @pytest.mark.parametrize(
        ("at", "changes"),
        [
            (2, {}),
            (3, {}),
            (11, {"optimizer": "adafactor"}),
            (7, {"lora": LoraSpec(r=4, dropout=0.2)}),
            (7, {"lora": LoraSpec(r=4, bits=4)}),
            (7, {"weight_decay": 0.1, "gradient_checkpointing": True}),
        ],
    )
    def test_bit_exact(self, student, tokenizer, tmp_path, at, changes):
        spec = self.spec.model_copy(update=changes)
        run(student, tokenizer, tmp_path / "whole", spec)
        self.interrupted(student, tokenizer, tmp_path / "cut", at, spec)
        result, scored = run(student, tokenizer, tmp_path / "cut", spec)
        assert result["resumed_at"] == at // 3 * 3
        assert scored == 0
        whole, cut = weights(tmp_path / "whole"), weights(tmp_path / "cut")
        assert all(torch.equal(whole[key], cut[key]) for key in whole)
        drop = {"seconds"}
        for a, b in zip(log(tmp_path / "whole"), log(tmp_path / "cut"), strict=True):
            assert {k: a[k] for k in a.keys() - drop} == {k: b[k] for k in b.keys() - drop}

    def test_seconds_count_all_starts(self, student, tokenizer, tmp_path, monkeypatch):
        """Work between two starts is told as one time; a checkpoint without it still loads."""
        clock = iter(range(0, 10_000, 10))
        watch = SimpleNamespace(monotonic=lambda: next(clock))
        monkeypatch.setattr("deltalearn.tune.loop.time", watch)
        self.interrupted(student, tokenizer, tmp_path, 7)
        shutil.copytree(tmp_path, tmp_path / "old")
        (state,) = (tmp_path / "old").glob("checkpoints/*/state.json")
        saved = json.loads(state.read_text())
        assert saved["progress"].pop("seconds") == 60
        state.write_text(json.dumps(saved))
        result, _ = run(student, tokenizer, tmp_path, self.spec)
        assert [line["seconds"] for line in log(tmp_path)] == list(range(10, 130, 10))
        assert result["last"]["seconds"] == 120
        result, _ = run(student, tokenizer, tmp_path / "old", self.spec)
        assert (result["resumed_at"], result["last"]["seconds"]) == (6, 60)

    @pytest.mark.parametrize(
        ("change", "named"),
        [
            ({"lr": 2e-3}, r"lr \(0.001, now 0.002\)"),
            ({"beta": 1.0}, r"beta \(None, now 1.0\)"),
            ({"eval_pairs": 1}, "eval_pairs"),
        ],
    )
    def test_changed_settings_are_refused(self, student, tokenizer, tmp_path, change, named):
        self.interrupted(student, tokenizer, tmp_path, 7)
        with pytest.raises(UserError, match=f"other {named}"):
            run(student, tokenizer, tmp_path, self.spec.model_copy(update=change))

    @pytest.mark.parametrize(
        "change", [{"checkpoint_every": 1}, {"token_budget": 40}, {"layout": "padded"}]
    )
    def test_what_changes_speed_only_is_no_other_run(self, student, tokenizer, tmp_path, change):
        self.interrupted(student, tokenizer, tmp_path, 7)
        result, _ = run(student, tokenizer, tmp_path, self.spec.model_copy(update=change))
        assert result["resumed_at"] == 6

    def test_another_seed_is_refused(self, student, tokenizer, tmp_path):
        self.interrupted(student, tokenizer, tmp_path, 7)
        with pytest.raises(UserError, match="other seed"):
            run(student, tokenizer, tmp_path, self.spec, seed=1)

    def test_a_torn_checkpoint_is_ignored(self, student, tokenizer, tmp_path):
        self.interrupted(student, tokenizer, tmp_path, 7)
        torn = tmp_path / "checkpoints" / ".step-9.tmp"
        torn.mkdir()
        (torn / "model.safetensors").write_bytes(b"half")
        result, _ = run(student, tokenizer, tmp_path, self.spec)
        assert result["resumed_at"] == 6

    @pytest.mark.slow
    def test_killed_process(self, student, tokenizer, tmp_path):
        """SIGKILL from outside, at whatever it was doing after its first checkpoint."""
        run(student, tokenizer, tmp_path / "whole", self.spec)
        code = (
            "import sys; from pathlib import Path; sys.path[:0] = sys.argv[2:];"
            "import time; from deltalearn.tune.loop import Run; old = Run.step;"
            "Run.step = lambda s, n, stop: (time.sleep(.2), old(s, n, stop))[1];"
            "import test_tune_run as t; f = t.locate(t.STUDENT);"
            "t.run(f, t.load_tokenizer(f), Path(sys.argv[1]), t.TestResume.spec)"
        )
        out = tmp_path / "killed"
        folders = [str(Path(__file__).parents[up]) for up in (0, 1)]
        child = subprocess.Popen([sys.executable, "-c", code, str(out), *folders])
        deadline = time.monotonic() + 120
        while not list(out.glob("checkpoints/step-*/state.json")):
            assert child.poll() is None, "the run ended before its first checkpoint"
            assert time.monotonic() < deadline
            time.sleep(0.02)
        os.kill(child.pid, signal.SIGKILL)
        child.wait()
        assert not (out / "final").exists()
        result, _ = run(student, tokenizer, out, self.spec)
        assert result["resumed_at"] >= 3
        whole, killed = weights(tmp_path / "whole"), weights(out)
        assert all(torch.equal(whole[key], killed[key]) for key in whole)
