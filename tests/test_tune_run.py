"""Protects a tuning run as a whole: text to ids, the reference cache, guards, checkpoints, resume.

Each case of the peers' bug list that touches tuning has its number (B1, B2, ...) beside it.
"""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file

from deltalearn.errors import UserError
from deltalearn.lm.load import load_model, load_tokenizer, place
from deltalearn.lm.locate import locate
from deltalearn.recipe import TuneSpec
from deltalearn.tune import ReferenceCache, prepare_examples, tune

CPU = place("cpu", "float32")
STUDENT = "package://deltalearn.lab/ladder/m"
TEXTS = ["abcd", "bcda", "cdab", "dabc", "acbd", "bdca", "cadb", "dbac"]


def row(prompt: str, chosen: str, rejected: str, *, ends=("stop", "stop")) -> dict:
    return {
        "prompt_id": prompt,
        "prompt": [{"role": "user", "content": prompt}],
        "chosen": [{"role": "assistant", "content": chosen}],
        "rejected": [{"role": "assistant", "content": rejected}],
        "chosen_finish_reason": ends[0],
        "rejected_finish_reason": ends[1],
    }


def rows() -> list[dict]:
    return [row(f"rev {t}", t[::-1], t[:0:-1]) for t in TEXTS]


@pytest.fixture(scope="module")
def student():
    return locate(STUDENT)


@pytest.fixture(scope="module")
def tokenizer(student):
    return load_tokenizer(student)


def run(student, tokenizer, out: Path, spec: TuneSpec, seed: int = 0, cache: Path | None = None):
    examples, _ = prepare_examples(tokenizer, rows(), 64)
    with ReferenceCache(cache or out / "reference.sqlite") as reference:
        result = tune(student, examples, spec, seed, out, reference=reference, placement=CPU)
        return result, reference.scored


def weights(out: Path) -> dict[str, torch.Tensor]:
    return load_file(out / "final" / "model.safetensors")


def log(out: Path) -> list[dict]:
    return [json.loads(line) for line in (out / "log.jsonl").read_text().splitlines()]


class TestTextToIds:
    def test_end_only_where_the_generator_ended(self, tokenizer):
        """B2, B7, B11: one end-of-turn id after a finished answer, none after a cut one."""
        examples, _ = prepare_examples(
            tokenizer, [row("rev abc", "cba", "cb", ends=("stop", "length"))], 64
        )
        end = tokenizer.eos_token_id
        assert examples[0].chosen.count(end) == 1
        assert examples[0].chosen[-1] == end
        assert end not in examples[0].rejected

    def test_answer_ids_are_exact(self, tokenizer):
        """B1, B3: nothing between answer and end, spaces kept, text survives the round trip."""
        examples, counts = prepare_examples(tokenizer, [row("rev abc", " cb a ", "b")], 64)
        assert tokenizer.decode(examples[0].chosen[:-1]) == " cb a "
        assert counts.altered == 0

    def test_pair_that_the_template_refuses_is_named(self, tokenizer):
        bad = row("rev abc", "cba", "b")
        bad["prompt"] = [{"role": "system", "content": "be brief"}, *bad["prompt"]]
        with pytest.raises(UserError, match="pair of prompt 'rev abc': the chat template refuses"):
            prepare_examples(tokenizer, [*rows(), bad], 64)

    def test_altered_answers_are_counted(self, tokenizer):
        _, counts = prepare_examples(tokenizer, [row("rev abc", "Ω", "b")], 64)
        assert counts.altered == 1

    def test_training_prompt_is_the_inference_prompt(self, tokenizer):
        """B4, B5, B12: the generation header is there, rendered as when generating."""
        examples, _ = prepare_examples(tokenizer, [row("rev abc", "cba", "cb")], 64)
        assert tokenizer.decode(examples[0].prompt) == "<|user|>rev abc<|assistant|>"

    def test_drops_are_counted(self, tokenizer):
        """B8, B9: identical ids, empty and over-long answers."""
        examples, counts = prepare_examples(
            tokenizer,
            [
                row("rev abc", "cba", "cb"),
                row("rev abc", "Ω", "Σ"),  # different texts, the same unknown id
                row("rev abc", "", "b"),
                row("rev abc", "a" * 60, "b"),
            ],
            64,
        )
        assert len(examples) == 1
        assert counts.as_dict()["dropped"] == {"too_long": 1, "empty": 1, "identical_ids": 1}

    def test_pad_equal_to_end_keeps_the_end_trained(self, student, tokenizer):
        """B10: labels come from lengths, never from comparing ids with the pad id."""
        from deltalearn.lm.logprobs import collate

        end = tokenizer.eos_token_id
        batch = collate([((2, 3), (5, end)), ((2, 3), (5, 6, end))])
        assert batch.targets.tolist() == [5, end, 5, 6, end]


class TestReferenceCache:
    rows = (((1, 2), (3, 4)), ((1,), (2, 3, 4)), ((1, 2), (3, 4)))

    def score(self, asked: list):
        def scorer(missing):
            asked.extend(missing)
            return ((i, -float(sum(a))) for i, (_, a) in enumerate(missing))

        return scorer

    def test_scores_each_answer_once_for_good(self, tmp_path):
        """B19: nothing but weights, precision and ids is in the key."""
        asked: list = []
        with ReferenceCache(tmp_path / "r.sqlite") as cache:
            assert cache.logprobs("m:float32", self.rows, self.score(asked)) == [-7, -9, -7]
            assert len(asked) == cache.scored == 2
        with ReferenceCache(tmp_path / "r.sqlite") as cache:
            again = cache.logprobs("m:float32", self.rows[::-1], self.score(asked))
            assert again == [-7, -9, -7]
            assert cache.scored == 0
        assert len(asked) == 2

    def test_other_weights_or_precision_miss(self, tmp_path):
        """B18, B20."""
        with ReferenceCache(tmp_path / "r.sqlite") as cache:
            for scope in ("m:float32", "m:bfloat16", "n:float32"):
                before = cache.scored
                cache.logprobs(scope, self.rows, self.score([]))
                assert cache.scored == before + 2

    def test_split_between_prompt_and_answer_matters(self, tmp_path):
        with ReferenceCache(tmp_path / "r.sqlite") as cache:
            values = cache.logprobs("m", [((1, 2), (3,)), ((1,), (2, 3))], self.score([]))
            assert values == [-3, -5]

    def test_what_was_scored_before_a_failure_is_kept(self, tmp_path, monkeypatch):
        monkeypatch.setattr("deltalearn.tune.reference.COMMIT_EVERY", 1)

        def failing(missing):
            yield 0, -1.0
            raise RuntimeError("power cut")

        with ReferenceCache(tmp_path / "r.sqlite") as cache, pytest.raises(RuntimeError):
            cache.logprobs("m", self.rows, failing)
        with ReferenceCache(tmp_path / "r.sqlite") as cache:
            cache.logprobs("m", self.rows, self.score([]))
            assert cache.scored == 1

    def test_arms_share_it_and_other_settings_do_not_score_again(
        self, student, tokenizer, tmp_path
    ):
        cache = tmp_path / "shared.sqlite"
        spec = TuneSpec(lr=1e-4, batch_size=4, steps=1)
        _, first = run(student, tokenizer, tmp_path / "a", spec, cache=cache)
        assert first == 16
        for name, other in {
            "b": spec.model_copy(update={"lr": 2e-4}),
            "c": spec.model_copy(update={"beta": 10.0, "steps": 2}),
            "d": spec.model_copy(update={"method": "dpo"}),
        }.items():
            _, scored = run(student, tokenizer, tmp_path / name, other, cache=cache)
            assert scored == 0, name

    def test_changed_weights_under_the_same_path_score_again(self, tokenizer, tmp_path):
        """B20, end to end: the fingerprint is of the files, not of the path."""
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
        assert suffixes <= {".safetensors", ".json", ".jsonl", ".jinja", ".sqlite"}

    def test_same_seed_same_weights_other_seed_others(self, student, tokenizer, tmp_path):
        for name, seed in (("a", 0), ("b", 0), ("c", 1)):
            run(student, tokenizer, tmp_path / name, self.spec, seed)
        a, b, c = (weights(tmp_path / name) for name in "abc")
        assert all(torch.equal(a[key], b[key]) for key in a)
        assert any(not torch.equal(a[key], c[key]) for key in a)

    def test_first_loss_must_be_ln_2(self, student, tokenizer, tmp_path):
        """B24: a reference that is not the student's stops the run at once."""
        examples, _ = prepare_examples(tokenizer, rows(), 64)

        class Wrong(ReferenceCache):
            def logprobs(self, scope, rows, score):
                values = super().logprobs(scope, rows, score)
                return [v - 0.1 * i for i, v in enumerate(values)]

        settings = {"reference": Wrong(tmp_path / "r.sqlite"), "placement": CPU}
        with pytest.raises(UserError, match="instead of ln 2"):
            tune(student, examples, self.spec, 0, tmp_path, **settings)
        assert not (tmp_path / "final").exists()

    def test_too_few_pairs(self, student, tokenizer, tmp_path):
        with pytest.raises(UserError, match="8 usable pairs do not fill one batch of 32"):
            run(student, tokenizer, tmp_path, TuneSpec())

    def test_a_diverging_run_stops_with_the_remedy(self, student, tokenizer, tmp_path):
        spec = TuneSpec(lr=1e30, batch_size=4, steps=12)
        with pytest.raises(UserError, match=r"lower tune\.lr"):
            run(student, tokenizer, tmp_path, spec)

    def test_sft_needs_no_reference(self, student, tokenizer, tmp_path):
        spec = TuneSpec(method="sft", lr=1e-3, batch_size=4, steps=6)
        _, scored = run(student, tokenizer, tmp_path, spec)
        assert scored == 0
        lines = log(tmp_path)
        assert lines[-1]["loss"] < lines[0]["loss"]
        assert "margin" not in lines[0]


class TestResume:
    """B21, B25: killed and resumed equals uninterrupted, to the bit; another run is refused."""

    spec = TuneSpec(lr=1e-3, batch_size=4, steps=12, checkpoint_every=3)

    def interrupted(self, student, tokenizer, out: Path, at: int) -> None:
        from deltalearn.tune.loop import _Run

        original = _Run.step

        def step(self, number):
            if number == at:
                raise KeyboardInterrupt
            return original(self, number)

        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(_Run, "step", step)
            with pytest.raises(KeyboardInterrupt):
                run(student, tokenizer, out, self.spec)

    @pytest.mark.parametrize("at", [2, 3, 7, 11])
    def test_bit_exact(self, student, tokenizer, tmp_path, at):
        run(student, tokenizer, tmp_path / "whole", self.spec)
        self.interrupted(student, tokenizer, tmp_path / "cut", at)
        result, scored = run(student, tokenizer, tmp_path / "cut", self.spec)
        assert result["resumed_at"] == at // 3 * 3
        assert scored == 0
        whole, cut = weights(tmp_path / "whole"), weights(tmp_path / "cut")
        assert all(torch.equal(whole[key], cut[key]) for key in whole)
        drop = {"seconds"}
        for a, b in zip(log(tmp_path / "whole"), log(tmp_path / "cut"), strict=True):
            assert {k: a[k] for k in a.keys() - drop} == {k: b[k] for k in b.keys() - drop}

    @pytest.mark.parametrize(
        ("change", "named"), [({"lr": 2e-3}, "settings"), ({"beta": 1.0}, "settings")]
    )
    def test_changed_settings_are_refused(self, student, tokenizer, tmp_path, change, named):
        self.interrupted(student, tokenizer, tmp_path, 7)
        with pytest.raises(UserError, match=f"other {named}"):
            run(student, tokenizer, tmp_path, self.spec.model_copy(update=change))

    def test_saving_more_often_is_no_other_run(self, student, tokenizer, tmp_path):
        self.interrupted(student, tokenizer, tmp_path, 7)
        often = self.spec.model_copy(update={"checkpoint_every": 1})
        result, _ = run(student, tokenizer, tmp_path, often)
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
            "import sys; from pathlib import Path; sys.path.insert(0, sys.argv[1]);"
            "import time; from deltalearn.tune.loop import _Run; old = _Run.step;"
            "_Run.step = lambda s, n: (time.sleep(.2), old(s, n))[1];"
            "import test_tune_run as t; f = t.locate(t.STUDENT);"
            "t.run(f, t.load_tokenizer(f), Path(sys.argv[2]), t.TestResume.spec)"
        )
        out = tmp_path / "killed"
        child = subprocess.Popen([sys.executable, "-c", code, str(Path(__file__).parent), str(out)])
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
