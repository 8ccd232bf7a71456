"""Protects the arguments of a chat template that a tuned model was trained with.

Whoever loads it and says nothing gives the prompt that it was trained on; who says something wins.
"""

from __future__ import annotations

import json

import pytest
from helpers.templates import REAL, real_tokenizer, tokenizer_of
from jinja2 import Environment, meta
from transformers import AutoTokenizer

from deltalearn.errors import UserError
from deltalearn.lm.remember import remember, require_remembered, with_defaults
from deltalearn.lm.render import prompt_texts, whole_text
from deltalearn.records import Rendering

ASKED = [{"role": "user", "content": "ask"}]
GIVEN = {"enable_thinking": False, "date_string": "26 Nov 2026", "reasoning_effort": "high"}
ODD = {
    "text": 'a "quoted" {{ x }} {% y %} \'s\n\\ é 🙂',
    "yes": True, "number": -1.5e-7, "nested": {"a": [1, None, "b"], "c d": False}, "no-name": 3,
}  # fmt: skip


@pytest.mark.parametrize("name", REAL)
def test_a_template_remembers(name):
    """Of published templates: alone, with tools, with an answer, all arguments or another one."""
    told, kept = real_tokenizer(name), tokenizer_of(with_defaults(REAL[name].text, GIVEN))
    for token in ("bos_token", "eos_token"):
        setattr(kept, token, getattr(told, token))
    require_remembered(told, kept, GIVEN)
    for other in ({"enable_thinking": True}, {"date_string": "x"}, {"reasoning_effort": "low"}):
        wanted = whole_text(told, ASKED, Rendering({**GIVEN, **other}), waiting=True)
        assert whole_text(kept, ASKED, Rendering(other), waiting=True) == wanted
    parser = Environment(extensions=["jinja2.ext.loopcontrols"])  # noqa: S701 (nothing is rendered)
    variables = meta.find_undeclared_variables(parser.parse(kept.chat_template))
    assert GIVEN.keys() <= variables  # for those who look which arguments a template takes


def test_values_of_every_kind_come_back():
    names = [name for name in ODD if name.isidentifier()]
    shown = "{{ [" + ", ".join(names) + "] | tojson }}"
    kept = tokenizer_of("\n\n  " + with_defaults(shown, ODD))
    assert json.loads(whole_text(kept, ASKED) or "") == [ODD[name] for name in names]


@pytest.mark.parametrize(
    "template",
    [
        "\n  {% if a is defined %}\n  x{{ a }}\n{% endif %}\n",
        "  {{- a -}}  {% for m in messages %}{{ a }}{% endfor %}",
        "{%- macro f() -%}{{ a }}{%- endmacro -%}\n{{ f() }}{% set b = a %}{{ b }}",
        "{% if not a is defined %}{% set a = 7 %}{% endif %}{{ a }}",
        "{% set a = a | default(5) %}{{ a }}",
    ],
)
def test_the_rest_of_a_template_is_untouched(template):
    told = whole_text(tokenizer_of(template), ASKED, Rendering({"a": 0}))
    kept = tokenizer_of(with_defaults(template, {"a": 0}))
    assert whole_text(kept, ASKED) == told is not None
    assert prompt_texts(kept, [ASKED], Rendering({"a": 9})) == prompt_texts(
        tokenizer_of(template), [ASKED], Rendering({"a": 9})
    )
    assert with_defaults(template, {}) == template


def test_every_place_of_a_template_remembers(tmp_path):
    """The file of today, those of tools, a processor's, and the settings of older models."""
    tokenizer_of("x{{ a }}").save_pretrained(tmp_path)
    for name in ("tool_use.jinja", "rag.jinja"):
        (tmp_path / "additional_chat_templates").mkdir(exist_ok=True)
        (tmp_path / "additional_chat_templates" / name).write_text("y{{ a }}")
    (tmp_path / "chat_template.json").write_text(json.dumps({"chat_template": "z{{ a }}"}))
    remember(tmp_path, {"a": 1})
    templates = AutoTokenizer.from_pretrained(tmp_path).chat_template
    shown = {name: whole_text(tokenizer_of(text), ASKED) for name, text in templates.items()}
    assert shown == {"default": "x1", "tool_use": "y1", "rag": "y1"}
    assert "set a = 1" in json.loads((tmp_path / "chat_template.json").read_text())["chat_template"]

    (tmp_path / "chat_template.jinja").unlink()
    (tmp_path / "chat_template.json").unlink()
    for file in (tmp_path / "additional_chat_templates").iterdir():
        file.unlink()
    settings = json.loads((tmp_path / "tokenizer_config.json").read_text())
    several = [{"name": "default", "template": "v{{ a }}"}, {"name": "rag", "template": "w{{ a }}"}]
    for given in ("u{{ a }}", several):
        changed = {**settings, "chat_template": given}
        (tmp_path / "tokenizer_config.json").write_text(json.dumps(changed))
        remember(tmp_path, {"a": 2})
        found = AutoTokenizer.from_pretrained(tmp_path)
        assert whole_text(found, ASKED) == ("u2" if isinstance(given, str) else "v2")


def test_what_is_not_remembered_is_said_with_both_texts():
    """A macro that loses sight of an argument once its template sets it, say."""
    odd = "{%- macro f() -%}{{ a }}{%- endmacro -%}\n{{ f() }}{% set a = 3 %}{{ a }}"
    told, kept = tokenizer_of(odd), tokenizer_of(with_defaults(odd, {"a": 0}))
    with pytest.raises(UserError, match=r"render '03' instead of '3'.*by hand"):
        require_remembered(told, kept, {"a": 0})
