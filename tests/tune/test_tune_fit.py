"""Protects what a config can tell before weights are read: ids and positions that have no place.

Also the layout that a dry run says the run will take, which must be the one it then takes.
"""

from __future__ import annotations

import json
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from transformers import (
    AutoConfig,
    AutoModelForCausalLM,
    GPT2Config,
    LlamaConfig,
    MistralConfig,
    NemotronHConfig,
    OPTConfig,
)

from deltalearn import cli
from deltalearn.errors import UserError
from deltalearn.tune import train as engine
from deltalearn.tune.fit import PairLengths, check_fit, config_obstacle

SHORT = "The quick brown fox"
LONG = "@ " * 40  # a token a character: longer than 64 and than a window of 16
MODES = [["--preview"], ["--dry-run"], []]
SMALL = {
    "hidden_size": 32,
    "intermediate_size": 64,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "bos_token_id": None,
}


def lengths(prompt: int, chosen: int, rejected: int) -> PairLengths:
    return PairLengths(*(np.array([1, n]) for n in (prompt, chosen, rejected)))


class TestPositions:
    """70 tokens: 10 of a prompt, 60 of the longer answer."""

    pairs = lengths(10, 20, 60)

    @pytest.mark.parametrize(
        "config",
        [
            GPT2Config(n_positions=64, n_layer=1),
            OPTConfig(max_position_embeddings=64, num_hidden_layers=1),
        ],
        ids=lambda config: config.model_type,
    )
    def test_of_a_table_are_an_error(self, config):
        text = "has 70 tokens and the model has 64 positions; give --max-length 64"
        with pytest.raises(UserError, match=text):
            check_fit(config, self.pairs, "dpo")
        assert check_fit(config, self.pairs, "sft") is None, "30 tokens: the other side is not read"
        config.max_position_embeddings = 70
        assert check_fit(config, self.pairs, "dpo") is None

    @pytest.mark.parametrize(
        "config",
        [LlamaConfig(max_position_embeddings=64), NemotronHConfig(max_position_embeddings=64)],
        ids=lambda config: config.model_type,
    )
    def test_that_are_computed_are_a_warning(self, config):
        warning = check_fit(config, self.pairs, "dpo")
        assert warning.startswith("warning: the longest prompt with its answer has 70 tokens")
        assert "made for 64 positions; give --max-length 64" in warning
        assert check_fit(config, lengths(10, 54, 54), "dpo") is None


def test_an_id_without_a_row():
    config = LlamaConfig(vocab_size=300)
    assert check_fit(config, lengths(1, 1, 1), "dpo", 299) is None
    with pytest.raises(UserError, match="id 300 of these pairs and the model has 300 rows"):
        check_fit(config, lengths(1, 1, 1), "dpo", 300)


@pytest.fixture
def tune(monkeypatch, capsys, tmp_path):
    """`tune(config, answer, ...)` tunes a new model on two pairs; (code, what it printed)."""

    def run(config, tokenizer, answer: str, *arguments: str, weights: bool = True):
        model = tmp_path / "model"
        torch.manual_seed(0)
        AutoModelForCausalLM.from_config(config).save_pretrained(model)
        tokenizer.save_pretrained(model)
        if not weights:
            monkeypatch.setattr(engine, "load_student", None)
        rows = [{"prompt": p, "chosen": SHORT, "rejected": answer} for p in ("fox?", "dog?")]
        (tmp_path / "pairs.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
        command = ["--student", model, "--pairs", tmp_path / "pairs.jsonl", "--batch-size", "2"]
        command += ["--device", "cpu", "--out", tmp_path / "out", *arguments]
        monkeypatch.setattr(sys, "argv", ["deltalearn", "tune", *map(str, command)])
        code = 0
        try:
            cli.main()
        except SystemExit as end:
            code = end.code or 0
        printed = capsys.readouterr()
        return code, printed.out + printed.err

    return run


@pytest.mark.parametrize("mode", MODES, ids=str)
class TestCommand:
    """Every mode says so, and no weights are read for it."""

    def test_too_few_positions(self, tune, tiny_tokenizer, mode):
        config = GPT2Config(
            vocab_size=len(tiny_tokenizer), n_embd=32, n_layer=1, n_head=2, n_positions=64
        )
        code, text = tune(config, tiny_tokenizer, LONG, *mode, weights=False)
        assert code == 2
        assert "the model has 64 positions" in text

    def test_too_few_rows(self, tune, tiny_tokenizer, mode):
        config = LlamaConfig(vocab_size=290, **SMALL)
        code, text = tune(config, tiny_tokenizer, SHORT + " dog", *mode, weights=False)
        assert code == 2
        assert "the model has 290 rows of embeddings" in text

    def test_further_than_the_model_was_made_for(self, tune, tiny_tokenizer, mode):
        config = LlamaConfig(vocab_size=len(tiny_tokenizer), max_position_embeddings=64, **SMALL)
        code, text = tune(config, tiny_tokenizer, LONG, *mode)
        assert code == 0, text
        assert "warning: the longest prompt with its answer has" in text


class TestLayout:
    def test_a_window_makes_padded_rows_in_the_run_and_in_the_dry_run(self, tune, tiny_tokenizer):
        config = MistralConfig(vocab_size=len(tiny_tokenizer), sliding_window=16, **SMALL)
        reason = "its attention window of 16 tokens is shorter than the longest pair"
        _, text = tune(config, tiny_tokenizer, LONG, "--dry-run")
        (marked,) = [line for line in text.splitlines() if "<- this run" in line]
        assert marked.startswith("padded")
        assert f"Padded rows: {reason}" in text
        _, text = tune(config, tiny_tokenizer, LONG)
        assert f"layout: padded rows ({reason})" in text
        for more in (["--dry-run"], ["--beta", "1", "--update"]):
            code, text = tune(config, tiny_tokenizer, LONG, "--layout", "shared", *more)
            assert code == 2
            assert f"layout 'shared' cannot be used: {reason}; use padded or auto" in text

    def test_a_window_that_holds_every_pair_is_none(self):
        config = MistralConfig(sliding_window=64, num_hidden_layers=1)
        assert config_obstacle(config, lengths(10, 20, 54), "dpo") == ""
        assert "64 tokens" in config_obstacle(config, lengths(10, 20, 55), "dpo")
        assert config_obstacle(config, lengths(10, 20, 55), "sft") == ""


def test_a_tiny_model_fits(tiny_model: Path):
    """What the other tests tune meets none of this."""
    config = AutoConfig.from_pretrained(tiny_model)
    assert check_fit(config, lengths(36, 60, 60), "dpo", 319) is None
