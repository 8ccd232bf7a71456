"""What is wrong with a recipe, in words: file, key, what was expected, the nearest valid one."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from pathlib import Path
from types import UnionType
from typing import Any, Literal, Union, get_args, get_origin

from pydantic import BaseModel, ValidationError

from deltalearn.recipe.base import NAME
from deltalearn.recipe.keys import inside, is_section, present, sections
from deltalearn.recipe.template import whose_arguments
from deltalearn.util.text_format import did_you_mean

# What other libraries, and older recipes, call our keys, so that one brought along is recognised.
ALIASES: dict[str, str | tuple[str, ...]] = {
    "learning_rate": "lr",
    "per_device_train_batch_size": "batch_size",
    "batch": "batch_size",
    "micro_batch_size": "token_budget",
    "lr_scheduler_type": "scheduler",
    "optim": "optimizer",
    "report_to": "tracker",
    "num_train_epochs": "epochs",
    "max_steps": "steps",
    "loss_type": "method",
    "max_new_tokens": "max_tokens",
    "model": ("path", "student"),
    "seed": "seeds",
    "name_or_path": "path",
    "dataset": "source",
    "api_base": "url",
    "base_url": "url",
    "api_key": "key_env",
    "api_key_env": "key_env",
    "max_concurrency": "concurrency",
    "tensor_parallel_size": "tensor_parallel",
    "gpu_memory_utilization": "memory",
    "max_model_len": "context",
    "system_prompt": "system",
    "chat_template_kwargs": "template",
    "n": "samples",
    "extra_body": "body",
    "thoughts": "reasoning",  # our own, of old
    "shape": "architecture",
}

MEANT = {  # what other libraries call our values
    "fp16": "float16",
    "half": "float16",
    "bf16": "bfloat16",
    "fp32": "float32",
    "gpu": "cuda",
    "greedy_acc": "greedy_accuracy",
    "accuracy": "greedy_accuracy",
    "acc": "greedy_accuracy",
    "sigmoid": "dpo",
    "sigmoid_norm": "dpo_norm",
    "adamw_torch": "adamw",
    "adamw_bnb_8bit": "adamw_8bit",
    "hf": "transformers",
    "flex_attention": "flex",
}
SURE = 0.85  # alike enough not to look for the same name elsewhere

# Words for each kind of fault that the validator knows, with what it says about it.
WORDS: dict[str, Callable[[Mapping[str, Any]], str]] = {
    "bool_type": lambda c: "expected true or false",
    "bool_parsing": lambda c: "expected true or false",
    "int_type": lambda c: "expected a whole number",
    "int_from_float": lambda c: "expected a whole number",
    "int_parsing": lambda c: "expected a whole number",
    "float_type": lambda c: "expected a number",
    "float_parsing": lambda c: "expected a number",
    "finite_number": lambda c: "expected a number that is not infinite",
    "string_type": lambda c: "expected a text",
    "string_too_short": lambda c: "must not be empty",
    "greater_than": lambda c: f"must be more than {c['gt']:g}",
    "greater_than_equal": lambda c: f"must be at least {c['ge']:g}",
    "less_than": lambda c: f"must be less than {c['lt']:g}",
    "less_than_equal": lambda c: f"must be at most {c['le']:g}",
    "too_short": lambda c: f"expected at least {c['min_length']} in the list",
    "too_long": lambda c: f"expected {c['max_length']} in the list, not {c['actual_length']}",
    "string_pattern_mismatch": lambda c: (
        "expected a name of letters, digits, dots, dashes and underscores that begins with a "
        "letter or digit"
        if c["pattern"] == NAME
        else f"expected a text like {c['pattern']}"
    ),
}
SECTIONS = {"model_type", "model_attributes_type", "dict_type"}
LISTS = {"tuple_type", "list_type"}


def explain(
    path: Path | str, error: ValidationError, root: type[BaseModel], within: str = ""
) -> list[str]:
    """Say what is wrong with a recipe.

    Args:
        path: The recipe's file.
        error: The validator's.
        root: Model that was validated.
        within: Dotted key of it in the recipe; empty for the whole.

    Returns:
        A line for each fault: file, key, and for a misspelt key or value the nearest one.
    """
    found: dict[tuple[Any, ...], list[str]] = {}
    for item in error.errors():
        location, ways = _place(root, [part for part in item["loc"] if part != "[key]"])
        said = found.setdefault(tuple(location), [])
        text = _fault(root, item, location)
        if not ways:
            said.append(text)
        elif not said:  # one value, and one fault for each of the types that it may have
            said.append(f"expected {ways}{_given(item.get('input'))}")
    lines = []
    for key, texts in found.items():
        where = ".".join(filter(None, [within, *map(str, key)]))
        lines += [": ".join(filter(None, [str(path), where, text])) for text in texts]
    return lines


def _place(root: type[BaseModel], location: list[Any]) -> tuple[list[Any], str]:
    """Where a fault is, without the type that was tried, and all types that there are, in words."""
    annotation: Any = root
    for depth, part in enumerate(location):
        annotation = present(inside(annotation, part))
        if get_origin(annotation) in (Union, UnionType):
            return location[: depth + 1], _either([_words(way) for way in get_args(annotation)])
    return location, ""


def _words(annotation: Any) -> str:
    if get_origin(annotation) is Literal:
        return _either([str(choice) for choice in get_args(annotation)])
    return {bool: "true, false", int: "a whole number", float: "a number", str: "a text"}[
        annotation
    ]


def _given(value: Any) -> str:
    return "" if isinstance(value, (dict, BaseModel)) else f" (given: {value!r})"


def _fault(root: type[BaseModel], item: Any, location: list[Any]) -> str:
    """One fault, without the place of it."""
    kind = item["type"]
    if kind == "extra_forbidden":
        remedy = whose_arguments(str(location[-1]))
        return "unknown key" + (remedy or _suggestion(root, location))
    if kind == "missing":
        return "missing; the recipe must give it"
    if kind == "value_error":
        text = item["msg"].removeprefix("Value error, ")
    else:
        text = _expected(root, item, location)
    return text if kind == "literal_error" else text + _given(item.get("input"))


def _expected(root: type[BaseModel], item: Any, location: list[Any]) -> str:
    kind, annotation = item["type"], root
    for part in location:
        annotation = inside(annotation, part)
    if kind == "literal_error":
        choices = [str(choice) for choice in get_args(_literal(annotation))]
        meant = {**{a: v for a, v in MEANT.items() if v in choices}, **{c: c for c in choices}}
        near = did_you_mean(str(item["input"]), meant)
        return f"expected {_either(choices)}{_given(item['input'])}{near}"
    if kind in LISTS:
        return f"expected a list, such as {location[-1]}: [{item['input']}]"
    if kind in SECTIONS:
        return (
            f"expected a section, such as {location[-1] if location else ''}: {_line(annotation)}"
        )
    return WORDS[kind](item.get("ctx") or {}) if kind in WORDS else "not what is expected here"


def _literal(annotation: Any) -> Any:
    """The choices among which a value stands, wherever they are in its annotation."""
    annotation = present(annotation)
    if get_origin(annotation) is Literal:
        return annotation
    found = (_literal(part) for part in get_args(annotation))
    return next((one for one in found if one is not None), None)


def _line(annotation: Any) -> str:
    """A section on one line, with a blank for each value that it must have."""
    annotation = present(annotation)
    if get_origin(annotation) is dict:
        return f"{{NAME: {_line(get_args(annotation)[-1])}}}"
    if not is_section(annotation):
        return "..."
    fields = annotation.model_fields
    keys = [name for name, field in fields.items() if field.is_required()]
    keys = keys or [annotation.MAIN or next(iter(fields))]
    return f"{{{', '.join(f'{key}: ...' for key in keys)}}}"


def _either(choices: list[str]) -> str:
    return choices[0] if len(choices) == 1 else f"{', '.join(choices[:-1])} or {choices[-1]}"


def _suggestion(root: type[BaseModel], location: list[Any]) -> str:
    """The key that may be meant: of this section by its name, of another, or one that is near."""
    valid = _keys_at(root, location[:-1])
    key = str(location[-1])
    meant = {alias: k for alias, keys in ALIASES.items() for k in _listed(keys) if k in valid}
    meant |= {k: k for k in valid}
    if here := did_you_mean(key, meant, SURE):
        return here
    wanted = {key, *_listed(ALIASES.get(key, ()))}
    others = [f"{d}.{k}" for d, s in sections(root) if d for k in wanted & s.model_fields.keys()]
    if others := sorted(others, key=lambda dotted: (dotted.count("."), len(dotted))):
        return f"; did you mean {' or '.join(map(repr, others[:3]))}?"
    return did_you_mean(key, meant) or (f"; valid keys here: {', '.join(valid)}" if valid else "")


def _listed(keys: str | Iterable[str]) -> tuple[str, ...]:
    return (keys,) if isinstance(keys, str) else tuple(keys)


def _keys_at(root: type[BaseModel], location: list[Any]) -> list[str]:
    """Field names that the schema has at `location` under `root`."""
    model: Any = root
    for part in location:
        model = inside(model, part)
    model = present(model)
    return list(model.model_fields) if is_section(model) else []
