"""What a recipe may say. Every key has an effect; a key that would have none is an error.

Errors raised here name the key; `deltalearn.recipe.load` adds the file and the nearest valid key.
"""

from __future__ import annotations

import re
from typing import Annotated, Any, Literal
from urllib.parse import urlsplit

from pydantic import Field, field_validator, model_validator

from deltalearn.recipe.base import Decay, Fraction, Listed, Name, Spec
from deltalearn.recipe.evaluation import EvaluateSpec, Metric
from deltalearn.recipe.methods import DEFAULT_GAMMA, DEFAULT_SMOOTHING, METHODS

VARIABLE = r"[A-Za-z_][A-Za-z0-9_]*"  # of the environment
OWN_FIELDS = {  # of a request to a server: what sets them, and is part of an answer's key
    "model": "server.model",
    "messages": "the prompts, and system",
    "temperature": "generate.temperature",
    "top_p": "generate.top_p",
    "max_tokens": "generate.max_tokens",
    "max_completion_tokens": "generate.max_tokens, with server.length_field",
    "seed": "generate.seed",
    "n": "generate.samples",
    "stream": "answers are never streamed",
}
SECRET = re.compile(  # not max_tokens, stop_token_ids, eos_token and the like
    r"(^|_)(api_?key|authorization|passwords?|passwd|secrets?|secret_?key|credentials?)$"
    r"|^((api|access|auth|bearer|hf|id|refresh|session)_?)?token$"
)
STUDENT = "student"
MethodName = Literal[
    "dpo_norm", "dpo", "ipo", "hinge", "robust", "apo_zero", "apo_down", "sppo", "simpo", "orpo",
    "sft",
]  # fmt: skip


class PricesSpec(Spec):
    """What a million tokens cost, in any one currency."""

    prompt: float = Field(default=0.0, ge=0)
    completion: float = Field(default=0.0, ge=0)


class ServerSpec(Spec):
    """An OpenAI-compatible server behind which a model runs (vLLM, SGLang, llama.cpp, a cloud)."""

    url: str = Field(min_length=1)  # up to its version: http://localhost:8000/v1
    model: str | None = None  # its name there; default: the model's path
    key_env: str | None = None  # environment variable that holds the key
    concurrency: int = Field(default=64, ge=1)  # requests in flight
    rpm: float | None = Field(default=None, gt=0)  # requests a minute
    tpm: float | None = Field(default=None, gt=0)  # tokens a minute
    timeout: float = Field(default=600.0, gt=0)  # seconds for one try
    tries: int = Field(default=6, ge=1)  # of one request; rate limits are waited for
    wait: float = Field(default=1.0, ge=0)  # seconds before the second try, then doubled
    patience: float = Field(default=120.0, gt=0)  # seconds without any answer: it is down
    length_field: Literal["max_tokens", "max_completion_tokens"] = "max_tokens"
    body: dict[str, Any] = Field(default_factory=dict)  # further fields of a request
    prices: PricesSpec | None = None

    # Checks are of the whole section, whose values an error does not repeat: one may be a key.

    @model_validator(mode="before")
    @classmethod
    def _names_its_key(cls, values: Any) -> Any:
        name = values.get("key_env") if isinstance(values, dict) else None
        if name is not None and not re.fullmatch(VARIABLE, str(name)):
            raise ValueError(
                "key_env must be the name of an environment variable, not the key itself: "
                "export MY_KEY=... and give key_env: MY_KEY"
            )
        return values

    @model_validator(mode="after")
    def _body_adds_only(self) -> ServerSpec:
        for key in self.body:
            if remedy := OWN_FIELDS.get(key):
                raise ValueError(f"body must not set {key}, which is set elsewhere: {remedy}")
        if secret := _secret_in(self.body):
            raise ValueError(
                f"body.{secret} looks like a key or a password, and recipes are written into runs: "
                "put it into an environment variable and name that in key_env"
            )
        return self

    @model_validator(mode="after")
    def _no_secret(self) -> ServerSpec:
        parts = urlsplit(self.url)
        if parts.username or parts.password or parts.query:
            raise ValueError(
                "url must not hold a password, nor anything behind a question mark: put the key "
                "into an environment variable and name that in key_env"
            )
        return self


def _secret_in(value: Any) -> str | None:
    """Dotted path of the first key in nested values that is called like a secret."""
    if isinstance(value, list):
        return next(filter(None, map(_secret_in, value)), None)
    for key, inner in value.items() if isinstance(value, dict) else ():
        if SECRET.search(str(key).lower().replace("-", "_")):
            return str(key)
        if deeper := _secret_in(inner):
            return f"{key}.{deeper}"
    return None


class ModelSpec(Spec):
    """A model: a Hugging Face directory, `package://module/path`, or a hub id."""

    path: str = Field(min_length=1)
    revision: str | None = None


class GeneratorSpec(ModelSpec):
    """A model that answers prompts. With `server` it is asked there, and nothing is loaded here."""

    server: ServerSpec | None = None
    system: str | None = Field(default=None, min_length=1)  # instead of generate.system


class PromptsSpec(Spec):
    """Where prompts come from: JSONL, Parquet, a folder of them, or a Hugging Face data set."""

    source: str = Field(min_length=1)
    split: str | None = None  # of a hub data set
    column: str | None = None  # default: `messages` if there is one, else `prompt`
    id_column: str = "id"
    limit: int | None = Field(default=None, ge=1)
    select: Literal["first", "random"] = "first"
    seed: int = Field(default=0, ge=0)

    @model_validator(mode="after")
    def _effective(self) -> PromptsSpec:
        if self.changed("select") and self.limit is None:
            raise ValueError("select has no effect without limit; give both or neither")
        if self.changed("seed") and self.select != "random":
            raise ValueError("seed has no effect unless select is random; remove it")
        return self


class VllmSpec(Spec):
    """vLLM offline, each model in a process of its own."""

    python: str | None = None  # an interpreter that has vLLM, if it is another one than this
    tensor_parallel: int = Field(default=1, ge=1)
    memory: float | None = Field(default=None, gt=0, le=1)  # share of a GPU; default: vLLM's
    context: int | None = Field(default=None, ge=1)  # tokens; default: the model's
    options: dict[str, Any] = Field(default_factory=dict)  # any other argument of vllm.LLM


class RaySpec(Spec):
    """Workers on a Ray cluster, or on this machine."""

    address: str | None = None  # "auto" or ray://...; default: a cluster of this machine alone
    workers: int | None = Field(default=None, ge=1)  # default: as many as there is room for
    engine: Literal["auto", "transformers", "vllm"] = "auto"  # auto: vllm where there are GPUs
    cpus: float = Field(default=1.0, ge=0)  # of each worker
    gpus: float | None = Field(default=None, ge=0)


class GenerateSpec(Spec):
    """How the models answer. temperature 0 is greedy, as in the paper."""

    engine: Literal["transformers", "vllm", "ray"] = "transformers"  # of models without a server
    temperature: float = Field(default=0.0, ge=0)
    top_p: float = Field(default=1.0, gt=0, le=1)
    max_tokens: int = Field(default=2048, ge=1)
    samples: int = Field(default=1, ge=1)  # answers per prompt and model
    seed: int = Field(default=0, ge=0)
    system: str | None = Field(default=None, min_length=1)  # for prompts without a system turn
    template: dict[str, Any] = Field(default_factory=dict)  # arguments of the chat template
    token_budget: int = Field(
        default=16384, ge=1
    )  # rows x (longest prompt + max_tokens) in a batch
    vllm: VllmSpec = VllmSpec()
    ray: RaySpec = RaySpec()

    @model_validator(mode="after")
    def _effective(self) -> GenerateSpec:
        if self.temperature == 0:
            for key in ("top_p", "seed", "samples"):
                if self.changed(key):
                    raise ValueError(f"{key} has no effect at temperature 0; remove it")
        if self.engine != "ray" and self.changed("ray"):
            raise ValueError(f"ray has no effect on the engine {self.engine}; remove it")
        uses_vllm = self.engine == "vllm" or (
            self.engine == "ray" and self.ray.engine in ("auto", "vllm")
        )
        if self.changed("vllm") and not uses_vllm:
            raise ValueError("vllm has no effect unless the engine is vllm; remove it")
        if self.engine == "vllm" and self.changed("token_budget"):
            raise ValueError("token_budget has no effect on vllm, which batches by itself")
        return self

    def content(self) -> dict[str, Any]:
        """What decides the answers; how they are computed is left out."""
        return self.model_dump(exclude={"engine", "token_budget", "vllm", "ray"})


class PairsSpec(Spec):
    """Which pairs are dropped, and counted. Identical and empty answers never make a pair."""

    truncated: Literal["drop", "keep"] = "drop"  # answers cut at max_tokens
    reasoning: Literal["keep", "strip"] = "keep"  # thinking traces before answers
    max_length_difference: int | None = Field(default=None, ge=0)  # tokens, chosen minus rejected


class LoraSpec(Spec):
    """Low-rank adapters instead of all weights; `bits` keeps the frozen weights quantised (QLoRA).

    Defaults are peft's own, but for alpha = 2 r, the common choice.
    """

    r: int = Field(default=16, ge=1)
    alpha: int | None = Field(default=None, ge=1)  # default: 2 r
    dropout: float = Field(default=0.0, ge=0, lt=1)
    targets: Listed[tuple[str, ...]] = ("all-linear",)
    bits: Literal[4] | None = None


class DevSpec(Spec):
    """Questions scored while tuning, to choose when to stop; never those of the final report."""

    source: str = Field(min_length=1)
    prompt_column: str = "prompt"
    answer_column: str = "answer"
    metric: Metric = "expected_accuracy"
    max_tokens: int = Field(default=512, ge=1)  # of a greedy answer
    limit: int | None = Field(default=None, ge=1)


class TuneSpec(Spec):
    """How the student is tuned. Defaults are the paper's, except lr, which has no good default."""

    method: MethodName = "dpo_norm"
    lr: float = Field(default=5e-7, gt=0)
    beta: float | None = Field(default=None, gt=0)  # default: the method's own
    label_smoothing: float | None = Field(default=None, ge=0, lt=0.5)  # share of flipped labels
    gamma: float | None = Field(default=None, ge=0)  # simpo's target margin
    nll_coef: float = Field(default=0.0, ge=0)  # adds this x NLL per token of the chosen answer
    batch_size: int = Field(default=32, ge=1)  # pairs a step, over all processes
    steps: int | None = Field(default=None, ge=1)
    epochs: float | None = Field(default=None, gt=0)  # default: 1, unless steps is given
    scheduler: Literal["cosine", "linear", "constant"] = "cosine"
    warmup_ratio: Fraction = 0.03
    min_lr_ratio: Fraction = 0.1
    optimizer: Literal["adamw", "adamw_8bit", "adafactor"] = "adamw"
    adam_betas: Listed[tuple[Decay, Decay]] = (0.9, 0.95)
    weight_decay: float = Field(default=0.0, ge=0)
    max_grad_norm: float = Field(default=1.0, gt=0)
    max_length: int = Field(default=2048, ge=2)  # prompt and answer together
    truncation: Literal["drop", "cut", "error"] = "drop"  # of pairs longer than that
    max_pairs: int | None = Field(default=None, ge=1)  # the first ones, in stored order
    layout: Literal["auto", "shared", "packed", "padded"] = "auto"  # of pairs in a forward
    attention: Literal["auto", "segments", "sdpa", "flex"] = "auto"  # of shared and packed rows
    token_budget: int = Field(default=8192, ge=1)  # tokens of one forward, on each device
    gradient_checkpointing: bool = False
    lora: LoraSpec | None = None
    shard: bool = False  # FSDP2: weights, gradients and moments split over processes
    eval_pairs: int | None = Field(default=None, ge=1)  # held out of training
    dev: DevSpec | None = None
    eval_every: int | None = Field(default=None, ge=1)  # steps; default: a tenth of the run
    keep_best: bool = False  # final is the model best on dev, else on held-out pairs
    patience: int | None = Field(default=None, ge=1)  # stop after so many evaluations without gain
    checkpoint_every: int | None = Field(default=None, ge=1)  # steps; default: a fifth of the run
    tracker: Literal["none", "tensorboard", "wandb", "trackio"] = "none"

    @model_validator(mode="after")
    def _effective(self) -> TuneSpec:
        method = METHODS[self.method]
        if method.beta is None and self.beta is not None:
            raise ValueError(f"beta has no effect on {self.method}; remove it")
        for key in ("label_smoothing", "gamma", "nll_coef"):
            if self.changed(key) and key not in method.options:
                raise ValueError(f"{key} has no effect on {self.method}; remove it")
        if self.method == "robust" and self.label_smoothing == 0:
            raise ValueError("robust with label_smoothing 0 is dpo; use dpo")
        if self.scheduler == "constant" and self.changed("min_lr_ratio"):
            raise ValueError("min_lr_ratio has no effect on a constant schedule; remove it")
        if self.optimizer == "adafactor" and self.changed("adam_betas"):
            raise ValueError("adam_betas has no effect on adafactor; remove it")
        if self.shard and self.optimizer != "adamw":
            raise ValueError(f"shard cannot split the moments of {self.optimizer}; use adamw")
        if self.shard and self.lora is not None and self.lora.bits is not None:
            raise ValueError(
                "shard cannot split the quantised weights of lora.bits; leave one of them out"
            )
        if self.steps is not None and self.epochs is not None:
            raise ValueError("steps and epochs both set the length of the run; give one of them")
        if self.eval_pairs is None and self.dev is None:
            for key in ("eval_every", "keep_best", "patience"):
                if self.changed(key):
                    raise ValueError(f"{key} has no effect without eval_pairs or dev; give one")
        if self.layout == "padded" and self.changed("attention"):
            raise ValueError("attention has no effect on padded rows; remove it")
        return self

    @property
    def effective_beta(self) -> float | None:
        """beta, or the default of the method; None for sft."""
        return self.beta if self.beta is not None else METHODS[self.method].beta

    @property
    def effective_smoothing(self) -> float:
        """label_smoothing, or the default of the method."""
        if self.label_smoothing is not None:
            return self.label_smoothing
        return DEFAULT_SMOOTHING.get(self.method, 0.0)

    @property
    def effective_gamma(self) -> float:
        """gamma, or simpo's default."""
        return self.gamma if self.gamma is not None else DEFAULT_GAMMA


class ArmSpec(Spec):
    """One way to tune the student. No sides at all: the student untouched."""

    chosen: str | None = None
    rejected: str | None = None
    tune: dict[str, Any] = Field(default_factory=dict)  # overrides of the recipe's `tune`

    @model_validator(mode="after")
    def _sides(self) -> ArmSpec:
        if (self.chosen is None) != (self.rejected is None):
            raise ValueError(
                "an arm needs chosen and rejected, or neither; sft trains on the chosen side of "
                "the same pairs, so it names both too"
            )
        if self.chosen is not None and self.chosen == self.rejected:
            raise ValueError(f"chosen and rejected are both {self.chosen!r}: there is no delta")
        if self.tune and self.chosen is None:
            raise ValueError("tune has no effect on an arm without chosen and rejected")
        return self


class Recipe(Spec):
    """The whole run: two or more weak models, a student, and the arms to compare."""

    name: Name
    seeds: Listed[tuple[Annotated[int, Field(ge=0)], ...]] = Field(default=(0, 1, 2), min_length=1)
    device: Literal["auto", "cpu", "cuda", "mps"] = "auto"
    dtype: Literal["auto", "float32", "bfloat16", "float16"] = "auto"
    student: ModelSpec
    models: dict[Name, GeneratorSpec] = Field(min_length=1)
    prompts: PromptsSpec
    generate: GenerateSpec = GenerateSpec()
    pairs: PairsSpec = PairsSpec()
    tune: TuneSpec = TuneSpec()
    arms: dict[Name, ArmSpec] = Field(min_length=1)
    evaluate: EvaluateSpec

    @field_validator("seeds")
    @classmethod
    def _distinct(cls, seeds: tuple[int, ...]) -> tuple[int, ...]:
        if len(set(seeds)) != len(seeds):
            raise ValueError("a seed occurs twice; repeated seeds would count one run as two")
        return seeds

    @model_validator(mode="after")
    def _consistent(self) -> Recipe:
        if STUDENT in self.models:
            raise ValueError(f"models.{STUDENT}: the name stands for the student; choose another")
        if joined := [m for m in self.models if "_over_" in m]:
            raise ValueError(f"models.{joined[0]}: a name with _over_ would confuse pair files")
        untouched = [name for name, arm in self.arms.items() if arm.chosen is None]
        if untouched != ["base"]:
            raise ValueError(
                "arms: exactly one arm, named base, is the student untouched (`base: {}`); "
                f"found {untouched or 'none'}"
            )
        if self.tune.dev and self.tune.dev.source == self.evaluate.source:
            raise ValueError(
                "tune.dev.source is evaluate.source: what chooses when to stop must not be what is "
                "reported; split the questions in two files"
            )
        used = set()
        for name, arm in self.arms.items():
            for side in filter(None, (arm.chosen, arm.rejected)):
                if side not in (STUDENT, *self.models):
                    raise ValueError(
                        f"arms.{name}: no model is named {side!r}; "
                        f"there are {', '.join([STUDENT, *self.models])}"
                    )
                used.add(side)
        if unused := [m for m in self.models if m not in used]:
            raise ValueError(f"models.{unused[0]} is used by no arm; remove it")
        return self

    def tune_of(self, arm: str) -> TuneSpec:
        """The tuning settings of one arm: the recipe's, with the arm's own on top.

        An arm that changes the method does not inherit a beta meant for another one, nor options
        that its own does not take, and one that sets steps (epochs) does not inherit epochs
        (steps).
        """
        own = self.arms[arm].tune
        shared = {key: getattr(self.tune, key) for key in self.tune.model_fields_set}
        method = METHODS.get(own.get("method", self.tune.method))
        if method is not None and method != METHODS[self.tune.method]:
            dropped = {"beta", "label_smoothing", "gamma", "nll_coef"} - method.options
            shared = {key: value for key, value in shared.items() if key not in dropped}
        if "steps" in own:
            shared.pop("epochs", None)
        if "epochs" in own:
            shared.pop("steps", None)
        return TuneSpec(**{**shared, **own})

    def model(self, name: str) -> GeneratorSpec:
        """The model spec behind a name used by an arm."""
        if name == STUDENT:
            return GeneratorSpec(**self.student.model_dump())
        return self.models[name]

    @property
    def scored_models(self) -> list[str]:
        """The student and the models that are here to be scored, not behind a server."""
        return [STUDENT, *(name for name, model in self.models.items() if model.server is None)]

    @property
    def generators(self) -> list[str]:
        """Names of the models whose answers some arm needs, in the order of first use."""
        sides = [s for arm in self.arms.values() for s in (arm.chosen, arm.rejected) if s]
        return list(dict.fromkeys(sides))

    @property
    def pairings(self) -> list[tuple[str, str]]:
        """Distinct (chosen, rejected) names, in the order of first use."""
        arms = self.arms.values()
        return list(dict.fromkeys((a.chosen, a.rejected) for a in arms if a.chosen and a.rejected))

    @property
    def tuned_arms(self) -> list[str]:
        """Names of the arms that are trained, in recipe order."""
        return [name for name, arm in self.arms.items() if arm.chosen]
