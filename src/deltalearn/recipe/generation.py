"""Sections `prompts` and `generate`: what models are asked, and how they answer."""

from __future__ import annotations

from typing import Any, Literal

from pydantic import Field, model_validator

from deltalearn.recipe.base import SourceSpec, Spec


class PromptsSpec(SourceSpec):
    """Where prompts come from: JSON, CSV, Parquet, a folder of them, or a Hugging Face data set."""

    column: str | None = Field(None, description="Of the prompts; default: by its usual names.")
    id_column: str = Field("id", description="Names of prompts.")
    limit: int | None = Field(None, ge=1, description="Use so many prompts.")
    select: Literal["first", "random"] = Field("first", description="Which ones, with limit.")
    seed: int = Field(0, ge=0, description="Of a random selection.")

    @model_validator(mode="after")
    def _effective(self) -> PromptsSpec:
        if self.limit is None:
            self.idle("without limit; give both or neither", "select")
        if self.select != "random":
            self.idle("unless select is random; remove it", "seed")
        return self


class VllmSpec(Spec):
    """vLLM offline, each model in a process of its own."""

    python: str | None = Field(
        None, description="An interpreter that has vLLM, if it is another one than this."
    )
    tensor_parallel: int = Field(1, ge=1, description="GPUs that one model is split over.")
    memory: float | None = Field(None, gt=0, le=1, description="Share of a GPU; default: vLLM's.")
    context: int | None = Field(None, ge=1, description="Tokens; default: the model's.")
    options: dict[str, Any] = Field(
        default_factory=dict, description="Any other argument of vllm.LLM."
    )


class RaySpec(Spec):
    """Workers on a Ray cluster, or on this machine."""

    address: str | None = Field(
        None, description="auto or ray://...; default: a cluster of this machine alone."
    )
    workers: int | None = Field(None, ge=1, description="Default: as many as there is room for.")
    engine: Literal["auto", "transformers", "vllm"] = Field(
        "auto", description="Of a worker; auto: vllm where there are GPUs."
    )
    cpus: float = Field(1.0, ge=0, description="Of each worker.")
    gpus: float | None = Field(None, ge=0, description="Of each worker.")


class GenerateSpec(Spec):
    """Settings of the models' answers. temperature 0 is greedy, as in the paper."""

    engine: Literal["transformers", "vllm", "ray"] = Field(
        "transformers", description="Of models without a server."
    )
    temperature: float = Field(0.0, ge=0, description="Of sampling; 0 is greedy.")
    top_p: float = Field(1.0, gt=0, le=1, description="Probability mass that is sampled from.")
    max_tokens: int = Field(2048, ge=1, description="Of an answer.")
    samples: int = Field(1, ge=1, description="Answers to a prompt from each model.")
    seed: int = Field(0, ge=0, description="Of sampled answers.")
    system: str | None = Field(
        None, min_length=1, description="System turn where a prompt has none."
    )
    template: dict[str, Any] = Field(
        default_factory=dict, description="Of models that set none themselves, everywhere."
    )
    token_budget: int = Field(
        16384, ge=1, description="Rows x (longest prompt + max_tokens) in a batch."
    )
    vllm: VllmSpec = Field(VllmSpec(), description="Of the engine vllm.")
    ray: RaySpec = Field(RaySpec(), description="Of the engine ray.")

    @model_validator(mode="after")
    def _effective(self) -> GenerateSpec:
        if self.temperature == 0:
            self.idle("at temperature 0; remove it", "top_p", "seed", "samples")
        if self.engine != "ray":
            self.idle(f"on the engine {self.engine}; remove it", "ray")
        uses_vllm = self.engine == "vllm" or (
            self.engine == "ray" and self.ray.engine in ("auto", "vllm")
        )
        if not uses_vllm:
            self.idle("unless the engine is vllm; remove it", "vllm")
        if self.engine == "vllm":
            self.idle("on vllm, which batches by itself", "token_budget")
        return self
