"""Protects the day of a run: chat templates that ask what day it is are told that of its start."""

from __future__ import annotations

from datetime import datetime

import pytest
from transformers import AutoTokenizer

from deltalearn.lm import clock
from deltalearn.lm.chat import prompt_ids
from deltalearn.lm.render import prompt_texts, whole_text
from deltalearn.records import Rendering

DAY = "2026-03-05"
ASKED = ({"role": "user", "content": "ask"},)
FORMATS = (
    "%d %b %Y", "%Y-%m-%d", "%B %d, %Y", "%A", "%-d/%-m/%y", "%H:%M:%S", "%j %U", "%d%%d", "%x %X",
)  # fmt: skip


@pytest.fixture
def dated(tiny_tokenizer, tmp_path):
    """A function from a template to the tiny tokenizer with it, as it is read from disk."""

    def make(template: str):
        tiny_tokenizer.save_pretrained(tmp_path)
        read = AutoTokenizer.from_pretrained(tmp_path)
        read.chat_template = template
        read.save_pretrained(tmp_path)
        return AutoTokenizer.from_pretrained(tmp_path)

    return make


@pytest.mark.parametrize("asked", FORMATS)
def test_every_form_of_the_day_is_written_as_the_clock_writes_it(dated, asked):
    tokenizer = dated(f"{{{{ strftime_now('{asked}') }}}}")
    (text,) = prompt_texts(tokenizer, [ASKED], Rendering(day=DAY))
    assert text == datetime.fromisoformat(DAY).strftime(asked)


@pytest.mark.parametrize(
    "template",
    [
        "\n\n  {% if true %}\n  x {{ strftime_now('%d') }}\n{% endif %}\n",
        "  {{ strftime_now('%d') }}",
        "{%- macro now() -%}{{ strftime_now('%d') }}{%- endmacro -%}\n{% for m in messages %}\n"
        "  {{ now() }}\n{% endfor %}",
        "{% if strftime_now is defined %}{% set d = strftime_now('%d') %}{% endif %}{{ d | int }}",
    ],
)
def test_the_rest_of_a_template_is_untouched(dated, monkeypatch, template):
    """White space at its beginning, macros and tests for the function behave as with the clock."""
    import transformers.utils.chat_template_utils as theirs

    class Then(datetime):
        @classmethod
        def now(cls, tz=None):
            return datetime.fromisoformat(DAY)

    tokenizer = dated(template)
    fixed = whole_text(tokenizer, ASKED, Rendering(day=DAY))
    monkeypatch.setattr(theirs, "datetime", Then)
    assert fixed == whole_text(tokenizer, ASKED)


def test_arguments_and_tools_reach_a_dated_template(dated):
    template = "{{ strftime_now('%Y') }}{{ mode }}{{ tools[0].name if tools }}"
    tokenizer = dated({"default": template, "tool_use": "tools " + template})
    how = Rendering({"mode": " loud "}, DAY)
    assert prompt_texts(tokenizer, [ASKED], how) == ["2026 loud "]
    how = Rendering({"tools": [{"name": "search"}]}, DAY)
    assert prompt_texts(tokenizer, [ASKED], how) == ["tools 2026search"]


def test_who_reads_the_clock(dated, tmp_path):
    dated("{{ strftime_now('%d') }}")
    assert clock.reads_clock(tmp_path)
    assert "strftime_now" in (tmp_path / "chat_template.jinja").read_text()
    (tmp_path / "chat_template.jinja").unlink()
    assert not clock.reads_clock(tmp_path)
    (tmp_path / "tokenizer_config.json").write_text('{"chat_template": "{{ strftime_now(1) }}"}')
    assert clock.reads_clock(tmp_path), "where older models have their template"


def test_a_template_without_a_clock_has_no_day(dated):
    tokenizer = dated("{{ messages[0].content }}")
    assert clock.on_day(tokenizer.chat_template, DAY) == tokenizer.chat_template
    both = [prompt_ids(tokenizer, [ASKED], None, how) for how in (Rendering(), Rendering(day=DAY))]
    assert both[0] == both[1]
