"""YAML as recipes have it: what is written, without the surprises of YAML 1.1."""

from __future__ import annotations

import re
from typing import Any

import yaml

from deltalearn.errors import UserError


class _Loader(yaml.SafeLoader):
    """Safe YAML that refuses a key given twice, reads 1e-4 as a number and a date as text."""


class _Dumper(yaml.SafeDumper):
    """Writes what `_Loader` reads back: a string that it would take for a number is quoted."""


def _mapping(loader: _Loader, node: yaml.MappingNode) -> dict:
    seen = set()
    for key_node, _ in node.value:
        merges = key_node.tag == "tag:yaml.org,2002:merge"  # `<<` stands for no value of its own
        key = "<<" if merges else loader.construct_object(key_node)
        if key in seen:
            mark = key_node.start_mark
            raise yaml.constructor.ConstructorError(
                None, None, f"the key {key!r} is given twice", mark
            )
        seen.add(key)
    return yaml.SafeLoader.construct_mapping(loader, node, deep=True)


_Loader.add_constructor(yaml.resolver.BaseResolver.DEFAULT_MAPPING_TAG, _mapping)
for _side in (_Loader, _Dumper):  # YAML 1.1 takes 1e-4 for a string; everyone means a number
    _side.add_implicit_resolver(
        "tag:yaml.org,2002:float",
        re.compile(r"^[-+]?[0-9]+(\.[0-9]*)?[eE][-+]?[0-9]+$"),
        list("-+0123456789"),
    )
_DATE = "tag:yaml.org,2002:timestamp"
_Loader.yaml_implicit_resolvers = {
    first: [(tag, pattern) for tag, pattern in resolvers if tag != _DATE]
    for first, resolvers in _Loader.yaml_implicit_resolvers.items()
}
_Loader.add_constructor(_DATE, lambda _, node: str(node.value))


def read_yaml(text: str | bytes, where: str) -> Any:
    """Read YAML whose values can all be written as JSON.

    Args:
        text: The YAML.
        where: Whence it comes, for errors.

    Returns:
        The value. A date is the text that was written: what takes one reads it, and JSON has none.

    Raises:
        UserError: If it is none.
    """
    try:
        return yaml.load(text, Loader=_Loader)  # noqa: S506 (a SafeLoader)
    except (yaml.YAMLError, ValueError, TypeError, RecursionError) as error:
        # All but the first come from values: a 13th month, a list as key, a thousand brackets.
        raise UserError(f"{where}: not valid YAML: {error}") from error


def one_line(value: Any) -> str:
    """Write a value as YAML on one line, as `read_yaml` reads it back."""
    text = yaml.dump(
        value, Dumper=_Dumper, default_flow_style=True, width=10**6, allow_unicode=True
    )
    return text.removesuffix("\n").removesuffix("\n...")
