"""What the stages of one run share: recipe, directory, models, and the stages so far."""

from __future__ import annotations

from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path

from deltalearn.lm.locate import ModelFiles
from deltalearn.pipeline.directory import RunDirectory
from deltalearn.pipeline.generator import Generator, chosen_template_line, make_generators
from deltalearn.pipeline.stage import Say, Stage, stage_line
from deltalearn.recipe import Recipe
from deltalearn.records import Placement


@dataclass
class Context:
    """One run at work.

    Attributes:
        update: Let what cost something be lost where inputs changed.
        retry_errors: Ask again what ended in errors.
        keys: Of the stages so far; what reads a stage's outputs takes its key for their identity.
    """

    recipe: Recipe
    directory: RunDirectory
    say: Say
    update: bool = False
    retry_errors: bool = False
    keys: dict[str, str] = field(default_factory=dict)
    _said: set[str] = field(default_factory=set)

    def run(self, stage: Stage) -> None:
        """Have a stage work unless it is done, and tell of it."""
        self.keys[stage.name] = stage.key
        # Answers asked for anew make other pairs; who asked for that wants the students of those.
        if self.directory.run(stage, over=self.update or self.retry_errors):
            self.say(stage_line(stage.name, self.directory.manifest.stages[stage.name]))

    def path(self, *parts: str) -> Path:
        """Join the parts of a path in the run."""
        return self.directory.path.joinpath(*parts)

    def say_once(self, line: str) -> None:
        """Say a line only the first time: it is the same for several stages."""
        if line not in self._said:
            self._said.add(line)
            self.say(line)

    @cached_property
    def generators(self) -> dict[str, Generator]:
        """All models of the recipe, identified; a hub model keeps its first commit."""
        manifest = self.directory.manifest
        found = make_generators(self.recipe, manifest, lambda: self.placement)
        manifest.models |= {name: generator.record for name, generator in found.items()}
        for name, generator in found.items():
            if line := chosen_template_line(name, generator.model):
                self.say_once(line)
        return found

    @cached_property
    def models(self) -> dict[str, ModelFiles]:
        """The models that are here, not behind a server."""
        files = {name: g.files for name, g in self.generators.items()}
        return {name: f for name, f in files.items() if f is not None}

    @cached_property
    def placement(self) -> Placement:
        """Device and dtype, resolved."""
        from deltalearn.lm.load import device_name, place

        placement = place(self.recipe.device, self.recipe.dtype)
        device = {"device": device_name(placement), "dtype": placement.dtype}
        self.directory.manifest.machine |= device
        return placement
