"""Arguments of chat templates: they are a model's, wherever it is asked, tuned or scored."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from deltalearn.errors import UserError

# What other sections and libraries call them.
CALLED = ("template", "chat_template_kwargs", "chat_template_args", "enable_thinking")
# What transformers' renderer takes itself, so that no template sees it, or sees it changed.
RENDERERS = frozenset({
    "conversation", "messages", "chat_template", "add_generation_prompt", "continue_final_message",
    "tokenize", "padding", "truncation", "max_length", "return_tensors", "return_dict",
    "return_assistant_tokens_mask", "tokenizer_kwargs", "processor_kwargs", "strftime_now",
})  # fmt: skip
REMEDY = (
    "; arguments of a chat template belong to the model, and count wherever it is asked, tuned or "
    "scored: student.template={enable_thinking: false}, models.NAME.template=..."
)


def whose_arguments(key: str) -> str | None:
    """Say where arguments of a chat template belong.

    Args:
        key: A key that its section does not have.

    Returns:
        The end of an error; None for a key of another kind.
    """
    return REMEDY if key in CALLED else None


def not_an_argument(template: Mapping[str, Any]) -> str | None:
    """Say which of a chat template's arguments is none.

    Args:
        template: Arguments by name.

    Returns:
        The error; None if all can be arguments.
    """
    found = sorted(RENDERERS & template.keys())
    if not found:
        return None
    remedy = "set `day`" if found == ["strftime_now"] else "leave it out"
    if found == ["chat_template"]:
        remedy = "give chat_template beside the path (chatml, raw, or a file of Jinja)"
    return f"template.{found[0]} is no argument of a chat template: {remedy}"


def given_arguments(texts: Sequence[str], of: str) -> dict[str, Any]:
    """Options of `load_recipe` for `--template KEY=VALUE`.

    Args:
        texts: Each KEY=VALUE, the value as YAML.
        of: Dotted key of the model, `models.*` for all.

    Returns:
        Values by dotted key.

    Raises:
        UserError: If one is no such thing.
    """
    from deltalearn.recipe.yaml_text import read_yaml

    found = {}
    for text in texts:
        key, sign, value = text.partition("=")
        if not (sign and key.strip() and "." not in key):
            raise UserError(
                f"--template {text}: expected KEY=VALUE, for example enable_thinking=false"
            )
        found[f"{of}.template.{key.strip()}"] = read_yaml(value, f"--template {text}")
    return found


def share_arguments(values: dict[str, Any], origins: dict[str, str]) -> None:
    """Give each model the arguments of `generate.template` that it has none of its own for.

    In training and evaluation too: a model that is asked with other arguments than it is trained
    with would be trained on prompts that it never sees.

    Args:
        values: Of a recipe, not validated yet; changed.
        origins: Where each value came from, by its dotted key; changed.
    """
    section, models = values.get("generate"), values.get("models")
    shared = section.get("template") if isinstance(section, dict) else None
    if not isinstance(shared, dict):
        return
    called: list[tuple[str, Any]] = [("student", values.get("student"))]
    called += [(f"models.{n}", m) for n, m in models.items()] if isinstance(models, dict) else []
    for name, model in called:
        own = model.get("template") or {} if isinstance(model, dict) else None
        if isinstance(own, dict):
            model["template"] = {**shared, **own}
            for key in shared.keys() - own.keys():
                origins[f"{name}.template.{key}"] = "generate.template"
