"""What tuning reads: pairs as ids, and what of a model is needed to make them."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

from deltalearn.errors import UserError
from deltalearn.formats.rows import DEFAULT_SPLIT, source_digest, split_files
from deltalearn.lm.adapters import base_of
from deltalearn.lm.locate import WANTED, ModelFiles, locate
from deltalearn.recipe import ModelSpec, PairsSource, TuneSpec
from deltalearn.util.paths import local_path

if TYPE_CHECKING:
    from transformers import PretrainedConfig

    from deltalearn.tune.dataset import Examples
    from deltalearn.tune.tokenize import ExampleCounts

WITHOUT_WEIGHTS = [pattern for pattern in WANTED if pattern != "*.safetensors"]


def pairs_digest(pairs: PairsSource) -> Any:
    """Identify pairs by the files that are read, and how."""
    return [source_digest(pairs.source, split_files(pairs.source, pairs.split)), pairs.model_dump()]


def split_line(pairs: PairsSource) -> str | None:
    """Name the files that are read, where their names tell splits and only one is taken."""
    files = split_files(pairs.source, pairs.split)
    if files is None:
        return None
    names = [str(file.relative_to(local_path(pairs.source))) for file in files]
    if len(names) > 3:
        names = [*names[:2], f"... ({len(names) - 3} more)", names[-1]]
    return f"split {pairs.split or DEFAULT_SPLIT} of {pairs.source}: {', '.join(names)}"


def read_examples(
    pairs: PairsSource,
    tune: TuneSpec,
    student: ModelFiles,
    *,
    kept: tuple[Path, Any] | None = None,
    **some: int,
) -> tuple[Examples, ExampleCounts]:
    """Read pairs and tokenise them for the student; count what became of all of them.

    Args:
        kept: A folder for the next start to find them in, and their digest.
        some: How `prepare_examples` stops early.
    """
    from deltalearn.formats.preferences import READING, read_pairs_from
    from deltalearn.lm.load import load_tokenizer
    from deltalearn.tune.tokenize import prepare_examples

    columns = pairs.model_dump(exclude={"source", "limit"})
    limit = min(filter(None, (pairs.limit, tune.max_pairs)), default=None)
    folder, content = kept or (None, None)
    return prepare_examples(
        load_tokenizer(student, chat=False),
        read_pairs_from(pairs.source, **columns, limit=limit),
        tune.max_length,
        truncation=tune.truncation,
        directory=folder,
        key={"source": content, "columns": columns, "limit": limit, "reading": READING},
        **some,
    )


def counts_text(counts: ExampleCounts) -> str:
    """Write how many pairs are used, and what was lost: why, and where that was met first."""
    from deltalearn.tune.preview import visible

    lost = {"unusable rows": counts.unusable, "dropped": counts.dropped}
    parts = [f"pairs: {counts.examples:,} of {counts.pairs:,} used"]
    for what, reasons in lost.items():
        if found := [f"{r.replace('_', ' ')} {n:,}" for r, n in reasons.items() if n]:
            parts.append(f"{what}: {', '.join(found)}")
    places = [f"  first {r.replace('_', ' ')}: {visible(at)}" for r, at in counts.first.items()]
    return "\n".join(["; ".join(parts), *places])


def read_config(student: ModelFiles) -> PretrainedConfig:
    """Read the config of a model that is here; UserError if it has none."""
    from transformers import AutoConfig

    try:
        return AutoConfig.from_pretrained(student.directory, trust_remote_code=False)
    except (OSError, ValueError) as error:
        raise UserError(f"{student.name}: its config cannot be read: {error}") from error


def tokenizer_files(spec: ModelSpec, *, network: bool = True) -> ModelFiles:
    """Find config and tokenizer of a model; of a hub model only those are downloaded.

    Raises:
        UserError: If they are not to be had; without `network`, not on this disk.
    """
    path = local_path(spec.path)
    if path.is_dir():
        adapted = base_of(spec.path, path) is not None
        return locate(spec.path) if adapted else ModelFiles(spec.path, path, "")
    from huggingface_hub import snapshot_download

    try:
        path = Path(
            snapshot_download(
                spec.path,
                revision=spec.revision,
                allow_patterns=WITHOUT_WEIGHTS,
                local_files_only=not network,
            )
        )
    except Exception as error:  # the hub raises a dozen unrelated kinds; all mean "not to be had"
        reason = (str(error).strip().splitlines() or [repr(error)])[0]
        raise UserError(
            f"{spec.path}: no directory of that name here, and the Hugging Face hub did not give "
            f"it ({type(error).__name__}: {reason})"
        ) from error
    return ModelFiles(spec.path, path, "")
