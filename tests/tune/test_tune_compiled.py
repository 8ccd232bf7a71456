"""Protects compiled layers: the same steps as without, an ordinary model, a clear refusal."""

from __future__ import annotations

import json

import pytest
import torch

from deltalearn.errors import UserError
from deltalearn.lm import attention
from deltalearn.lm.load import load_model, load_tokenizer, place
from deltalearn.lm.locate import locate
from deltalearn.recipe import TuneSpec
from deltalearn.tune import PairRow, ReferenceCache, prepare_examples, tune
from deltalearn.tune.compiled import compile_layers

STUDENT = "package://deltalearn.lab/ladder/xs"
TEXTS = ["abcd", "bcda", "cdab", "dabc"]


@pytest.fixture
def attention_as_it_was():
    yield
    attention.AttentionInterface.register(attention.ATTENTION, attention.layout_attention)


@pytest.mark.slow  # a compiler of C++ is at work
def test_compiled_layers_take_the_same_steps(tmp_path, attention_as_it_was):
    turns = [({"role": "user", "content": f"rev {t}"},) for t in TEXTS]
    rows = [
        PairRow(t, turn, t[::-1], t[:0:-1], "stop", "stop")
        for t, turn in zip(TEXTS, turns, strict=True)
    ]
    examples, _ = prepare_examples(load_tokenizer(locate(STUDENT)), rows, 64)
    losses, names = {}, {}
    for compiled in (False, True):
        out = tmp_path / str(compiled)
        spec = TuneSpec(lr=1e-3, batch_size=4, steps=3, compile=compiled, layout="shared")
        with ReferenceCache(tmp_path / "reference.sqlite") as reference:
            tune(locate(STUDENT), examples, spec, 0, out, reference=reference,
                 placement=place("cpu", "float32"))  # fmt: skip
        lines = (out / "log.jsonl").read_text().splitlines()
        losses[compiled] = [json.loads(line)["loss"] for line in lines]
        final = load_model(locate(str(out / "final")), place("cpu", "float32"))
        names[compiled] = list(final.state_dict())
    assert losses[True] == pytest.approx(losses[False], abs=1e-5)
    assert abs(losses[True][-1] - losses[True][0]) > 1e-3, "agreeing on ln 2 would prove nothing"
    assert names[True] == names[False]
    counted = torch._dynamo.utils.counters["frames"]
    assert counted["ok"] > 0, "nothing was compiled"


def test_no_compiler_is_said_before_anything_is_tuned(monkeypatch):
    def broken(*_, **__):
        raise RuntimeError("no working C++ compiler was found")

    monkeypatch.setattr(torch, "compile", broken)
    model = load_model(locate(STUDENT), place("cpu", "float32"))
    with pytest.raises(UserError, match=r"no working C\+\+ compiler.*leave compile out"):
        compile_layers(model, "cpu")
