"""What each command reads of a recipe, and what it cannot do without."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any

from deltalearn.recipe.schema import Recipe


def _nothing(recipe: Recipe) -> str | None:
    return None


@dataclass(frozen=True)
class Command:
    """One command's view of a recipe.

    sections: the top-level keys that it reads; others are checked and left alone. needs: dotted
    keys that must be given, each with the option that gives it, if there is one. defaults: what
    stands for a top-level key that is not given. home: the section that is meant where `--set`
    names none. refuses: what a valid recipe lacks for this command, in words.
    """

    name: str
    sections: tuple[str, ...]
    needs: Mapping[str, str | None]
    defaults: Mapping[str, Any] = field(default_factory=dict)
    home: str | None = None
    refuses: Callable[[Recipe], str | None] = _nothing

    def part(self, recipe: Recipe) -> Recipe:
        """The recipe without what this command does not read."""
        others = Recipe.model_fields.keys() - set(self.sections)
        fields = {name: Recipe.model_fields[name] for name in others}
        unset = {n: f.get_default(call_default_factory=True) for n, f in fields.items()}
        return recipe.model_copy(update=unset)

    def lacks(self, values: Mapping[str, Any]) -> list[str]:
        """A line for each key that the command needs and nobody gave."""
        lines = []
        for dotted, option in self.needs.items():
            found: Any = values
            for key in dotted.split("."):
                found = found.get(key) if isinstance(found, Mapping) else None
            if not found:
                remedy = f": give {option}, or a recipe that has it" if option else ""
                lines.append(f"{dotted}: missing; `deltalearn {self.name}` needs it{remedy}")
        return lines


def _of_run(recipe: Recipe) -> str | None:
    if recipe.pairs.source is not None:
        return (
            "pairs.source has no effect beside arms; give it to one: arms.NAME.pairs.source, or "
            "tune one model on these pairs with `deltalearn tune --recipe`"
        )
    if recipe.generators and recipe.prompts is None:
        return f"prompts: missing; {', '.join(recipe.generators)} must be asked something"
    return None


def _of_tune(recipe: Recipe) -> str | None:
    if len(recipe.seeds) > 1:
        seeds = ", ".join(map(str, recipe.seeds))
        return f"seeds: `deltalearn tune` trains one student, not one each of {seeds}; give --seed"
    return None


RUN = Command(
    "run",
    tuple(section for section in Recipe.model_fields if section != "compare"),
    {"name": None, "student": None, "arms": None},
    refuses=_of_run,
)
GENERATE = Command(
    "generate",
    ("name", "device", "dtype", "day", "models", "prompts", "generate"),
    {"models": "--model", "prompts.source": "--prompts"},
    {"name": "generate"},
)
TUNE = Command(
    "tune",
    ("name", "seeds", "device", "dtype", "day", "student", "pairs", "tune", "expect"),
    {"student.path": "--student", "pairs.source": "--pairs"},
    {"name": "tune", "seeds": [0]},
    home="tune",
    refuses=_of_tune,
)
EVALUATE = Command(
    "evaluate",
    ("name", "device", "dtype", "day", "student", "evaluate"),
    {"student.path": "a model", "evaluate": "--benchmark"},
    {"name": "evaluate"},
    home="evaluate",
)
COMPARE = Command(
    "compare",
    ("name", "compare"),
    {
        "compare.a": "A, a directory that `deltalearn evaluate` wrote, one with several (training "
        "seeds), or RUN:ARM",
        "compare.b": "B, likewise",
    },
    {"name": "compare"},
)
COMMANDS = (RUN, GENERATE, TUNE, EVALUATE, COMPARE)
