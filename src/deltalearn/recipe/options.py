"""What options of the command line mean in a recipe, where it is more than a value for a key."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from deltalearn.errors import UserError


def named_models(texts: Sequence[str]) -> dict[str, dict[str, str]]:
    """Options of `load_recipe` for `--model NAME=PATH`, or a path alone, named after its last part.

    Raises:
        UserError: two have one name, or one is neither.
    """
    called: dict[str, str] = {}
    options = {}
    for text in texts:
        name, sign, path = text.partition("=")
        if not sign:
            name, path = text.rstrip("/").rpartition("/")[2], text
        if not name or not path:
            raise UserError(f"--model {text}: expected NAME=PATH, or a path")
        if name in called:
            raise UserError(
                f"--model {called[name]} and --model {text} are both called {name!r}; give each a "
                "name of its own: --model NAME=PATH"
            )
        called[name] = text
        options[f"models.{name}"] = {"path": path}
    return options


def refuse_idle(options: Mapping[str, Any]) -> None:
    """UserError for options about a model that is here, beside the URL of a server."""
    if options.get("models.*.server.url") is None:
        return
    for key in ("generate.engine", "device", "dtype"):
        if options.get(key) not in (None, "auto"):
            option = key.rpartition(".")[2]
            raise UserError(f"--{option} has no effect beside --url: the server decides; remove it")
