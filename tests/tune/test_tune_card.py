"""Protects the card of a tuned model: what it was made of, as the hub reads it, obeying nobody."""

from __future__ import annotations

import re

import pytest
import torch
import yaml
from safetensors.torch import load_file

from deltalearn.lm.load import Placement
from deltalearn.lm.locate import locate
from deltalearn.lm.write import check_written
from deltalearn.recipe import LoraSpec, TuneSpec
from deltalearn.tune.card import PAPER, model_card
from deltalearn.tune.student import load_student, save_student, trainable_parameters


def card(base="org/student", settings=None, source="pairs.jsonl") -> str:
    return model_card(base, settings or TuneSpec(), source=source, pairs=1234, steps=56, seed=7)


def head(text: str) -> dict:
    between = re.match(r"---\n(.*?)\n---\n", text, flags=re.DOTALL)
    return yaml.safe_load(between[1])


def test_it_names_what_it_was_made_of():
    text = card(settings=TuneSpec(lr=1e-6, lora=LoraSpec(r=8)))
    assert head(text)["base_model"] == "org/student"
    assert head(text)["library_name"] == "transformers" and "license" not in head(text)
    for said in (
        "1,234 of `pairs.jsonl`", "- steps: 56, seed 7", "dpo_norm", "- beta: `5.0`",
        "- lr: `1e-06`", "- lora.r: `8`", "- batch_size: `32`", PAPER, "No licence is given",
    ):  # fmt: skip
        assert said in text, said


@pytest.mark.parametrize(
    ("settings", "there", "not_there"),
    [
        (TuneSpec(method="sft"), "likelihood of the chosen answers", "- beta"),
        (TuneSpec(method="simpo"), "- gamma: `1.0`", "label_smoothing"),
        (TuneSpec(method="robust"), "- label_smoothing: `0.1`", "gamma"),
        (TuneSpec(method="dpo", beta=0.3), "- beta: `0.3`", "lora"),
    ],
)
def test_it_tells_the_settings_that_its_method_has(settings, there, not_there):
    text = card(settings=settings)
    assert there in text and not_there not in text


@pytest.mark.parametrize(
    "hostile",
    [
        "x`\n# Heading\n<script>alert(1)</script>",
        "``` x\nlicense: mit\n---\n",
        "\x1b[31m\u202eevil",
        "[click](javascript:alert(1)) ![x](http://x/y.png)",
        "a\nbase_model: other/model",
    ],
)
def test_hostile_names_are_shown_as_code_and_not_obeyed(hostile):
    text = card(base=hostile, source=hostile)
    assert head(text) == head(card(base="./student")), "nothing of it gets into the head"
    assert text.count("\n#") == 1 and "\x1b" not in text and "\u202e" not in text
    inside = re.sub(r"(?<!`)(`+)(?!`)(.+?)(?<!`)\1(?!`)", "", text)  # as CommonMark pairs ticks
    assert "script" not in inside and "javascript" not in inside and "license: mit" not in inside


def test_folders_of_its_maker_are_not_told():
    text = card(base="/home/somebody/secret/models/student", source="/home/somebody/data/p.jsonl")
    assert "`models/student`" in text and "`data/p.jsonl`" in text
    assert "somebody" not in text and "base_model" not in head(text)


@pytest.mark.parametrize("own", ["bfloat16", "float16", "float32"])
def test_merged_adapters_leave_the_model_in_its_own_precision(tiny_model, tmp_path, own):
    """Tuned in float32 on a CPU; the sum of weight and adapter is rounded once."""
    from transformers import AutoModelForCausalLM, AutoTokenizer

    source = tmp_path / "source"
    AutoModelForCausalLM.from_pretrained(tiny_model, dtype=getattr(torch, own)).save_pretrained(
        source
    )
    AutoTokenizer.from_pretrained(tiny_model).save_pretrained(source)
    files, cpu = locate(str(source)), Placement("cpu", "float32")
    settings = TuneSpec(lora=LoraSpec(r=2))
    weights = trainable_parameters(load_student(files, settings, cpu, seed=0))
    weights = {name: torch.randn_like(w) / 8 for name, w in weights.items()}
    save_student(weights, files, settings, cpu, tmp_path / "final", card="the card\n")
    check_written(tmp_path / "final")
    for folder in ("final", "adapter"):
        assert (tmp_path / folder / "README.md").read_text() == "the card\n"
    merged, before = (
        load_file(tmp_path / "final/model.safetensors"),
        load_file(source / "model.safetensors"),
    )
    assert {w.dtype for w in merged.values()} == {getattr(torch, own)}
    assert (tmp_path / "final/model.safetensors").stat().st_size < 1.1 * (
        source / "model.safetensors"
    ).stat().st_size
    scale, changed = settings.lora.alpha or 2 * settings.lora.r, 0
    for name, weight in before.items():
        layer = f"base_model.model.{name.removesuffix('.weight')}"
        a, b = (weights.get(f"{layer}.lora_{side}.default.weight") for side in "AB")
        if a is not None:
            changed += 1
            weight = (weight.float() + scale / settings.lora.r * (b @ a)).to(weight.dtype)
        assert torch.allclose(
            merged[name].float(), weight.float(), rtol=1e-2 if own == "bfloat16" else 1e-3
        )
    assert changed


def test_a_model_that_is_tuned_whole_keeps_the_precision_of_the_run(tiny_model, tmp_path):
    from transformers import AutoModelForCausalLM

    source = tmp_path / "source"
    model = AutoModelForCausalLM.from_pretrained(tiny_model, dtype=torch.bfloat16)
    model.save_pretrained(source)
    for file in tiny_model.glob("*oken*"):
        (source / file.name).write_bytes(file.read_bytes())
    files, cpu = locate(str(source)), Placement("cpu", "float32")
    weights = trainable_parameters(load_student(files, TuneSpec(), cpu, seed=0))
    save_student(weights, files, TuneSpec(), cpu, tmp_path / "final")
    written = load_file(tmp_path / "final/model.safetensors")
    assert {w.dtype for w in written.values()} == {torch.float32}
    assert not (tmp_path / "final/README.md").exists()
