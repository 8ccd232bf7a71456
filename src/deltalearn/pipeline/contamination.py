"""Whether evaluated items are among the training prompts: a stage of a run, said before tuning."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from deltalearn.errors import UserError
from deltalearn.formats.rows import source_digest
from deltalearn.pipeline.context import Context
from deltalearn.pipeline.prompts import PROMPTS, PromptFile
from deltalearn.pipeline.stage import Stage
from deltalearn.pipeline.tune_inputs import pairs_digest
from deltalearn.recipe import DevSpec, PairsSource, Recipe
from deltalearn.records import Message
from deltalearn.util.files import write_json
from deltalearn.util.paths import local_path

if TYPE_CHECKING:
    from deltalearn.overlap.find import Overlaps

OVERLAP = "overlap.json"
DEV = "tune.dev"
EXAMPLES = 3  # shown of a set
SHOWN = 120  # letters of an example
TOO_MUCH = 0.5  # of the questions that choose when to stop, among those that are reported
Texts = list[tuple[str, str]]  # (what it is called, its text)


def overlap_stage(context: Context) -> Stage | None:
    """Make the stage that compares training prompts with all that is evaluated, if anything is."""
    recipe = context.recipe
    if recipe.evaluate is None and not _devs(recipe):
        return None
    spec = recipe.evaluate

    def work() -> dict[str, Any]:
        from deltalearn.pipeline.questions import question_files

        for line in question_files(spec) if spec else ():
            context.say(line)
        sets, absent = evaluated(recipe)
        found = compare_items(list(training_prompts(context)), sets, absent)
        write_json(context.path(OVERLAP), found)
        for line in overlap_lines(found):
            context.say(line)
        met = {name: one["any"] for name, one in found["sets"].items()}
        return {"prompts": found["prompts"], "contaminated": met}

    own = spec.questions if spec else {}
    inputs: dict[str, Any] = {
        "prompts": context.keys.get("prompts"),
        "pairs": {name: pairs_digest(pairs) for name, pairs in _outside(recipe).items()},
        "questions": {name: source_digest(*q.place) for name, q in own.items()},
        "dev": [source_digest(*dev.place) for dev in _devs(recipe)],
        "spec": None,
    }
    if spec is not None:  # what of it decides which items are evaluated
        reading = {name: q.reading for name, q in own.items()}
        inputs["spec"] = [spec.names, reading, spec.split, spec.limit, spec.data_dir]
    return Stage("overlap", inputs, (OVERLAP,), work)


def _outside(recipe: Recipe) -> dict[str, PairsSource]:
    return {n: arm.pairs for n, arm in recipe.arms.items() if arm.pairs is not None}


def _devs(recipe: Recipe) -> list[DevSpec]:
    """The questions that choose when to stop, of all arms, each set once."""
    arms = recipe.tuned_arms
    specs = [recipe.tune_of(arm).dev for arm in arms] if arms else [recipe.tune.dev]
    return list(dict.fromkeys(dev for dev in specs if dev is not None))


def training_prompts(context: Context) -> Iterator[tuple[str, Sequence[Message] | str]]:
    """Yield what every training prompt is called, and its turns or raw text."""
    if context.path(PROMPTS).is_file() and "prompts" in context.keys:
        for prompt in PromptFile(context.path(PROMPTS)):
            yield f"prompt {prompt.id}", prompt.messages
    for pairs in _outside(context.recipe).values():
        yield from prompts_of_pairs(pairs)


def prompts_of_pairs(pairs: PairsSource) -> Iterator[tuple[str, Sequence[Message] | str]]:
    """Yield the place of every pair from outside, and its prompt."""
    from deltalearn.formats.preferences import PairReader

    how = pairs.model_dump(exclude={"source", "chat_template"})
    for row in PairReader(pairs.source, **how):
        yield row.where, row.prompt


def evaluated(recipe: Recipe) -> tuple[dict[str, Texts], dict[str, str]]:
    """Read every item that the recipe evaluates, and those that choose when to stop.

    Returns:
        (items by set, why others are not compared).
    """
    from deltalearn.evaluate.harness.run import Selection
    from deltalearn.evaluate.tulu3.sources import NoData
    from deltalearn.evaluate.tulu3.suite import BY_NAME, questions_on_disk
    from deltalearn.pipeline.evaluate_options import expanded

    sets: dict[str, Texts] = {}
    absent: dict[str, str] = {}
    spec = recipe.evaluate
    for name in expanded(spec.names) if spec else ():
        assert spec is not None
        if name in spec.questions:
            items = _items(spec.questions[name].reading)
        elif name not in BY_NAME:
            absent[name] = "it is a task of lm_eval, whose items are not read here"
            continue
        else:
            try:
                items = questions_on_disk(name, spec.data_dir)
            except NoData as reason:
                absent[name] = str(reason)
                continue
        chosen = Selection(spec.split, spec.limit).of(name, [item for item, _ in items])
        sets[name] = [item for item in items if item[0] in chosen]
    for number, dev in enumerate(_devs(recipe)):
        sets[f"{DEV} {number + 1}" if number else DEV] = _items(dev.reading)
    return sets, absent


def _items(reading: dict[str, Any]) -> Texts:
    from deltalearn.formats.questions import read_items

    return [(item.id, _text(item.messages)) for item in read_items(**reading)]


def _text(turns: Sequence[Message]) -> str:
    """What a question says: its turns of the user."""
    return "\n".join(turn["content"] for turn in turns if turn["role"] == "user")


def _units(prompt: Sequence[Message] | str) -> list[str]:
    """A prompt as it may repeat a question: each turn of the user, and all of them."""
    if isinstance(prompt, str):
        return [prompt]
    said = [turn["content"] for turn in prompt if turn["role"] == "user"]
    return said if len(said) < 2 else [*said, "\n".join(said)]


def compare_items(
    prompts: Sequence[tuple[str, Sequence[Message] | str]],
    sets: dict[str, Texts],
    absent: dict[str, str],
) -> dict[str, Any]:
    """Compare training prompts with evaluated items, set by set.

    Args:
        prompts: What each is called, and its turns.
        sets: Items by set.
        absent: Sets that are not compared, and why; kept as they are.

    Returns:
        JSON: for each set the numbers of items and of those met, of each kind and in any way, the
        prompts that they are met in, and the first of them.
    """
    from deltalearn.overlap.find import KINDS, Sought

    units = [(number, text) for number, (_, turns) in enumerate(prompts) for text in _units(turns)]
    found: dict[str, Any] = {}
    for name, items in sets.items():
        met = Sought(text for _, text in items).among(text for _, text in units)
        pairs = met.pairs()
        found[name] = {
            "items": len(items),
            "any": met.count(),
            **{kind: met.count(kind) for kind in KINDS},
            "prompts": len({units[at][0] for at in pairs[:, 1].tolist()}),
            "first": _first(met, items, [prompts[number][0] for number, _ in units]),
        }
    return {"prompts": len(prompts), "sets": found, "not_compared": absent}


def _first(met: Overlaps, items: Texts, places: Sequence[str]) -> list[dict[str, str]]:
    """The first items that are met, each with the first prompt that it is met in."""
    seen: dict[int, dict[str, str]] = {}
    for kind, pairs in met.found.items():
        for item, at in pairs.tolist():
            name, text = items[item]
            shown = " ".join(text.split())[:SHOWN]
            entry = {"item": name, "prompt": places[at], "kind": kind, "text": shown}
            seen.setdefault(item, entry)
    return [seen[item] for item in sorted(seen)[:EXAMPLES]]


def overlap_lines(found: dict[str, Any]) -> list[str]:
    """Write what `compare_items` found: a line a set that is met, and one for the others."""
    from deltalearn.overlap.find import KINDS
    from deltalearn.util.text_format import visible

    lines, clean = [], []
    for name, one in found["sets"].items():
        if not one["any"]:
            clean.append(f"{name} ({one['items']:,})")
            continue
        kinds = ", ".join(f"{kind} {one[kind]:,}" for kind in KINDS)
        lines.append(
            f"CONTAMINATED: {one['any']:,} of {one['items']:,} items of {name} are among the "
            f"training prompts ({kinds}; in {one['prompts']:,} prompts): their scores are no "
            "evidence. Take them out of the prompts or out of the evaluation"
        )
        lines += [
            visible(f"  {e['kind']}: item {e['item']} in {e['prompt']}: {e['text']}")
            for e in one["first"]
        ]
    if clean:
        lines.append(
            f"no evaluated item is among the {found['prompts']:,} training prompts, by text, "
            f"8-grams or 13-grams: {', '.join(clean)}"
        )
    for name, reason in found["not_compared"].items():
        lines.append(f"{name} is not compared with the training prompts: {reason}")
    return lines


def check_dev(recipe: Recipe) -> None:
    """Raise UserError if questions that choose when to stop are those that are reported.

    By what they say, whatever file they are in.
    """
    spec = recipe.evaluate
    devs = [dev for dev in _devs(recipe) if local_path(dev.source).exists()]
    if spec is None or not devs:
        return
    own = {n: q for n, q in spec.questions.items() if local_path(q.source).exists()}
    from deltalearn.overlap.find import EXACT, Sought

    for dev in devs:
        items = _items(dev.reading)
        sought = Sought(text for _, text in items)
        for name in (name for name in spec.names if name in own):
            asked = _items(own[name].reading)
            same = sought.among(text for _, text in asked).count(EXACT)
            if same > TOO_MUCH * len(items):
                raise UserError(
                    f"tune.dev.source: {same:,} of {len(items):,} questions of {dev.source} are "
                    f"those of evaluate.questions.{name}: what chooses when to stop must not be "
                    "what is reported; split the questions in two files"
                )


def overlap_of_pairs(
    pairs: PairsSource,
    dev: DevSpec | None,
    against: Sequence[str] = (),
    data_dir: str | Path | None = None,
) -> dict[str, Any]:
    """Look for questions among the prompts of pairs from outside.

    Args:
        pairs: The training data.
        dev: The questions that choose when to stop, if any do.
        against: Others: benchmarks of the suite by name, `tulu3` for the eleven, and files of
            prompts.
        data_dir: Local data of the suite; default: what DELTALEARN_DATA_DIR names.

    Returns:
        As `compare_items`.

    Raises:
        UserError: If one of `against` is neither, or if nothing of it can be read here.
    """
    sets, absent = _asked(against, data_dir)
    if dev is not None:
        sets[DEV] = _items(dev.reading)
    return compare_items(list(prompts_of_pairs(pairs)), sets, absent) if sets else {}


def _asked(
    names: Sequence[str], data_dir: str | Path | None
) -> tuple[dict[str, Texts], dict[str, str]]:
    """Items of benchmarks of the suite and of files, and why others are not to be had."""
    from deltalearn.evaluate.tulu3.sources import NoData
    from deltalearn.evaluate.tulu3.suite import BY_NAME, questions_on_disk
    from deltalearn.pipeline.evaluate_options import expanded
    from deltalearn.prompts.read import read_prompts

    sets: dict[str, Texts] = {}
    absent: dict[str, str] = {}
    for name in expanded(names):
        if name in BY_NAME:
            try:
                sets[name] = questions_on_disk(name, data_dir)
            except NoData as reason:
                absent[name] = f"{reason}; --data-dir names where it is"
        elif local_path(name).is_file():
            sets[name] = [(p.id, _text(p.messages)) for p in read_prompts(name).prompts]
        else:
            raise UserError(
                f"--against {name}: neither a file here nor a benchmark of the suite; there are "
                f"tulu3, {', '.join(BY_NAME)}"
            )
    if absent and not sets:
        first = next(iter(absent))
        raise UserError(f"--against {first}: {absent[first]}")
    return sets, absent
