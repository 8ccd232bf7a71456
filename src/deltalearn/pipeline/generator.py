"""From a recipe to answers: which engine asks which model, how, and under which identity.

Nothing heavy is imported until an engine is made.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import dataclass
from functools import cached_property
from typing import TYPE_CHECKING, Annotated

from pydantic import Field

from deltalearn.lm.clock import reads_clock, today
from deltalearn.lm.locate import ModelFiles, locate
from deltalearn.openai_api import Endpoint
from deltalearn.pipeline.manifest import Manifest, ModelRecord
from deltalearn.pipeline.stage import Say
from deltalearn.recipe import STUDENT, GenerateSpec, GeneratorSpec, ModelSpec, PricesSpec, Recipe
from deltalearn.records import Placement, Prompt, Rendering, Request, Sampling
from deltalearn.responses.requests import RequestPlan, Settings

if TYPE_CHECKING:
    from deltalearn.generate.engines.vllm_offline import VllmOptions
    from deltalearn.generate.stage import Engine

IN_MEMORY = 100_000  # requests kept in memory; more are made anew each time they are read


def _nowhere() -> Placement:
    raise AssertionError("who only looks loads no model")


@dataclass(frozen=True)
class Generator:
    """One model of a recipe that generates: who it is and how it is asked.

    Attributes:
        day: That chat templates of the run take for today.
        pinned: Commit of a hub model with which the run began.
        placement: Finds device and dtype; called when the model is loaded here. No part of a job.
    """

    name: str
    model: GeneratorSpec
    spec: GenerateSpec
    day: str | None = None
    pinned: str | None = None
    placement: Annotated[Callable[[], Placement], Field(exclude=True)] = _nowhere

    @cached_property
    def files(self) -> ModelFiles | None:
        """The model's files; None behind a server."""
        if self.model.server is not None:
            return None
        model = self.model
        return locate(model.place, model.revision or self.pinned, model.chat_template)

    @property
    def identity(self) -> str:
        """Fingerprint of the model's files, or its name at a server.

        The server's address is not part of it: the same model on another port is not paid twice.
        """
        if self.files is not None:
            return self.files.fingerprint
        assert self.model.server is not None
        name = self.model.server.model or self.model.path
        return f"served:{name}" + (f"@{self.model.revision}" if self.model.revision else "")

    @cached_property
    def rendering(self) -> Rendering:
        """Arguments and day of its chat template; a server has a clock of its own."""
        return rendering_of(self.model, self.files, self.day)

    @property
    def record(self) -> ModelRecord:
        """The model's entry in a manifest."""
        if self.files is None:
            return ModelRecord(self.model.path, self.identity, server=self.endpoint.shown)
        return model_record(self.model.place, self.files)

    @cached_property
    def settings(self) -> Settings:
        """All but the prompt that decides an answer."""
        spec, server = self.spec, self.model.server
        sampling = Sampling(spec.temperature, spec.top_p, spec.max_tokens)
        return Settings(
            sampling,
            seed=spec.seed,
            samples=spec.samples,
            system=self.model.system or spec.system,
            template=self.rendering.arguments,
            day=self.rendering.day,
            body=server.body if server else {},
        )

    @cached_property
    def endpoint(self) -> Endpoint:
        """The server of a model that is not here."""
        server = self.model.server
        assert server is not None
        values = server.model_dump(exclude={"prices", "model"})
        return Endpoint(**values, model=server.model or self.model.path)

    @property
    def prices(self) -> PricesSpec | None:
        """Prices of its tokens, if the recipe has them."""
        return self.model.server.prices if self.model.server else None

    def requests(self, prompts: Iterable[Prompt], number: int) -> Iterable[Request]:
        """Plan what it is asked of `number` prompts; the result can be read again."""
        plan = RequestPlan(self.identity, prompts, self.settings)
        return list(plan) if number * self.spec.samples <= IN_MEMORY else plan

    def engine(self, say: Say = print) -> Engine:
        """Make the engine that asks it; UserError if something is missing for that."""
        spec, sampling, how = self.spec, self.settings.sampling, self.rendering
        if self.files is None:
            from deltalearn.generate.engines.openai_server import ServedEngine

            return ServedEngine(self.endpoint, sampling, how.arguments, say)
        if spec.engine == "vllm":
            from deltalearn.generate.engines.vllm_offline import VllmEngine

            return VllmEngine(self.files, sampling, self._vllm, how, say)
        if spec.engine == "ray":
            from deltalearn.generate.engines.ray_cluster import RayEngine, RayOptions

            options = RayOptions(**spec.ray.model_dump(), vllm=self._vllm)
            model = self.model
            place = model.place, model.revision or self.pinned, model.chat_template
            budget = spec.token_budget
            return RayEngine(
                place, self.files, self.placement(), sampling, budget, options, how, say
            )
        from deltalearn.generate.engines.hf import TransformersEngine

        return TransformersEngine(self.files, self.placement(), sampling, spec.token_budget, how)

    @property
    def _vllm(self) -> VllmOptions:
        from deltalearn.generate.engines.vllm_offline import VllmOptions

        spec = self.spec.vllm
        engine = {"dtype": self.placement().dtype, "tensor_parallel_size": spec.tensor_parallel}
        others = {"gpu_memory_utilization": spec.memory, "max_model_len": spec.context}
        engine |= {name: value for name, value in others.items() if value is not None}
        return VllmOptions(spec.python, engine | spec.options)


def rendering_of(model: ModelSpec, files: ModelFiles | None, day: str | None) -> Rendering:
    """Find the arguments and the day of a model's chat template in a run.

    Args:
        model: As in the recipe.
        files: Of the model, or of one tuned from it; None behind a server.
        day: The run's; one that the template does not read is left out, so that no key has it.
    """
    reads = files is not None and reads_clock(files.directory)
    return Rendering(model.template, day if reads else None)


def chosen_template_line(name: str, model: ModelSpec) -> str | None:
    """Say that a model is asked by a chat template that is not its own; None if it is."""
    if model.chat_template is None:
        return None
    return f"{name}: conversations are rendered by the chosen chat_template {model.chat_template}"


def model_record(path: str, files: ModelFiles) -> ModelRecord:
    """Make the manifest's entry of a model that is here; `path` is as in the recipe."""
    return ModelRecord(path, files.fingerprint, files.commit)


def make_generators(
    recipe: Recipe, manifest: Manifest | None, placement: Callable[[], Placement] = _nowhere
) -> dict[str, Generator]:
    """Make a generator of each model of a recipe, and of the student, who may answer too.

    The manifest of the run has the commits of hub models that it began with.
    """
    models: dict[str, GeneratorSpec] = dict(recipe.models)
    if recipe.student is not None:
        models = {STUDENT: recipe.model(STUDENT), **models}
    found = {}
    for name, model in models.items():
        pinned = manifest.pinned(name, model.place) if manifest else None
        day = recipe.day or (manifest.day if manifest else today())
        found[name] = Generator(name, model, recipe.generate, day, pinned, placement)
    return found


def asked_models(recipe: Recipe) -> list[str]:
    """Names of the models that answer: those that an arm needs, or all where there are no arms."""
    return list(recipe.generators if recipe.arms else recipe.models)
