"""From a recipe to answers: which engine asks which model, how, and under which identity.

Shared by the pipeline and by `deltalearn generate`. Nothing heavy is imported until an engine is
made.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any

from deltalearn.files import digest, read_jsonl_lazily, write_jsonl
from deltalearn.lm.locate import ModelFiles, locate
from deltalearn.recipe.schema import GenerateSpec, GeneratorSpec, PromptsSpec, ServerSpec
from deltalearn.records import Prompt, Request, Sampling
from deltalearn.rundir import RunDirectory

if TYPE_CHECKING:
    from deltalearn.generate import ResponseStore
    from deltalearn.generate.requests import Settings
    from deltalearn.generate.served import Endpoint
    from deltalearn.generate.stage import Engine, Prices
    from deltalearn.lm.load import Placement
    from deltalearn.prompts import PromptSet

Say = Callable[[str], None]
IN_MEMORY = 100_000  # requests kept in memory; more are made anew each time they are read
REJECTS_SHOWN = 3


@dataclass(frozen=True)
class Respondent:
    """One model of a recipe: who it is and how it is asked.

    pinned: the commit of a hub model that a run began with. placement: called when a model is
    loaded here.
    """

    name: str
    model: GeneratorSpec
    spec: GenerateSpec
    placement: Callable[[], Placement]
    pinned: str | None = None

    @cached_property
    def files(self) -> ModelFiles | None:
        """The model's files; None behind a server."""
        if self.model.server is not None:
            return None
        return locate(self.model.path, self.model.revision or self.pinned)

    @property
    def identity(self) -> str:
        """What makes the model the same one: its files' fingerprint, or its name at a server.

        The server's address is not part of it: the same model on another port is not paid twice.
        """
        if self.files is not None:
            return self.files.fingerprint
        assert self.model.server is not None
        name = self.model.server.model or self.model.path
        return f"served:{name}" + (f"@{self.model.revision}" if self.model.revision else "")

    @property
    def record(self) -> dict[str, str]:
        """What a manifest says of the model."""
        record = {"path": self.model.path, "fingerprint": self.identity}
        if self.files is None:
            record["server"] = self.endpoint.shown
        elif self.identity.startswith("hub:"):
            record["commit"] = self.identity.rpartition("@")[2]
        return record

    @cached_property
    def settings(self) -> Settings:
        """How it is asked."""
        from deltalearn.generate.requests import Settings

        spec, server = self.spec, self.model.server
        sampling = Sampling(spec.temperature, spec.top_p, spec.max_tokens)
        return Settings(
            sampling,
            seed=spec.seed,
            samples=spec.samples,
            system=self.model.system or spec.system,
            template=spec.template,
            body=server.body if server else {},
        )

    @cached_property
    def endpoint(self) -> Endpoint:
        """Where it is asked, for a model behind a server."""
        from deltalearn.generate.served import Endpoint

        server = self.model.server
        assert server is not None
        values = server.model_dump(exclude={"prices", "model"})
        return Endpoint(**values, model=server.model or self.model.path)

    @property
    def prices(self) -> Prices | None:
        """What its tokens cost, if the recipe says so."""
        from deltalearn.generate.stage import Prices

        server: ServerSpec | None = self.model.server
        return Prices(**server.prices.model_dump()) if server and server.prices else None

    def requests(self, prompts: Iterable[Prompt], number: int) -> Iterable[Request]:
        """All that it is asked, of `number` prompts; can be read again."""
        from deltalearn.generate.requests import RequestPlan

        plan = RequestPlan(self.identity, prompts, self.settings)
        return list(plan) if number * self.spec.samples <= IN_MEMORY else plan

    def engine(self, say: Say = print) -> Engine:
        """What asks it. UserError if something is missing for it."""
        spec, sampling, template = self.spec, self.settings.sampling, self.spec.template
        if self.files is None:
            from deltalearn.generate.served import ServedEngine

            return ServedEngine(self.endpoint, sampling, template, say)
        if spec.engine == "vllm":
            from deltalearn.generate.vllm_engine import VllmEngine

            return VllmEngine(self.files, sampling, self._vllm, template, say)
        if spec.engine == "ray":
            from deltalearn.generate.ray_engine import RayEngine, RayOptions

            options = RayOptions(**spec.ray.model_dump(), vllm=self._vllm)
            place = self.model.path, self.model.revision or self.pinned
            budget = spec.token_budget
            return RayEngine(
                place, self.files, self.placement(), sampling, budget, options, template, say
            )
        from deltalearn.generate.transformers_engine import TransformersEngine

        return TransformersEngine(
            self.files, self.placement(), sampling, spec.token_budget, template
        )

    @property
    def _vllm(self) -> Any:
        from deltalearn.generate.vllm_engine import VllmOptions

        spec = self.spec.vllm
        engine: dict[str, Any] = {"dtype": self.placement().dtype}
        engine |= {"tensor_parallel_size": spec.tensor_parallel}
        if spec.memory is not None:
            engine["gpu_memory_utilization"] = spec.memory
        if spec.context is not None:
            engine["max_model_len"] = spec.context
        return VllmOptions(spec.python, engine | spec.options)


@dataclass(frozen=True)
class PromptFile:
    """The prompts that a run has kept, read from its file at each iteration."""

    path: Path

    def __iter__(self) -> Iterator[Prompt]:
        for row in read_jsonl_lazily(self.path):
            yield Prompt(row["id"], tuple(row["messages"]))


def read_and_keep_prompts(spec: PromptsSpec, folder: Path, say: Say) -> dict[str, int]:
    """Read prompts as `spec` says and keep them in `folder`; return counts.

    prompts.jsonl has the usable ones, prompts.rejects.jsonl the others with file, line and reason.
    """
    from deltalearn.prompts import read_prompts

    found: PromptSet = read_prompts(**spec.model_dump())
    rows = ({"id": p.id, "messages": list(p.messages)} for p in found.prompts)
    write_jsonl(folder / "prompts.jsonl", rows)
    rejects = folder / "prompts.rejects.jsonl"
    write_jsonl(rejects, found.rejects)
    for reject in found.rejects[:REJECTS_SHOWN]:
        say(f"  rejected {reject['where']}: {reject['reason']}")
    if len(found.rejects) > REJECTS_SHOWN:
        say(f"  ... all {len(found.rejects)} in {rejects}")
    return found.counts


STORE = "responses.sqlite"
STORE_FILES = (STORE, f"{STORE}-wal", f"{STORE}-shm")


@dataclass(frozen=True)
class AnswerStage:
    """The stage in which one model answers: what identifies it, and its work.

    prompts_key: of the stage that left prompts.jsonl. prompts: how many there are.
    """

    respondent: Respondent
    directory: RunDirectory
    prompts_key: str
    prompts: int
    retry_errors: bool
    say: Say

    @property
    def name(self) -> str:
        """As the manifest has it."""
        return f"generate/{self.respondent.name}"

    @property
    def requests(self) -> Iterable[Request]:
        """All that the model is asked."""
        kept = PromptFile(self.directory.path / "prompts.jsonl")
        return self.respondent.requests(kept, self.prompts)

    def inputs(self) -> dict[str, Any]:
        """What the key is made of."""
        settings = self.respondent.settings
        return {
            "prompts": self.prompts_key,
            "model": self.respondent.identity,
            "how": settings.how(),
            "samples": settings.samples,
        }

    def review(self) -> None:
        """Reopen the stage if it is done and the store has not what it left, or errors to retry.

        Answers may have been forgotten, merged or imported meanwhile.
        """
        directory = self.directory
        if not directory.is_done(self.name, digest(self.inputs())):
            return
        errors = directory.counts(self.name)["errors"]
        if (self.retry_errors and errors) or not self._is_as_left():
            directory.reopen(self.name)

    def _is_as_left(self) -> bool:
        from deltalearn.generate import ResponseStore
        from deltalearn.generate.stage import fingerprint

        left = self.directory.manifest["answers"].get(self.name, {})
        with ResponseStore(self.directory.path / STORE, existing=True) as store:
            mark = store.mark()
            if mark != left.get("mark"):  # or else nobody has stored or deleted anything
                if fingerprint(store, self.requests) != left.get("fingerprint"):
                    return False
                self._call(store)
                left["mark"] = mark
                self.directory.save()
        return True

    def _call(self, store: ResponseStore) -> None:
        respondent = self.respondent
        store.name_model(respondent.identity, respondent.name, respondent.settings.how())

    @property
    def content(self) -> str:
        """Hash of the answers that the stage left."""
        return self.directory.manifest["answers"][self.name]["fingerprint"]

    def work(self) -> dict[str, Any]:
        """Ask what the store does not have; counts."""
        from deltalearn.generate import ResponseStore, generate
        from deltalearn.generate.stage import fingerprint

        requests = self.requests
        with ResponseStore(self.directory.path / STORE) as store:
            self._call(store)
            before = store.mark()
            counts = generate(
                store,
                requests,
                lambda: self.respondent.engine(self.say),
                title=self.respondent.name,
                prices=self.respondent.prices,
                retry_errors=self.retry_errors,
            )
            left, mark = self.directory.manifest["answers"], store.mark()
            for other in left.values():
                if other["mark"] == before:  # what came since is not another stage's
                    other["mark"] = mark
            left[self.name] = {"mark": mark, "fingerprint": fingerprint(store, requests)}
        return counts
