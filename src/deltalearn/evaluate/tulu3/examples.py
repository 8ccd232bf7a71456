"""The worked examples of the suite's prompts: where they are, and that they are the published ones.

They are public and lm_eval has nearly all of them in task files of its own, so they are taken from
there, with the few characters changed in which OLMES differs; a digest of the result is checked
(examples.json: what it begins with, by benchmark).
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import yaml

from deltalearn.errors import UserError, needs
from deltalearn.util.files import digest


def published(name: str, rows: list[Any]) -> list[Any]:
    """Return the rows, if they are the published examples of a benchmark.

    Args:
        name: Of the examples in examples.json.
        rows: The examples.

    Raises:
        UserError: If lm_eval's task files are others.
    """
    if not are_published(name, rows):
        raise UserError(
            f"the examples of {name} are not the published ones: lm_eval has changed its task "
            "files; install lm_eval 0.4.13"
        )
    return rows


def are_published(name: str, rows: list[Any]) -> bool:
    """Tell whether rows are the published examples of a benchmark.

    Args:
        name: Of the examples in examples.json.
        rows: The examples.
    """
    expected = json.loads(Path(__file__).with_suffix(".json").read_text(encoding="utf-8"))[name]
    return digest(rows).startswith(expected)


def lm_eval_task(path: str) -> dict[str, Any]:
    """A task file of the installed lm_eval, read as data: no function in it is loaded."""
    with needs("the Tülu 3 suite needs lm_eval", "evaluate"):
        import lm_eval.tasks
    text = (Path(lm_eval.tasks.__file__).parent / path).read_text(encoding="utf-8")
    return yaml.load(text, Loader=_Plain)  # noqa: S506 (a SafeLoader)


class _Plain(yaml.SafeLoader):
    """Reads functions of a task file as their names."""


_Plain.add_multi_constructor("!function", lambda loader, suffix, node: str(node.value))
