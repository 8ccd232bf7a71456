"""What tuning reads: pairs as ids, and what of a model is needed to make them."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

from deltalearn.errors import UserError
from deltalearn.formats.preferences import READING, PairReader, Text
from deltalearn.formats.rows import source_digest
from deltalearn.lm.locate import ModelFiles
from deltalearn.recipe import PairsSource, TuneSpec
from deltalearn.records import Rendering
from deltalearn.util.text_format import words

if TYPE_CHECKING:
    from transformers import PretrainedConfig

    from deltalearn.tune.dataset import Examples
    from deltalearn.tune.tokenize import ExampleCounts


def pairs_digest(pairs: PairsSource) -> Any:
    """Identify pairs by the files that are read, and how."""
    return [source_digest(pairs.source, pairs.split), pairs.model_dump()]


def read_examples(
    pairs: PairsSource,
    tune: TuneSpec,
    student: ModelFiles,
    rendering: Rendering,
    *,
    kept: tuple[Path, Any] | None = None,
    **some: int,
) -> tuple[Examples, ExampleCounts]:
    """Read pairs and tokenise them for the student; count what became of all of them.

    Args:
        pairs: Where they are.
        tune: Settings of the tuning.
        student: Its tokenizer is taken.
        rendering: Of its chat template.
        kept: A folder for the next start to find them in, and their digest.
        some: How `prepare_examples` stops early.
    """
    from deltalearn.lm.load import load_tokenizer
    from deltalearn.tune.tokenize import prepare_examples

    tokenizer = load_tokenizer(student, chat=False)
    text = what_text_is(pairs, student.name, has_template=bool(tokenizer.chat_template))
    columns = pairs.model_dump(exclude={"source", "limit", "chat_template"})
    limit = min(filter(None, (pairs.limit, tune.max_pairs)), default=None)
    folder, content = kept or (None, None)
    return prepare_examples(
        tokenizer,
        PairReader(pairs.source, **columns, limit=limit, text=text),
        tune.max_length,
        rendering=rendering,
        truncation=tune.truncation,
        directory=folder,
        key={
            "source": content,
            "columns": columns,
            "limit": limit,
            "reading": READING,
            "text": text,
        },
        **some,
    )


def what_text_is(pairs: PairsSource, student: str, *, has_template: bool) -> Text:
    """Decide what pairs of plain text are to the student.

    Args:
        pairs: Where they are read; its `chat_template` decides.
        student: Its name.
        has_template: Whether it has a chat template; "auto" goes by that.

    Raises:
        UserError: If it is to be used and there is none.
    """
    if pairs.chat_template == "yes" and not has_template:
        raise UserError(
            f"pairs.chat_template: yes, and {student} has no chat template; say no (its pairs are "
            "raw text then), or tune a model that has one"
        )
    if pairs.chat_template == "no":
        return "raw only"
    return "chat" if has_template else "raw"


def template_line(pairs: PairsSource, counts: ExampleCounts, student: str) -> str:
    """Write whether the pairs are rendered with the chat template, and why."""
    if not counts.plain:
        said = "yes, because the pairs are conversations"
    elif counts.raw:
        said = f"no, because {student} has none: text is taken as it is"
        if pairs.chat_template == "no":
            said = "no, because pairs.chat_template says so: text is taken as it is"
    elif pairs.chat_template == "yes":
        said = "yes, because pairs.chat_template says so: text is a turn of the user"
    else:
        said = (
            f"yes, because {student} has one: text is a turn of the user (pairs.chat_template: no, "
            "--chat-template no, takes it as it is, as TRL does)"
        )
    turned = ""
    if counts.transcribed:
        turned = f"; Human: and Assistant: became turns in {counts.transcribed:,} pairs"
    return f"rendered with the chat template: {said}{turned}"


def counts_text(counts: ExampleCounts) -> str:
    """Write how many rows are used, and what was lost: why, and where that was met first."""
    from deltalearn.tune.preview import visible

    lost = {"unusable rows": counts.unusable, "dropped": counts.dropped}
    parts = [f"pairs: {counts.examples:,} of {counts.pairs + sum(counts.unusable.values()):,} used"]
    for what, reasons in lost.items():
        if found := [f"{words(r)} {n:,}" for r, n in reasons.items() if n]:
            parts.append(f"{what}: {', '.join(found)}")
    places = [f"  first {words(r)}: {visible(at)}" for r, at in counts.first.items()]
    return "\n".join(["; ".join(parts), *places])


def read_config(student: ModelFiles) -> PretrainedConfig:
    """Read the config of a model that is here; UserError if it has none."""
    from transformers import AutoConfig

    from deltalearn.lm.architecture import require_causal

    require_causal(student)
    try:
        return AutoConfig.from_pretrained(student.directory, trust_remote_code=False)
    except (OSError, ValueError) as error:
        raise UserError(f"{student.name}: its config cannot be read: {error}") from error
