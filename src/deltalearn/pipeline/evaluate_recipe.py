"""Evaluate one model as a recipe says: `deltalearn evaluate`."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

from deltalearn.errors import refuse_idle
from deltalearn.lm.locate import locate
from deltalearn.pipeline.evaluate import evaluate
from deltalearn.pipeline.evaluate_options import Options, backend_of
from deltalearn.pipeline.generator import chosen_template_line
from deltalearn.pipeline.questions import question_files
from deltalearn.pipeline.stage import Say
from deltalearn.recipe import LoadedRecipe
from deltalearn.util.paths import local_path

IN_A_RUN = re.compile(r".*?([^/]+)/arms/([^/]+)/(seed-\d+)(?:/final)?(/[^/]+)?")
IN_A_CACHE = re.compile(r".*/models--[^/]+?--([^/]+)/snapshots/[0-9a-f]+")
GENERIC = re.compile(r"adapter|best|last|latest|merged|model|output|checkpoint-?\w*|step[-_]?\d+")


def model_name(path: str) -> str:
    """Name a model after its place so that two of one run are told apart.

    Args:
        path: A directory, a hub id, or a server's name of it.

    Returns:
        `RUN/ARM/seed-N` of an arm of a run; the folder of what `tune` has written; of other places
        the last part, and of those whose last part says nothing the last two.
    """
    directory = local_path(path)
    if not directory.is_dir():
        return path.rstrip("/").rpartition("/")[2]
    whole = directory.absolute().as_posix() if ".." not in directory.parts else ""
    whole = whole or directory.resolve().as_posix()
    if found := IN_A_RUN.fullmatch(whole):
        return "/".join(filter(None, [*found.groups()[:3], (found[4] or "").strip("/")]))
    if found := IN_A_CACHE.fullmatch(whole):
        return found[1]
    parts = whole.removesuffix("/final").strip("/").split("/")
    return "/".join(parts[-2:] if GENERIC.fullmatch(parts[-1]) else parts[-1:])


def evaluate_recipe(
    loaded: LoadedRecipe,
    out: Path | None = None,
    *,
    name: str | None = None,
    annotations: Path | None = None,
    update: bool = False,
    say: Say = print,
) -> dict[str, Any]:
    """Evaluate the student of a recipe as its section `evaluate` says.

    The resolved recipe is written beside the results before there are any, so that an evaluation
    that was interrupted is reproducible too.

    Args:
        loaded: A recipe with a student and a section `evaluate`.
        out: The result directory; default evals/<name>.
        name: Of the model, in tables; default: `model_name` of its path.
        annotations: Verdicts of AlpacaEval given before; nobody is asked then.
        update: Replace results of other settings.
        say: Gets a line for everything worth telling.

    Returns:
        The content of results.json.

    Raises:
        UserError: For what cannot be evaluated, or where `out` holds other results.
    """
    recipe = loaded.recipe
    student, spec = recipe.student, recipe.evaluate
    assert student is not None and spec is not None  # the command needs them
    if spec.backend.kind == "openai":
        rendered = {"student.file": student.file, "student.chat_template": student.chat_template}
        refuse_idle(rendered, "at a server, which has loaded the model and its template itself")
    shown = name or model_name(student.place)
    place, facts = student.place, {}
    if student.revision is not None or student.chat_template is not None:
        files = locate(student.place, student.revision, student.chat_template)
        place = str(files.directory)
    if student.chat_template is not None:
        facts = {"path": student.place, "chat_template": student.chat_template}
        say(str(chosen_template_line(shown, student)))
    out = out or Path("evals") / shown
    for file_line in question_files(spec):
        say(file_line)
    backend = backend_of(spec, place, device=recipe.device, dtype=recipe.dtype)
    return evaluate(
        Options(
            spec=spec,
            backend=backend,
            out=out,
            name=shown,
            facts=facts,
            template=student.template,
            day=recipe.day,
            annotations=annotations,
            update=update,
            recipe=loaded.resolved_yaml(),
            say=say,
        )
    )
