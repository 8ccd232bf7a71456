"""The stage of a run that scores all its models and arms alike."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any, Literal

from deltalearn.errors import UserError
from deltalearn.evaluate.reference.benchmark import PER_BYTE
from deltalearn.formats.rows import source_digest
from deltalearn.pipeline.context import Context
from deltalearn.pipeline.stage import Doing, Job, Say, Stage, silent
from deltalearn.recipe import STUDENT, EvaluateSpec, Recipe
from deltalearn.records import Rendering

# Options of vLLM and lm_eval that have one model take several GPUs.
WIDE = {"tensor_parallel_size", "pipeline_parallel_size", "data_parallel_size", "parallelize"}
CALLED = {"model": "model (content)", "questions": "questions (content)", "spec": "settings"}
SCORES = "scores"  # in a run; below it models/<model> and arms/<arm>/seed-<seed>


def check_evaluation(recipe: Recipe, run: Path) -> None:
    """Raise UserError for what will not be possible, before a run has made anything.

    Args:
        recipe: One with a section `evaluate`.
        run: The run directory.
    """
    spec = recipe.evaluate
    assert spec is not None  # or the stage is left out
    if spec.backend.kind == "openai":
        raise UserError(
            "evaluate.backend.kind: a server has none of the arms that are trained here; use hf or "
            "vllm, or score one model with `deltalearn evaluate --url`"
        )
    from deltalearn.evaluate.alpaca.length_control import FOLDS
    from deltalearn.evaluate.tulu3.suite import BY_NAME
    from deltalearn.pipeline.evaluate_options import Options, backend_of, check_options

    nowhere = run / SCORES
    backend = backend_of(spec, str(nowhere), device=recipe.device, dtype=recipe.dtype)
    options = Options(spec=spec, backend=backend, out=nowhere, name="")
    check_options(options)
    code = [n for n in options.benchmarks if n in BY_NAME and BY_NAME[n].kind == "code"]
    if code and not spec.allow_code:
        raise UserError(
            f"evaluate.benchmarks: {' and '.join(code)} run programs that the models write; set "
            "evaluate.allow_code: true (they run in a sandbox), or name the other benchmarks"
        )
    judged = spec.judge is not None and "alpaca_eval" in options.benchmarks
    if judged and spec.limit is not None and spec.limit < FOLDS:
        raise UserError(
            f"evaluate.limit: {spec.limit} items are too few for AlpacaEval's length-controlled "
            f"win rate, which needs {FOLDS}; raise it, or name the other benchmarks"
        )


def takes_named_devices(spec: EvaluateSpec) -> bool:
    """Tell whether the back-end's options say which GPUs a model takes: it must find them all."""
    return bool(WIDE & spec.backend.options.keys()) or ":" in (spec.backend.device or "")


class ScoreJob(Job):
    """One model to score.

    Attributes:
        place: Below scores/.
        model: Its folder.
        model_key: Its identity.
        sources: Identity of each set of own questions.
        facts: What the results say of the model.
        rendering: Of its chat template.
        test_set_log: Folder of the log of who saw which test items, one for all.
    """

    kind: Literal["evaluate"] = "evaluate"
    place: str
    spec: EvaluateSpec
    model: Path
    model_key: str
    sources: dict[str, str]
    facts: dict[str, Any]
    rendering: Rendering
    test_set_log: Path

    def begin(self, say: Say) -> Scoring:
        """Score in this process."""
        return Scoring(self, say)


class Scoring:
    """The work of one job."""

    def __init__(self, job: ScoreJob, say: Say) -> None:
        self.job = job
        self.say = say

    def prepare(self) -> None:
        """Nothing: `check_evaluation` did, before the run began."""

    def work(self) -> dict[str, Any]:
        """Score; scores by name."""
        from deltalearn.lm.load import place
        from deltalearn.pipeline.evaluate import evaluate
        from deltalearn.pipeline.evaluate_options import Options, backend_of

        job, at = self.job, place(self.job.device, self.job.dtype)
        model = str(job.model.resolve())
        results = evaluate(
            Options(
                spec=job.spec,
                backend=backend_of(job.spec, model, device=at.device, dtype=at.dtype),
                out=job.test_set_log / job.place,
                name=job.facts.get("name", ""),
                facts=job.facts,
                template=job.rendering.arguments,
                day=job.rendering.day,
                update=True,  # the run's own settings say whether it goes on
                only=True,
                test_set_log=job.test_set_log,
                say=silent,
            )
        )
        _complete(results, job.spec)
        for entry in results["benchmarks"].values():
            for note in entry["notes"]:
                self.say(f"{entry['title']}: {note}")
        return _counts(results, job.spec)


def score_jobs(context: Context, spec: EvaluateSpec) -> Iterator[ScoreJob]:
    """Yield a job for the student, every weak model that is here and every tuned student."""
    recipe, run = context.recipe, context.recipe.name
    sources = {name: source_digest(*q.place) for name, q in spec.questions.items()}

    def job(place: str, model: Path, model_key: str, facts: dict[str, Any], like: str) -> ScoreJob:
        return ScoreJob(
            title=f"evaluate {place}",
            place=place,
            spec=spec,
            model=model,
            model_key=model_key,
            sources=sources,
            facts=facts,
            rendering=context.generators[like].rendering,
            test_set_log=context.path(SCORES),
            device=recipe.device,
            dtype=recipe.dtype,
        )

    for name, files in context.models.items():
        facts: dict[str, Any] = {"name": f"{run}/{name}", "path": recipe.model(name).place}
        yield job(f"models/{name}", files.directory, files.fingerprint, facts, name)
    for arm in recipe.tuned_arms:
        for seed in recipe.seeds:
            name = f"{arm}/seed-{seed}"
            final = context.path("arms", name, "final")
            who = {"name": f"{run}/{arm} seed {seed}", "path": str(final)}
            facts = {**who, "run": run, "arm": arm, "seed": seed}
            yield job(f"arms/{name}", final, context.keys[f"tune/{name}"], facts, STUDENT)


def score_stage(job: ScoreJob, scoring: Doing) -> Stage:
    """The stage of a run that does `job`, by `scoring`."""
    inputs = {
        "model": job.model_key,
        "questions": job.sources,
        "spec": job.spec.content(),
        "dtype": job.dtype,
        **job.rendering.content(),
    }
    if any("loglik" in own.metrics for own in job.spec.questions.values()):
        inputs["loglik"] = PER_BYTE  # scores of earlier versions were per token
    results = f"{SCORES}/{job.place}/results.json"
    return Stage(
        f"evaluate/{job.place}",
        inputs,
        (results,),
        scoring.work,
        scoring.prepare,
        copied=(results, f"{SCORES}/{job.place}/items"),
        called=CALLED,
    )


def _complete(results: dict[str, Any], spec: EvaluateSpec) -> None:
    """UserError for what was not scored: run again, the stage does only that."""
    missing = dict(results["not_run"])
    if spec.judge is not None:
        entries = results["benchmarks"].items()
        unjudged = {n: e["notes"][-1] for n, e in entries if e["score"] is None and e["notes"]}
        missing |= unjudged
    if missing:
        told = "; ".join(f"{name}: {reason}" for name, reason in missing.items())
        raise UserError(
            f"{results['model']['name']} is not scored on all benchmarks ({told}); what was scored "
            "is kept. Mend it and run again, or take them out of evaluate.benchmarks"
        )


def _counts(results: dict[str, Any], spec: EvaluateSpec) -> dict[str, Any]:
    """Scores by name; of one set of questions by the metric alone."""
    scores = {n: e["score"] for n, e in results["benchmarks"].items() if e["score"] is not None}
    if spec.names == tuple(spec.questions) and len(spec.questions) == 1:
        (name,) = spec.questions
        return {n.removeprefix(f"{name}."): score for n, score in scores.items()}
    return scores
