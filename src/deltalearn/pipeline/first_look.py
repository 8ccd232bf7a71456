"""What can be known to be wrong in a run's first second: it is said then, all of it at once."""

from __future__ import annotations

import os
from collections.abc import Callable, Collection, Iterator, Mapping
from pathlib import Path

from deltalearn.errors import UserError
from deltalearn.formats.questions import read_items
from deltalearn.lm.clock import today
from deltalearn.lm.locate import ModelFiles, has_chat_template
from deltalearn.pipeline.contamination import check_dev
from deltalearn.pipeline.directory import check_directory
from deltalearn.pipeline.evaluate_stage import check_evaluation
from deltalearn.pipeline.generate import STORE_FILES
from deltalearn.pipeline.generator import make_generators, rendering_of
from deltalearn.pipeline.missing import what_is_missing
from deltalearn.pipeline.run_options import STAGES, RunOptions, StageName
from deltalearn.pipeline.tune_inputs import pairs_digest
from deltalearn.prompts.read import read_prompts
from deltalearn.recipe import STUDENT, EvaluateSpec, LoadedRecipe, Recipe, TuneSpec
from deltalearn.util.distributed import several_processes
from deltalearn.util.paths import local_path
from deltalearn.util.text_format import plural

WITHOUT_TEMPLATE = {"drop"}  # benchmarks that are asked in plain text


def check_run(loaded: LoadedRecipe, options: RunOptions) -> str:
    """Look at all that a run needs, and do nothing: `deltalearn run --check`.

    Args:
        loaded: The recipe.
        options: Of the run.

    Returns:
        A line for people: that it can begin.

    Raises:
        UserError: With a line for each fault.
    """
    recipe, out = loaded.recipe, options.out or Path("runs") / loaded.recipe.name
    stages = stages_of(recipe, options.until)
    found: list[str] = []
    files: dict[str, ModelFiles] = {}

    def look_at_directory() -> None:
        manifest = check_directory(out, loaded, options.update, STORE_FILES)
        for name, generator in make_generators(recipe, manifest).items():
            if generator.files is not None:
                files[name] = generator.files

    _note(found, look_at_directory)
    for arm in recipe.arms.values():
        if arm.pairs is not None and "tune" in stages:
            _note(found, lambda pairs=arm.pairs: pairs_digest(pairs))  # type: ignore[misc]
    number = 0
    if "prompts" in stages and recipe.prompts is not None:
        try:
            number = len(read_prompts(**recipe.prompts.model_dump()).prompts)
            found += unfilled_batches(recipe, number)
        except UserError as error:
            found.append(str(error))
    found += faults(recipe, stages, files, out)
    if found:
        raise UserError("\n".join(dict.fromkeys(found)))
    asked = f"{number:,} prompts, {len(recipe.generators)} models that answer, " if number else ""
    return f"{recipe.name}: nothing stands in the way: {asked}{students(recipe)}"


def stages_of(recipe: Recipe, until: StageName = STAGES[-1]) -> list[str]:
    """Name the stages that a run of the recipe has: it may need no answers, or no scores."""
    left_out = set() if recipe.generators else {"prompts", "generate", "pairs"}
    left_out |= set() if recipe.evaluate else {"evaluate"}
    return [s for s in STAGES[: STAGES.index(until) + 1] if s not in left_out]


def students(recipe: Recipe) -> str:
    """Say how many students a run makes: `6 tuned students: 2 arms x 3 seeds (0, 1, 2)`."""
    arms, seeds = len(recipe.tuned_arms), len(recipe.seeds)
    listed = ", ".join(map(str, recipe.seeds))
    return (
        f"{plural(arms * seeds, 'tuned student')}: {plural(arms, 'arm')} x "
        f"{plural(seeds, 'seed')} ({listed})"
    )


def faults(
    recipe: Recipe,
    stages: Collection[str],
    files: Mapping[str, ModelFiles],
    out: Path,
    *,
    launched: bool = True,
) -> list[str]:
    """Find what would stop the stages of a run later.

    Args:
        recipe: The run's.
        stages: Those that have anything to do.
        files: The models that are here, by name.
        out: The run directory.
        launched: Whether the processes that will work are those that there are now.

    Returns:
        A line for each fault, with its remedy.
    """
    found = what_is_missing(recipe, stages, downloads=False)
    found += _templates(recipe, stages, files)
    if "tune" in stages:
        _note(found, lambda: _turn(recipe, files))
        for arm in recipe.tuned_arms:
            tune = recipe.tune_of(arm)
            found += [f"arms.{arm}: {fault}" for fault in _launched(tune)] if launched else []
            if tune.dev is not None and local_path(tune.dev.source).exists():
                _note(found, lambda dev=tune.dev: read_items(**dev.reading))  # type: ignore[misc]
        _note(found, lambda: check_dev(recipe))
    if "evaluate" in stages and recipe.evaluate is not None:
        _note(found, lambda: check_evaluation(recipe, out))
        for name in recipe.evaluate.questions:
            _note(found, lambda name=name: _questions(recipe.evaluate, name))  # type: ignore[misc]
    return list(dict.fromkeys(found))


def unfilled_batches(recipe: Recipe, prompts: int) -> list[str]:
    """Name the arms whose batch is larger than all pairs that so many prompts can make."""
    found = []
    for arm in recipe.tuned_arms:
        tune, most = recipe.tune_of(arm), prompts * recipe.generate.samples
        left = min(filter(None, (most, tune.max_pairs))) - (tune.eval_pairs or 0)
        if recipe.arms[arm].pairing is not None and left < tune.batch_size:
            found.append(
                f"arms.{arm}: {prompts:,} prompts make at most {max(left, 0):,} pairs to train on, "
                f"which do not fill one batch of {tune.batch_size}; give more prompts or a smaller "
                "tune.batch_size"
            )
    return found


def _note(found: list[str], work: Callable[[], object]) -> None:
    """Call what may raise a UserError, and note its text."""
    try:
        work()
    except UserError as error:
        found.append(str(error))


def _templates(
    recipe: Recipe, stages: Collection[str], files: Mapping[str, ModelFiles]
) -> Iterator[str]:
    """Models that are asked in turns and cannot render any."""
    needed = set(recipe.generators) if "generate" in stages else set()
    if "tune" in stages and recipe.pairings:
        needed.add(STUDENT)  # its pairs are answers to conversations
    scored = recipe.evaluate.names if "evaluate" in stages and recipe.evaluate else ()
    if set(scored) - WITHOUT_TEMPLATE:
        needed |= set(files)
    for name in files:
        if name in needed and not has_chat_template(files[name]):
            from deltalearn.lm.load import load_tokenizer  # which has the last word

            try:
                load_tokenizer(files[name])
            except UserError as error:
                yield f"{name}: {error}"


def _turn(recipe: Recipe, files: Mapping[str, ModelFiles]) -> None:
    """Find out on the student's own template whether an answer has a place behind its prompts."""
    student = files.get(STUDENT)
    if student is None or not (recipe.pairings and has_chat_template(student)):
        return
    from deltalearn.lm.load import load_tokenizer
    from deltalearn.lm.turn import turn_of

    try:
        tokenizer = load_tokenizer(student)
    except UserError:
        return  # told by `_templates`
    assert recipe.student is not None  # it has files
    turn_of(tokenizer, rendering_of(recipe.student, student, recipe.day or today()))


def _launched(tune: TuneSpec) -> Iterator[str]:
    """What does not go with the number of processes that were started."""
    if tune.shard and not several_processes():
        yield (
            "tune.shard splits the student over processes, and there is one; start several with "
            "`torchrun --nproc-per-node 8 -m deltalearn run ...`, or leave shard out"
        )
    processes = int(os.environ.get("WORLD_SIZE", "1"))
    if tune.batch_size < processes:
        yield (
            f"batch_size {tune.batch_size} is less than one pair for each of {processes} processes"
        )


def _questions(spec: EvaluateSpec | None, name: str) -> None:
    """Read own questions, and let the scorer read their references."""
    from deltalearn.evaluate.harness.run import Selection
    from deltalearn.evaluate.reference.scorers import scorer
    from deltalearn.pipeline.questions import Questions

    assert spec is not None
    own = spec.questions[name]
    if not local_path(own.source).exists():
        return  # told by what is missing, or on the hub
    try:
        items = Questions(name, own, Selection(spec.split, spec.limit)).items
        if not items:
            raise UserError(f"no item is selected by split {spec.split}")
        if "greedy_accuracy" in own.metrics:
            compare = scorer(own.scorer, own.pattern)
            for item in items:
                compare.grade("", item.answer)
    except UserError as error:
        raise UserError(f"evaluate.questions.{name}: {error}") from error
