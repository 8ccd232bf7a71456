"""What options of the command line mean in a recipe, where it is more than a value for a key."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from deltalearn.errors import UserError, refuse_idle


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


def refuse_local(options: Mapping[str, Any]) -> None:
    """UserError for options about a model that is here, beside the URL of a server."""
    if options.get("models.*.server.url") is not None:
        keys = ("generate.engine", "device", "dtype")
        given = {f"--{k.rpartition('.')[2]}": options.get(k) not in (None, "auto") for k in keys}
        refuse_idle(given, "beside --url: the server decides")
