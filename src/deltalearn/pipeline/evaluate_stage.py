"""The stage of a run that scores all its models and arms alike."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

from deltalearn.errors import UserError
from deltalearn.formats.rows import source_digest
from deltalearn.pipeline.context import Context
from deltalearn.pipeline.manifest import DONE
from deltalearn.pipeline.stage import Stage, silent
from deltalearn.recipe.evaluation import EvaluateSpec
from deltalearn.recipe.schema import STUDENT
from deltalearn.util.files import digest

if TYPE_CHECKING:
    from deltalearn.pipeline.evaluate_options import Options

SCORES = "scores"  # in a run; below it models/<model> and arms/<arm>/seed-<seed>


def check_evaluation(context: Context) -> None:
    """Raise UserError for what will not be possible, before a run has made anything."""
    spec = context.recipe.evaluate
    assert spec is not None  # or the stage is left out
    if spec.backend.kind == "openai":
        raise UserError(
            "evaluate.backend.kind: a server has none of the arms that are trained here; use hf or "
            "vllm, or score one model with `deltalearn evaluate --url`"
        )
    before = context.directory.manifest.stages.get(f"evaluate/models/{STUDENT}")
    if before and before.state == DONE and before.inputs.get("spec") == digest(spec.content()):
        return  # it was possible, and to ask again would load lm_eval
    from deltalearn.evaluate.alpaca.length_control import FOLDS
    from deltalearn.evaluate.tulu3.suite import BY_NAME
    from deltalearn.pipeline.evaluate_options import check_options

    recipe = context.recipe
    nowhere = context.path(SCORES)
    options = _options(context, spec, nowhere, nowhere, {}, recipe.device, recipe.dtype)
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


def evaluate_stages(context: Context) -> Iterator[Stage]:
    """Yield a stage for the student, every weak model that is here and every tuned student."""
    recipe, run, spec = context.recipe, context.recipe.name, context.recipe.evaluate
    assert spec is not None  # or the stage is left out
    sources = {name: source_digest(q.source) for name, q in spec.questions.items()}
    for name, files in context.models.items():
        facts: dict[str, Any] = {"name": f"{run}/{name}", "path": recipe.model(name).path}
        place = f"models/{name}"
        yield _stage(context, spec, place, files.directory, files.fingerprint, sources, facts)
    for arm in recipe.tuned_arms:
        for seed in recipe.seeds:
            name = f"{arm}/seed-{seed}"
            final = context.path("arms", name, "final")
            facts = {"name": f"{run}/{arm} seed {seed}", "path": str(final)}
            facts |= {"run": run, "arm": arm, "seed": seed}
            key = context.keys[f"tune/{name}"]
            yield _stage(context, spec, f"arms/{name}", final, key, sources, facts)


def _stage(
    context: Context,
    spec: EvaluateSpec,
    place: str,
    directory: Path,
    model_key: str,
    sources: dict[str, str],
    facts: dict[str, Any],
) -> Stage:
    output = f"{SCORES}/{place}"

    def work() -> dict[str, Any]:
        from deltalearn.pipeline.evaluate import evaluate

        at = context.placement
        out = context.path(output)
        options = _options(context, spec, directory, out, facts, at.device, at.dtype)
        results = evaluate(options)
        _complete(results, spec)
        for entry in results["benchmarks"].values():
            for note in entry["notes"]:
                context.say_once(f"{entry['title']}: {note}")
        return _counts(results, spec)

    inputs = {
        "model": model_key,
        "questions": sources,
        "spec": spec.content(),
        "dtype": context.recipe.dtype,
    }
    return Stage(f"evaluate/{place}", inputs, (f"{output}/results.json",), work)


def _options(
    context: Context,
    spec: EvaluateSpec,
    directory: Path,
    out: Path,
    facts: dict[str, Any],
    device: str,
    dtype: str,
) -> Options:
    from deltalearn.pipeline.evaluate_options import options_of

    return options_of(
        spec,
        str(directory.resolve()),
        device=device,
        dtype=dtype,
        out=out,
        name=facts.get("name", ""),
        facts=facts,
        update=True,  # the run's own settings say whether it goes on
        only=True,
        test_set_log=context.path(SCORES),
        say=silent,
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
