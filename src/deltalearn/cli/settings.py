"""Options of the command line made from typed settings: type, default and help.

They are fields of a recipe, or of a dataclass. A command with such options is registered without
them, since a recipe's schema takes a while to import; they are added when it is called.
"""

from __future__ import annotations

import functools
import inspect
import types
from collections.abc import Callable, Mapping
from dataclasses import fields
from importlib import import_module
from pathlib import Path
from typing import Annotated, Any, Literal, Union, get_args, get_origin, get_type_hints

import typer
from typer.core import TyperGroup

Recipe = Annotated[str | None, typer.Option(help="A recipe, file or name; options win over it.")]
Template = Annotated[
    list[str] | None,
    typer.Option(metavar="KEY=VALUE", help="An argument of a model's chat template."),
]
Setting = Annotated[
    list[str] | None,
    typer.Option("--set", metavar="KEY=VALUE", help="Any other setting of a recipe, by its key."),
]
RunPlace = Annotated[
    Path | None, typer.Option(help="Where it goes; default runs/<name of the recipe>.")
]
JOURNEY = (
    "run",
    "generate",
    "pairs",
    "tune",
    "evaluate",
    "compare",
    "report",
    "recipe",
    "responses",
)
HELP: dict[str, Any] = {"help_option_names": ["-h", "--help"]}
MADE = "settings"  # the parameter of a command that gets them


def settings_of_recipe(flags: Mapping[str, str]) -> Callable[[Callable], Callable]:
    """A decorator that gives a command an option for each of some fields of a recipe.

    Args:
        flags: the option of each field by its dotted key, maybe with a name for its value
            (`--lora R`). The command gets them as `settings`, by the same keys; None: not given.
    """

    def decorate(function: Callable) -> Callable:
        def make() -> dict[str, Any]:
            from deltalearn.recipe.keys import field_at

            found = {key: field_at(key) for key in flags}
            return {
                key: _option(flags[key], field.annotation, field.default, field.description or "")
                for key, field in found.items()
            }

        function.flags = flags  # type: ignore[attr-defined]
        return _command(function, make, dict)

    return decorate


def settings_of_options(
    *places: str, flags: Mapping[str, str] | None = None
) -> Callable[[Callable], Callable]:
    """A decorator that gives a command an option for each field of some dataclasses.

    Args:
        places: `module:Class` of each; a field is Annotated with its help. The command gets a list
            with one of each as `settings`.
        flags: the option of a field, where it is not called after it.
    """

    def classes() -> list[Any]:
        found = (place.split(":") for place in places)
        return [getattr(import_module(module), name) for module, name in found]

    def make() -> dict[str, Any]:
        options = {}
        for one in classes():
            hints = get_type_hints(one, include_extras=True)
            for field in fields(one):
                flag = (flags or {}).get(field.name, f"--{field.name.replace('_', '-')}")
                kind, about = get_args(hints[field.name])
                options[field.name] = _option(flag, kind, field.default, about)
        return options

    def build(given: dict[str, Any]) -> list[Any]:
        given = {name: value for name, value in given.items() if value is not None}
        return [
            one(**{f.name: given[f.name] for f in fields(one) if f.name in given})
            for one in classes()
        ]

    return lambda function: _command(function, make, build)


class LazyCommands(TyperGroup):
    """A group in which a command gets its options from the recipe when it is called.

    `--help` lists the commands in the order of `JOURNEY`, each with the whole of what it does.
    """

    def list_commands(self, ctx: Any) -> list[str]:
        """Names, those that a newcomer needs first in the order in which they are needed."""
        names = super().list_commands(ctx)
        return sorted(names, key=lambda n: JOURNEY.index(n) if n in JOURNEY else len(JOURNEY))

    def format_commands(self, ctx: Any, formatter: Any) -> None:
        """Write the list of commands."""
        found = [(name, self.get_command(ctx, name)) for name in self.list_commands(ctx)]
        with formatter.section("Commands"):
            formatter.write_dl(
                [(name, (command and command.help) or "") for name, command in found]
            )

    def resolve_command(self, ctx: Any, args: list[str]) -> Any:
        """The command that is called, whole."""
        name, command, rest = super().resolve_command(ctx, args)
        assert command is not None  # as it is while nothing completes the line of a shell
        whole = getattr(inspect.unwrap(command.callback or len), "whole", None)
        if whole is not None:
            app = typer.Typer(add_completion=False, rich_markup_mode=None)
            app.command(name, help=command.help)(whole())
            command = typer.main.get_command(app)
        return name, command, rest


def _command(
    function: Callable, make: Callable[[], dict[str, Any]], build: Callable[[dict[str, Any]], Any]
) -> Callable:
    """`function` as Typer sees it before the options are made; its `whole()` has them."""
    hints = get_type_hints(function, include_extras=True)
    own = [p for p in inspect.signature(function).parameters.values() if p.name != MADE]
    own = [p.replace(annotation=hints[p.name]) for p in own]

    def whole() -> Callable:
        options = make()
        keys = {_name(key): key for key in options}
        made = [
            inspect.Parameter(name, inspect.Parameter.KEYWORD_ONLY, default=None, annotation=option)
            for name, option in zip(keys, options.values(), strict=True)
        ]

        def command(**values: Any) -> Any:
            settings = {key: values.pop(name) for name, key in keys.items()}
            return function(**values, **{MADE: build(settings)})

        return _shaped(command, function, [*own, *made])

    def bare(**values: Any) -> Any:
        return function(**values, **{MADE: {}})

    shaped = _shaped(bare, function, own)
    function.whole = whole  # type: ignore[attr-defined]
    return shaped


def _shaped(command: Callable, like: Callable, parameters: list[inspect.Parameter]) -> Callable:
    functools.update_wrapper(command, like)
    parameters = [p.replace(kind=inspect.Parameter.KEYWORD_ONLY) for p in parameters]
    command.__signature__ = inspect.Signature(parameters)  # type: ignore[attr-defined]
    command.__annotations__ = {p.name: p.annotation for p in parameters}
    return command


def _name(key: str) -> str:
    return key.replace(".", "__").replace("*", "each")


def _option(flag: str, annotation: Any, default: Any, about: str) -> Any:
    """The annotation of a parameter that Typer makes the option of a field of."""
    kind, metavar = _kind(annotation)
    flag, _, value = flag.partition(" ")
    # An option whose value has a name of its own switches something on: it has no default.
    about = " ".join(filter(None, [about, "" if value else _default(default)]))
    option = typer.Option(flag, help=about, metavar=value or metavar, show_default=False)
    return Annotated[kind | None, option]


def _default(value: Any) -> str:
    """What an option is when it is not given, if that is a plain value."""
    if isinstance(value, bool) or not isinstance(value, (int, float, str)):
        return ""
    return f"[default: {value:g}]" if isinstance(value, float) else f"[default: {value}]"


def _kind(annotation: Any) -> tuple[Any, str | None]:
    """The type of an option's value, and what the help shows for it."""
    if get_origin(annotation) in (Union, types.UnionType):
        annotation = next(part for part in get_args(annotation) if part is not type(None))
    if get_origin(annotation) is Annotated:
        return _kind(get_args(annotation)[0])
    if get_origin(annotation) is Literal:
        return str, f"[{'|'.join(map(str, get_args(annotation)))}]"
    if get_origin(annotation) is tuple:  # given one by one
        inner, metavar = _kind(get_args(annotation)[0])
        return list[inner], metavar  # type: ignore[valid-type]
    return annotation, None
