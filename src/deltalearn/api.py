"""The loop from Python: what the commands do, as functions of plain values.

Settings are those of a recipe, as on the command line: `["tune.lr=1e-6", "seeds=[0]"]`. Everything
can be called again to resume. What a function needs is imported when it is called.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from deltalearn.compare.result import Comparison
    from deltalearn.prompts.read import PromptSet

Place = str | Path


def run(
    recipe: Place,
    out: Place | None = None,
    settings: Sequence[str] = (),
    *,
    update: bool = False,
    say: Callable[[str], None] = print,
) -> Path:
    """Run a whole recipe.

    Args:
        recipe: A file, or the name of a shipped recipe.
        out: The run directory; default runs/<name of the recipe>.
        settings: `key=value`, in place of the recipe's.
        update: Let changed settings go on in the same directory.
        say: Gets a line for each stage.

    Returns:
        The run directory.

    Raises:
        UserError: For whatever the caller can mend, with the remedy.
    """
    from deltalearn.pipeline.run import run_recipe
    from deltalearn.pipeline.run_options import RunOptions
    from deltalearn.recipe import load_recipe

    loaded = load_recipe(recipe, settings)
    place = _place(out, loaded.recipe.name)
    run_recipe(loaded, RunOptions(out=place, update=update), say=say)
    return place


def read_prompts(source: Place, *, limit: int | None = None) -> PromptSet:
    """Read, check and deduplicate prompts: `prompts`, `rejects` and counts.

    Args:
        source: A .jsonl or .parquet file, a folder of them, `package://...`, or a hub data set id.
        limit: Of how many to keep; default all.
    """
    from deltalearn.prompts.read import read_prompts as read

    return read(str(source), limit=limit)


def generate(
    recipe: Place | None = None,
    out: Place | None = None,
    settings: Sequence[str] = (),
    *,
    say: Callable[[str], None] = print,
) -> Path:
    """Let models answer prompts; the directory with `responses.sqlite`.

    Args:
        recipe: One with `models` and `prompts`, or None if `settings` say all.
        out: The directory; default runs/<name>.
        settings: `models.small.path=...`, `prompts.source=...`, `generate.max_tokens=512`.
        say: Gets a line for each model.
    """
    from deltalearn.pipeline.generate import run_generate
    from deltalearn.recipe import GENERATE, load_recipe

    loaded = load_recipe(recipe, settings, command=GENERATE)
    place = _place(out, loaded.recipe.name)
    run_generate(loaded, place, say=say)
    return place


def build_pairs(store: Place, chosen: str, rejected: str, out: Place, **rules: Any) -> Path:
    """Make preference pairs of two models' answers.

    Args:
        store: What `generate` returned, or its `responses.sqlite`.
        chosen: Name of the model whose answers are preferred.
        rejected: Name of the other.
        out: The .parquet file, in TRL's format.
        rules: As in the section `pairs` of a recipe: `truncated="keep"`.

    Returns:
        The file.
    """
    from deltalearn.pipeline.pairs import write_pairs_of_store

    file = Path(store) / "responses.sqlite" if Path(store).is_dir() else Path(store)
    write_pairs_of_store(file, chosen, rejected, Path(out), **rules)
    return Path(out)


def tune(
    student: str,
    pairs: Place,
    out: Place,
    settings: Sequence[str] = (),
    *,
    say: Callable[[str], None] = print,
) -> Path:
    """Tune a model on pairs; the directory of the tuned model.

    Args:
        student: A model directory or hub id.
        pairs: A file, folder or hub data set of pairs.
        out: The run's directory.
        settings: Of the section `tune`, or with a section: `lr=1e-6`, `seeds=[1]`, `device=cpu`.
        say: Gets lines on the run.
    """
    from deltalearn.pipeline.tune import run_tune
    from deltalearn.recipe import TUNE, load_recipe

    given = {"student.path": str(student), "pairs.source": str(pairs)}
    return run_tune(load_recipe(None, settings, command=TUNE, options=given), Path(out), say=say)


def evaluate(
    model: Place,
    out: Place,
    *,
    benchmarks: Sequence[str] = (),
    backend: Mapping[str, Any] | None = None,
    template: Mapping[str, Any] | None = None,
    name: str | None = None,
    update: bool = False,
    say: Callable[[str], None] = print,
    **options: Any,
) -> dict[str, Any]:
    """Score a model on benchmarks, item by item, into a result directory.

    Args:
        model: A model directory or hub id.
        out: The result directory.
        benchmarks: Default: the suite.
        backend: Keys of the section `evaluate.backend`: device, dtype, batch_size, ...
        template: Arguments of the model's chat template.
        name: Of the model, in tables; default: the last part of its path.
        update: Replace results of other settings.
        say: Gets a line for each benchmark.
        options: Further keys of the section `evaluate`: limit, split, data_dir, allow_code, ...

    Returns:
        What `out`/results.json says.
    """
    from deltalearn.pipeline.evaluate_options import DEFAULT
    from deltalearn.pipeline.evaluate_recipe import evaluate_recipe
    from deltalearn.recipe import EVALUATE, load_recipe

    section = {"benchmarks": list(benchmarks or DEFAULT), "backend": backend, **options}
    given = {f"evaluate.{k}": str(v) if isinstance(v, Path) else v for k, v in section.items()}
    of_model = {"student.path": str(model), "student.template": template and dict(template)}
    loaded = load_recipe(None, command=EVALUATE, options=of_model | given)
    return evaluate_recipe(loaded, Path(out), name=name, update=update, say=say)


def compare(a: Place, b: Place, **options: Any) -> Comparison:
    """Compare two arms in pairs: `rows` by benchmark, `averages`, each with an interval.

    Args:
        a: Result directory of one arm, or a folder of its seeds.
        b: That of the other.
        options: Further fields of `CompareSpec`: benchmarks, draws, seed, ...
    """
    from deltalearn.compare.command import compare as compare_arms
    from deltalearn.recipe import CompareSpec

    return compare_arms(CompareSpec(a=str(a), b=str(b), **options))


def report(run: Place) -> Path:
    """Write `summary.json` and `report.html` of a run directory anew; the page."""
    from deltalearn.report import write_report

    write_report(Path(run))
    return Path(run) / "report.html"


def _place(out: Place | None, name: str) -> Path:
    return Path("runs") / name if out is None else Path(out)
