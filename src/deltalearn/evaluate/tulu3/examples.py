"""The worked examples of the suite's prompts: where they are, and that they are the published ones.

They are public and lm_eval has nearly all of them in task files of its own, so they are taken from
there, with the few characters changed in which OLMES differs; a digest of the result is checked.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import yaml

from deltalearn.errors import UserError, needs
from deltalearn.evaluate.tulu3.sources import Row
from deltalearn.util.files import digest


def published(name: str, rows: list[Row], expected: str) -> list[Row]:
    """Return the rows, if they are the published ones.

    Args:
        name: Of the examples, for the error.
        rows: The examples.
        expected: What the digest of the published ones begins with.

    Raises:
        UserError: If lm_eval's task files are others.
    """
    if digest(rows)[: len(expected)] != expected:
        raise UserError(
            f"the examples of {name} are not the published ones: lm_eval has changed its task "
            "files; install lm_eval 0.4.13"
        )
    return rows


def lm_eval_task(path: str) -> dict[str, Any]:
    """A task file of the installed lm_eval, read as data: no function in it is loaded."""
    with needs("the Tülu 3 suite needs lm_eval", "evaluate"):
        import lm_eval.tasks
    text = (Path(lm_eval.tasks.__file__).parent / path).read_text(encoding="utf-8")
    return yaml.load(text, Loader=_Plain)  # noqa: S506 (a SafeLoader)


class _Plain(yaml.SafeLoader):
    """Reads functions of a task file as their names."""


_Plain.add_multi_constructor("!function", lambda loader, suffix, node: str(node.value))
