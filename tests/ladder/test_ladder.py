"""Protects weaker siblings: the model itself but for what was left out, in a measured order.

Held against plain transformers: the model with an identity in place of a layer, sums of
log-softmax, rounding written as a loop.
"""

from __future__ import annotations

import io
import json
import re
import shutil
from pathlib import Path

import numpy as np
import pytest
import torch
import yaml
from helpers import stored
from helpers.architecture_sweep import save_tiny
from helpers.architectures import MODEL_TYPES, tiny_config
from helpers.gguf_files import gguf_of
from rich.console import Console
from safetensors.torch import load_file
from scipy import stats
from torch import nn
from transformers import AutoModelForCausalLM, AutoTokenizer
from typer.testing import CliRunner

from deltalearn.cli import app
from deltalearn.errors import UserError
from deltalearn.ladder import notes
from deltalearn.ladder.layers import config_changes
from deltalearn.ladder.make import make_ladder
from deltalearn.ladder.options import LadderOptions
from deltalearn.lm.load import load_model
from deltalearn.lm.locate import locate

LONG = torch.arange(40)[None] % 300  # longer than the tiny windows
MODELS: dict[str, dict] = {  # of four layers
    "llama": {"tie_word_embeddings": True},
    "gpt2": {},
    "gemma3_text": {"sliding_window": 8, "layer_types": None},
    "qwen2": {"use_sliding_window": True, "sliding_window": 8, "max_window_layers": 2},
    "qwen2_moe": {"mlp_only_layers": [1, 3], "decoder_sparse_step": 1},
    "deepseek_v3": {"first_k_dense_replace": 2},
    "gpt_neo": {"window_size": 8, "attention_types": [[["global", "local"], 2]]},
}


class Identity(nn.Module):
    """A layer that hands on what it gets, written for the tests."""

    def __init__(self, several: bool) -> None:
        super().__init__()
        self.several = several
        self.attention_type = "full_attention"

    def forward(self, hidden_states, *_args, **_kwargs):
        return (hidden_states,) if self.several else hidden_states


@pytest.fixture(scope="module")
def made(tmp_path_factory, tiny_tokenizer):
    """`made(name)`: a tiny model of that type, each only once."""
    known: dict[str, Path] = {}

    def make(name: str) -> Path:
        if name not in known:
            folder = tmp_path_factory.mktemp(name)
            known[name] = save_tiny(name, folder, tiny_tokenizer)
            if name in MODELS:
                known[name] = _with(known[name], folder / "own", name, MODELS[name])
        return known[name]

    return make


def _with(source: Path, path: Path, name: str, changes: dict) -> Path:
    """A model with other settings, wide weights, half of its numbers gone in bfloat16."""
    shutil.copytree(source, path)
    vocabulary = json.loads((source / "config.json").read_text())["vocab_size"]
    with torch.random.fork_rng():
        torch.manual_seed(1)
        config = tiny_config(name, vocabulary)
        values = {**config.to_dict(), **changes}
        model = AutoModelForCausalLM.from_config(type(config)(**values))
        for parameter in model.parameters():
            if parameter.ndim > 1:
                parameter.data.mul_(3)
    model.bfloat16().save_pretrained(path)
    return path


def siblings(source: Path, out: Path, **options) -> dict:
    given = LadderOptions(out=out / "ladder", device="cpu", dtype="float32", **options)
    return make_ladder(str(source), given)


def plain(path: Path) -> nn.Module:
    return AutoModelForCausalLM.from_pretrained(path, dtype=torch.float32).eval()


@torch.no_grad()
def logits(model: nn.Module) -> torch.Tensor:
    return model(input_ids=LONG).logits


@pytest.fixture
def text(write_lines) -> Path:
    words = ["fox", "jumps", "over", "lazy", "dog", "teaches", "two", "weak", "wizards"]
    rows = [
        {"question": f"the {words[i % 9]}?", "answer": " ".join(words[i % 5 : i % 5 + 2 + i % 4])}
        for i in range(40)
    ]
    return write_lines(rows, "text.jsonl")


@pytest.fixture
def plain_text(write_lines) -> Path:
    return write_lines(
        [{"text": f"the quick brown fox {i} jumps"} for i in range(40)], "plain.jsonl"
    )


@pytest.mark.slow
@pytest.mark.parametrize("name", MODELS)
def test_leaving_out_none_is_the_model_itself_to_the_bit(name, made, plain_text, tmp_path):
    source = made(name)
    found = siblings(source, tmp_path, layers_out="0", text=str(plain_text))
    path = tmp_path / "ladder" / "without-0"
    old, new = load_file(source / "model.safetensors"), load_file(path / "model.safetensors")
    assert old.keys() == new.keys()
    for key, value in old.items():
        assert value.ndim < 2 or value.dtype == new[key].dtype == torch.bfloat16
        assert torch.equal(value.float(), new[key].float())
    config, was = (json.loads((p / "config.json").read_text()) for p in (path, source))
    assert {k: v for k, v in config.items() if k in was} == was
    assert (path / "tokenizer.json").read_bytes() == (source / "tokenizer.json").read_bytes()
    assert torch.equal(logits(plain(path)), logits(plain(source)))
    assert found["models"][0]["loglik"] == found["models"][1]["loglik"]
    assert not found["in_order"]  # equal is not below


@pytest.mark.slow
@pytest.mark.parametrize(
    ("name", "drop"),
    [
        *((name, "0,2") for name in MODELS),
        *((n, d) for n in ("gemma3_text", "qwen2") for d in "13"),
    ],
)
def test_layers_left_out_are_identities(name, drop, made, tmp_path):
    """To the bit, on a row that is longer than the windows; and with a cache as without."""
    source = made(name)
    siblings(source, tmp_path, drop=drop)
    path = tmp_path / "ladder" / f"without-layers-{drop.replace(',', '-')}"
    whole, sibling = plain(source), plain(path)
    layers = next(m for m in whole.modules() if isinstance(m, nn.ModuleList) and len(m) == 4)
    several = _answers_with_several(whole, layers[0])
    for at in map(int, drop.split(",")):
        layers[at] = Identity(several)
    assert torch.equal(logits(sibling), logits(whole))
    assert sibling.config.num_hidden_layers == 4 - len(drop.split(","))
    given = {"max_new_tokens": 20, "do_sample": False, "pad_token_id": 0, "eos_token_id": None}
    answers = [sibling.generate(LONG, use_cache=cached, **given) for cached in (True, False)]
    assert torch.equal(*answers)


def _answers_with_several(model: nn.Module, layer: nn.Module) -> bool:
    seen = []
    handle = layer.register_forward_hook(lambda _layer, _given, found: seen.append(found))
    logits(model)
    handle.remove()
    return isinstance(seen[0], tuple)


def test_what_a_config_says_layer_by_layer_follows():
    """Worked by hand: six layers of which 1 and 4 go."""
    values = {
        "num_hidden_layers": 6,
        "n_positions": 6,
        "eos_token_id": [1, 2, 3, 4, 5, 6],
        "layer_types": ["a", "b", "c", "d", "e", "f"],
        "no_rope_layers": [1, 1, 1, 0, 1, 1],
        "mlp_only_layers": [1, 3, 5],
        "max_window_layers": 2,
        "first_k_dense_replace": 0,
        "per_layer_config": {"04": {"head_dim": 1}, "05": {"head_dim": 2}},
        "mtp_layer_types": ["a"] * 6,
        "attention_layers": ["global", "local"] * 3,
        "attention_types": [[["global", "local"], 3]],
        "head_dim": 6,
    }
    assert config_changes(values, 6, [0, 2, 3, 5]) == {
        "num_hidden_layers": 4,
        "layer_types": ["a", "c", "d", "f"],
        "no_rope_layers": [1, 1, 0, 1],
        "mlp_only_layers": [2, 3],
        "max_window_layers": 1,
        "per_layer_config": {"3": {"head_dim": 2}},
        "attention_layers": ["global", "global", "local", "local"],
        "attention_types": [[["global"], 1], [["global"], 1], [["local"], 1], [["local"], 1]],
    }


REFUSED = {  # where a layer at another place is another layer, or others need it
    "diffllama": "lambda_init of self_attn of layer 3 was",
    "minicpm3": "residual_scale of it of layer 0",
    "hy_v4": "the others need what they compute",
    "zamba2": "could be written and not read again",
    "xlm": "4 lists of layers",
    "gemma3n_text": "inputs of all layers in one matrix",
    "blt": "no list of layers",
}


@pytest.mark.parametrize("name", sorted(REFUSED.keys() & set(MODEL_TYPES)))
def test_what_cannot_be_left_out_is_refused_in_one_line(name, made, tmp_path):
    with pytest.raises(UserError, match=re.escape(REFUSED[name])) as error:
        siblings(made(name), tmp_path, drop="1,2")
    assert "\n" not in str(error.value) and len(str(error.value)) < 500
    assert not list((tmp_path / "ladder").glob("*"))


def test_the_layer_that_does_least_goes_first(made, text, tmp_path):
    """Layer 2 adds nothing, layer 0 a little: what the choice says is what plain loops say."""
    source = Path(shutil.copytree(made("llama"), tmp_path / "model"))
    model = plain(source)
    for layer, size in ((2, 0.0), (0, 1e-3)):
        part = model.model.layers[layer]
        for matrix in (part.self_attn.o_proj, part.mlp.down_proj):
            matrix.weight.data.mul_(size)
    model.save_pretrained(source)
    found = siblings(source, tmp_path, layers_out="1,2", text=str(text), choose_on=8)
    steps = found["choice"]["steps"]
    assert [step["layer"] for step in steps] == [2, 0]
    tokens = _ids(source, text)[:8]
    for step, gone in zip(steps, ([], [2]), strict=True):
        assert sorted(step["losses"]) == [at for at in range(4) if at not in gone]
        for layer, loss in step["losses"].items():
            changed = plain(source)
            for at in (*gone, layer):
                changed.model.layers[at] = Identity(several=False)
            assert loss == pytest.approx(-_loglik(changed, tokens).mean(), abs=1e-5)


def _ids(path: Path, text: Path) -> list[tuple[list[int], list[int]]]:
    tokenizer = AutoTokenizer.from_pretrained(path)
    found = []
    for row in map(json.loads, text.read_text().splitlines()):
        prompt = [{"role": "user", "content": row["question"]}]
        ids = tokenizer.apply_chat_template(prompt, add_generation_prompt=True)["input_ids"]
        answer = tokenizer(row["answer"], add_special_tokens=False)["input_ids"]
        found.append((list(ids), [*answer, tokenizer.eos_token_id]))
    return found


@torch.no_grad()
def _loglik(model: nn.Module, texts) -> np.ndarray:
    found = []
    for prompt, answer in texts:
        logs = model(input_ids=torch.tensor([[*prompt, *answer]])).logits[0].log_softmax(-1)
        rows = range(len(prompt) - 1, len(prompt) + len(answer) - 1)
        found.append(sum(logs[row, token].item() for row, token in zip(rows, answer, strict=True)))
    return np.array(found) / [len(answer) for _, answer in texts]


def test_the_order_is_what_plain_transformers_measures(made, text, tmp_path):
    source = made("llama")
    asked = {"layers_out": "1,3", "bits": "2", "noise": "2", "text": str(text), "choose_on": 10}
    found = siblings(source, tmp_path, **asked)
    texts = _ids(source, text)[10:]
    names = ("without-1", "without-3", "bits-2", "noise-2")
    paths = {"": source} | {name: tmp_path / "ladder" / name for name in names}
    by_hand = {name: _loglik(plain(path), texts) for name, path in paths.items()}
    assert found["order"] == sorted(paths, key=lambda name: -by_hand[name].mean())
    assert found["text"]["measured_on"] == 30 and found["text"]["chosen_on"] == 10
    entries = {entry["name"]: entry for entry in found["models"]}
    for name, values in by_hand.items():
        entry = entries[name or str(source)]["loglik"]
        assert entry["mean"] == pytest.approx(values.mean(), abs=1e-5)
        ends = stats.t.interval(0.95, 29, values.mean(), stats.sem(values))
        assert (entry["lo"], entry["hi"]) == pytest.approx(ends, abs=1e-5)
    for step in found["steps"]:
        difference = by_hand[step["lower"]] - by_hand[step["upper"]]
        assert step["difference"] == pytest.approx(difference.mean(), abs=1e-5)
        assert step["shown"] == (step["hi"] < 0)
    assert found["in_order"] == all(step["shown"] for step in found["steps"])


@pytest.mark.slow
@pytest.mark.parametrize("kind", ["adapter", "bitsandbytes", "gguf"])
def test_a_model_that_is_stored_otherwise_gives_ordinary_siblings(kind, made, tmp_path, cpu):
    if kind == "adapter":
        source = stored.adapter(made("llama"), tmp_path / "model")
    else:
        pytest.importorskip(kind)
        if kind == "gguf":
            source = gguf_of(made("llama"), tmp_path / "model.gguf")
        else:
            source = stored.bitsandbytes(tmp_path / "model", tokenizer_of(made("llama")), 4)
    siblings(source, tmp_path, drop="1")
    whole = load_model(locate(str(source)), cpu, dequantize=True)
    number = whole.config.num_hidden_layers
    whole.model.layers[1] = Identity(several=False)
    sibling = plain(tmp_path / "ladder" / "without-layers-1")
    assert sibling.config.num_hidden_layers == number - 1
    assert torch.allclose(
        logits(sibling), logits(whole), atol=0.1 if kind == "bitsandbytes" else 1e-4
    )


def tokenizer_of(path: Path):
    return AutoTokenizer.from_pretrained(path)


@pytest.mark.parametrize("name", ["llama", "gpt2", "mixtral"])
def test_rounding_is_what_a_loop_over_groups_makes(name, made, tmp_path):
    """At most 2^bits values in each group of an output's inputs; embeddings and head stay."""
    source = made(name)
    siblings(source, tmp_path, bits="2,3", group_size=24)
    before, after = plain(source), plain(tmp_path / "ladder" / "bits-2")
    milder = dict(plain(tmp_path / "ladder" / "bits-3").named_parameters())
    exact = dict(before.named_parameters())
    kept = {id(before.get_output_embeddings().weight)}
    kept |= {id(m.weight) for m in before.modules() if isinstance(m, nn.Embedding)}
    for key, found in after.named_parameters():
        was = exact[key]
        if was.ndim < 2 or id(was) in kept:
            assert torch.equal(found, was), key
            continue
        by_inputs = name == "gpt2" and was.ndim == 2  # Conv1D has its inputs first
        rows, got = (t.T if by_inputs else t.flatten(0, -2) for t in (was, found))
        for at in range(0, rows.shape[1], 24):
            group, rounded = rows[0, at : at + 24], got[0, at : at + 24]
            low, step = group.min(), (group.max() - group.min()) / 3
            steps = (rounded - low) / step
            assert torch.allclose(steps, steps.round(), atol=3e-2), key  # of bfloat16
            assert ((rounded - group).abs() <= step * 0.52).all(), key
        assert (milder[key] - was).norm() < (found - was).norm()


def test_noise_has_its_size_and_its_seed(made, tmp_path):
    source = made("llama")
    for out, seed in (("a", 3), ("b", 3), ("c", 4)):
        siblings(source, tmp_path / out, noise="0.5", seed=seed)
    files = [tmp_path / out / "ladder" / "noise-0.5" / "model.safetensors" for out in "abc"]
    same, again, other = map(load_file, files)
    exact = load_file(source / "model.safetensors")
    key = "model.layers.1.mlp.up_proj.weight"
    assert torch.equal(same[key], again[key]) and not torch.equal(same[key], other[key])
    noise = (same[key].float() - exact[key].float()).std() / exact[key].float().std()
    assert noise.item() == pytest.approx(0.5, rel=0.05)
    assert torch.equal(same["model.embed_tokens.weight"], exact["model.embed_tokens.weight"])


def test_a_sibling_says_where_it_comes_from(made, text, tmp_path):
    source = made("llama")
    found = siblings(source, tmp_path, layers_out="2", drop="3", text=str(text))
    folder = tmp_path / "ladder"
    assert (folder / "ladder.json").read_text() == json.dumps(found, indent=2) + "\n"
    chosen = [step["layer"] for step in found["choice"]["steps"]]
    for name, order in (("without-2", chosen), ("without-layers-3", None)):
        _, head, body = (folder / name / "README.md").read_text().split("---\n")
        card = yaml.safe_load(head)
        assert card["base_model"] == str(source)
        assert card["base_fingerprint"] == locate(str(source)).fingerprint
        assert card["fingerprint"] == locate(str(folder / name)).fingerprint
        assert card["text"]["source"] == str(text)
        assert card.get("chosen_in_this_order") == order
        assert card["loglik"]["lo"] < card["loglik"]["mean"] < card["loglik"]["hi"]
        assert "the model itself" in body


@pytest.mark.parametrize(
    ("options", "said"),
    [
        ({}, "no sibling is asked for"),
        ({"layers_out": "1"}, "needs --text"),
        ({"drop": "one"}, "whole numbers 0 or more"),
        ({"drop": "-1"}, "whole numbers 0 or more"),
        ({"bits": "0"}, "between 1 and 8"),
        ({"noise": "-1"}, "numbers above 0"),
        ({"drop": "1", "seed": 1}, "--seed has no effect without --noise"),
        ({"drop": "1", "group_size": 8}, "--group-size has no effect without --bits"),
        ({"drop": "1", "choose_on": 8}, "--choose-on has no effect without --layers-out"),
        ({"drop": "1", "limit": 8}, "--limit has no effect without --text"),
        ({"bits": "2", "group_size": 0}, "at least 1"),
        ({"drop": "7"}, "it has no layer 7; its 4 layers are counted from 0 to 3"),
        ({"drop": "0,1,2,3"}, "all of its 4 layers"),
        ({"layers_out": "1", "text": "TEXT", "choose_on": 39}, "too few"),
        ({"layers_out": "4", "text": "TEXT"}, "all of its 4 layers"),
        ({"drop": "1", "text": "TEXT", "answer_column": "gold"}, "column 'gold'"),
    ],
)
def test_a_wrong_request_is_told_in_one_line(options, said, made, text, tmp_path):
    given = {key: str(text) if value == "TEXT" else value for key, value in options.items()}
    with pytest.raises(UserError, match=re.escape(said)) as error:
        siblings(made("llama"), tmp_path, **given)
    assert "\n" not in str(error.value)


def test_what_lies_in_the_folder_is_left_alone(made, tmp_path):
    mine = tmp_path / "ladder" / "mine"
    mine.parent.mkdir()
    mine.write_text("x")
    with pytest.raises(UserError, match="holds something already"):
        siblings(made("llama"), tmp_path, drop="1")
    assert list(mine.parent.iterdir()) == [mine]


def test_the_command(made, text, tmp_path):
    given = ["ladder", str(made("llama")), "--drop", "1", "--bits", "2", "--text", str(text)]
    result = CliRunner().invoke(app, [*given, "--out", str(tmp_path / "out")])
    assert result.exit_code == 0, result.output
    assert "without layer 1" in result.stdout and "(2 bits) in groups of 64" in result.stdout
    assert "written to" in result.stdout


@pytest.mark.parametrize("width", [120, 80, 60])
def test_the_table_is_whole_in_any_terminal(width, monkeypatch, tmp_path):
    terminal = Console(file=io.StringIO(), width=width, markup=False)
    monkeypatch.setattr(notes, "console", lambda: terminal)
    score = {"mean": -1.4132, "lo": -1.5151, "hi": -1.3113}
    what = "with the matrices rounded to the nearest of 16 values (4 bits) in groups of 64"
    step = {"upper": "", "lower": "bits-4", "difference": -0.187, "lo": -0.2, "hi": -0.1}
    models = [{"name": "[red]base", "loglik": score}, {"name": "bits-4", "what": what}]
    models[1]["loglik"] = score
    order = {"order": ["", "bits-4"], "steps": [{**step, "shown": True}], "in_order": True}
    notes.print_ladder({"models": models, **order}, tmp_path)
    text = terminal.file.getvalue()
    assert "[red]base" in text and text.count("−1.413 [−1.515, −1.311]") == 2
    assert ("−0.187 [−0.200, −0.100]" in text) or "from the one above: in a wider" in text
