"""Protects the choice of a chat template for a model that has none: base models as weak models.

Without one nothing can be asked of them; with a wrong one silently put in, they would be asked in a
way that nobody chose. A chosen one is part of the model's identity and goes with what is tuned.
"""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest

from deltalearn.errors import UserError
from deltalearn.lm.chat import answer_ids, prompt_ids
from deltalearn.lm.load import load_tokenizer
from deltalearn.lm.locate import has_chat_template, locate, locate_tokenizer
from deltalearn.lm.turn import turn_of
from deltalearn.lm.write import copy_tokenizer

ASKED = ({"role": "system", "content": "Be brief."}, {"role": "user", "content": "fox?"})
LATER = (*ASKED, {"role": "assistant", "content": "dog"}, {"role": "user", "content": "and?"})
CHATML = (
    "<|im_start|>system\nBe brief.<|im_end|>\n<|im_start|>user\nfox?<|im_end|>\n"
    "<|im_start|>assistant\n"
)


@pytest.fixture(autouse=True)
def cache(tmp_path, monkeypatch) -> Path:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "xdg"))
    return tmp_path / "xdg" / "deltalearn" / "models"


@pytest.fixture
def base(tmp_path, tiny_model) -> Path:
    """The tiny model without its chat template."""
    path = Path(shutil.copytree(tiny_model, tmp_path / "base"))
    (path / "chat_template.jinja").unlink()
    assert not has_chat_template(locate(str(path)))
    return path


def chatml_tokens(path: Path) -> None:
    """Give a tokenizer the tokens of ChatML."""
    from transformers import PreTrainedTokenizerFast

    tokenizer = PreTrainedTokenizerFast.from_pretrained(path)
    tokenizer.add_special_tokens({"additional_special_tokens": ["<|im_start|>", "<|im_end|>"]})
    tokenizer.save_pretrained(path)


def text(path: Path, chosen: str, messages=ASKED) -> str:
    tokenizer = load_tokenizer(locate(str(path), None, chosen))
    return tokenizer.decode(prompt_ids(tokenizer, [messages])[0])


def test_raw_is_the_texts_alone(base):
    assert text(base, "raw", ASKED[1:]) == "fox?"
    assert text(base, "raw") == "Be brief.\n\nfox?"
    assert text(base, "raw", LATER) == "Be brief.\n\nfox?dog\n\nand?"
    tokenizer = load_tokenizer(locate(str(base), None, "raw"))
    turn = turn_of(tokenizer)
    assert (turn.before, turn.end) == ("", tokenizer.eos_token_id)
    (ids,) = answer_ids(tokenizer, [" a dog"], [True])
    assert ids == [*tokenizer(" a dog")["input_ids"], tokenizer.eos_token_id]


def test_raw_begins_as_plain_texts_do(base):
    from transformers import PreTrainedTokenizerFast

    from deltalearn.lm.gguf_tokenizer import _begins_with

    tokenizer = PreTrainedTokenizerFast.from_pretrained(base)
    tokenizer.add_special_tokens({"bos_token": "<|system|>"})
    assert text(base, "raw") == "Be brief.\n\nfox?"  # it has a BOS and does not use it
    tokenizer.backend_tokenizer.post_processor = _begins_with("<|system|>", tokenizer.bos_token_id)
    tokenizer.save_pretrained(base)
    assert text(base, "raw") == "<|system|>Be brief.\n\nfox?"


def test_chatml_is_for_tokenizers_that_have_its_tokens(base):
    with pytest.raises(UserError, match=r"<\|im_start\|> and <\|im_end\|>.*use raw"):
        locate(str(base), None, "chatml")
    chatml_tokens(base)
    assert text(base, "chatml") == CHATML
    tokenizer = load_tokenizer(locate(str(base), None, "chatml"))
    assert turn_of(tokenizer).end == tokenizer.convert_tokens_to_ids("<|im_end|>")


def test_file_of_jinja_and_what_is_none(base, tmp_path):
    own = tmp_path / "own.jinja"
    own.write_text("{% for m in messages %}[{{ m.role }}] {{ m.content }}\n{% endfor %}")
    assert text(base, str(own)) == "[system] Be brief.\n[user] fox?\n"
    for chosen, said in (
        ("alpaca", "neither chatml nor raw nor a file"),
        (str(base), "that can be read"),
    ):
        with pytest.raises(UserError, match=said):
            locate(str(base), None, chosen)
    own.write_text(" \n")
    with pytest.raises(UserError, match="empty file"):
        locate(str(base), None, str(own))


def test_choice_is_part_of_the_identity_and_takes_the_place_of_every_other(tiny_model, tmp_path):
    path = Path(shutil.copytree(tiny_model, tmp_path / "model"))
    settings = path / "tokenizer_config.json"
    values = json.loads(settings.read_text())
    settings.write_text(json.dumps({**values, "chat_template": "IN THE SETTINGS"}))
    (path / "additional_chat_templates").mkdir()
    (path / "additional_chat_templates" / "tool_use.jinja").write_text("OF TOOLS")
    assert text(path, "raw", ASKED[1:]) == "fox?"
    plain, raw = locate(str(path)), locate(str(path), None, "raw")
    own = tmp_path / "own.jinja"
    own.write_text("{{ messages[0].content }}")
    assert (
        len({plain.fingerprint, raw.fingerprint, locate(str(path), None, str(own)).fingerprint})
        == 3
    )
    assert locate(str(raw.directory)).fingerprint == raw.fingerprint
    moved = Path(shutil.move(path, tmp_path / "moved"))
    again = locate(str(moved), None, "raw")
    assert (again.fingerprint, text(moved, "raw", ASKED[1:])) == (raw.fingerprint, "fox?")
    assert again.directory != raw.directory  # whose links lead nowhere now


def test_tokenizer_alone_is_enough_and_a_changed_one_is_seen(base):
    for file in base.glob("*.safetensors"):
        file.unlink()
    assert text_of(locate_tokenizer(str(base), None, "raw")) == "fox?"
    with pytest.raises(UserError, match="chatml writes"):
        locate_tokenizer(str(base), None, "chatml")
    chatml_tokens(base)
    assert text_of(locate_tokenizer(str(base), None, "chatml")).startswith("<|im_start|>")


def text_of(files) -> str:
    tokenizer = load_tokenizer(files)
    return tokenizer.decode(prompt_ids(tokenizer, [ASKED[1:]])[0])


def test_what_is_tuned_has_the_chosen_template(base, tmp_path):
    out = tmp_path / "final"
    out.mkdir()
    copy_tokenizer(locate(str(base), None, "raw"), out, {})
    assert not any(path.is_symlink() for path in out.iterdir())
    assert not (out / "made.json").exists()
    from transformers import AutoTokenizer

    tokenizer = AutoTokenizer.from_pretrained(out)
    assert tokenizer.apply_chat_template(list(ASKED), tokenize=False) == "Be brief.\n\nfox?"


def test_without_a_choice_it_is_refused_with_the_way_out(base):
    with pytest.raises(UserError, match=r"no chat template.*chat_template: chatml, raw"):
        load_tokenizer(locate(str(base)))
