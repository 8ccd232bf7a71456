"""Which files of a folder are of which split, told by their names as `datasets` tells it.

In this order: what a hub's README declares; `data/train-00000-of-00001.parquet`, of any split;
folders called after a split; files called after one; else all files are of one, nameless. Case does
not count here, where for `datasets` `Test.jsonl` belongs to the training data.
"""

from __future__ import annotations

import re
from collections.abc import Collection, Iterable, Mapping
from fnmatch import fnmatchcase as fnmatch
from pathlib import Path
from typing import Any

import yaml

from deltalearn.errors import UserError
from deltalearn.formats.files import KINDS, KNOWN, suffix_of

KEYWORDS = {
    "train": ("train", "training"),
    "validation": ("validation", "valid", "dev", "val"),
    "test": ("test", "testing", "eval", "evaluation"),
}
ALIASES = {word: split for split, words in KEYWORDS.items() for word in words}
SHARD = re.compile(r"data/(\w+(?:\.\w+)*)-\d{5}-of-\d{5}[^/]*\.[^/]*")
APART = "[-._ 0-9]"
DESCRIBING = {  # files of a repository that hold no rows
    "config.json", "dataset_info.json", "dataset_infos.json", "dataset_dict.json", "state.json",
}  # fmt: skip
FIRST_KINDS = (("JSON lines", "Parquet"), ("JSON",), ("CSV",))  # the first that a folder has


def data_files(folder: Path) -> list[Path]:
    """The files of a folder that hold rows, in order; hidden ones and `__special__` folders not.

    JSON lines and Parquet are read together. Other kinds count where there are none of these: a
    .json beside them mostly describes them.
    """
    found: dict[str, list[Path]] = {}
    for path in sorted(folder.rglob("*")):
        parts = path.relative_to(folder).parts
        hidden = any(part.startswith(".") for part in parts)
        special = any(part.startswith("__") for part in parts[:-1])
        suffix = suffix_of(path)
        if suffix and not hidden and not special and path.name not in DESCRIBING and path.is_file():
            found.setdefault(KINDS[suffix], []).append(path)
    for kinds in FIRST_KINDS:
        if files := sorted(path for kind in kinds for path in found.get(kind, ())):
            return files
    return []


def splits_of(folder: Path, files: Iterable[Path]) -> dict[str, list[Path]]:
    """The files of each split of a folder, empty where their names tell none.

    Args:
        folder: Where they are.
        files: Those that hold rows.

    Raises:
        UserError: If the folder's README declares several data sets, of which none is the default.
    """
    names = {path: path.relative_to(folder).as_posix() for path in files}
    if declared := _declared(folder, names):
        return declared
    shards: dict[str, list[Path]] = {}
    for path, name in names.items():
        if found := SHARD.fullmatch(name):
            shards.setdefault(found[1], []).append(path)
    if shards:
        return _ordered(shards)
    for part in (slice(-1), slice(-1, None)):  # folders, file
        # The dot of a file's suffix ends a word, and a folder's name may end with it.
        parts = {path: name.split("/")[part] for path, name in names.items()}
        called = {
            split: [path for path, found in parts.items() if any(_names(split, s) for s in found)]
            for split in KEYWORDS
        }
        if any(called.values()):
            return _ordered({split: paths for split, paths in called.items() if paths})
    return {}


def _names(split: str, part: str) -> bool:
    words = "|".join(KEYWORDS[split])
    return bool(re.fullmatch(rf"(.*{APART})?({words})({APART}.*)?", part, re.IGNORECASE))


def _ordered(splits: Mapping[str, list[Path]]) -> dict[str, list[Path]]:
    first = [name for name in KEYWORDS if name in splits]
    return {name: splits[name] for name in [*first, *sorted(splits.keys() - set(first))]}


def _declared(folder: Path, names: Mapping[Path, str]) -> dict[str, list[Path]]:
    """The splits that the head of README.md declares, as repositories of the hub do."""
    readme = folder / "README.md"
    if not readme.is_file():
        return {}
    text = readme.read_text(encoding="utf-8", errors="replace")
    head = re.match(r"---\s*\n(.*?)\n---\s*(\n|\Z)", text, re.DOTALL)
    try:
        about = yaml.safe_load(head[1]) if head else None
    except yaml.YAMLError:
        return {}
    configs = about.get("configs") if isinstance(about, dict) else None
    configs = configs if isinstance(configs, list) else []
    configs = [c for c in configs if isinstance(c, dict) and c.get("data_files")]
    if not configs:
        return {}
    default = [c for c in configs if c.get("default") or c.get("config_name") == "default"]
    if len(configs) > 1 and not default:
        several = ", ".join(str(c.get("config_name")) for c in configs)
        raise UserError(f"{folder}: it holds several data sets ({several}): give the files of one")
    splits: dict[str, list[Path]] = {}
    for split, patterns in _patterns((default or configs)[0]["data_files"]):
        if found := [p for p, name in names.items() if any(fnmatch(name, w) for w in patterns)]:
            splits.setdefault(split, []).extend(found)
    return splits


def _patterns(declared: Any) -> list[tuple[str, list[str]]]:
    """(split, globs) of a README's `data_files`."""

    def listed(value: Any) -> list[str]:
        return [str(p) for p in (value if isinstance(value, list) else [value])]

    entries = declared if isinstance(declared, list) else [declared]
    if not all(isinstance(entry, dict) and {"split", "path"} <= entry.keys() for entry in entries):
        return [("train", listed(declared))] if not isinstance(declared, dict) else []
    return [(str(entry["split"]), listed(entry["path"])) for entry in entries]


def choose(source: str, splits: Collection[str], wanted: str | None, default: str | None) -> str:
    """Name the split of a source that is read.

    Args:
        source: For messages.
        splits: Those that there are.
        wanted: The one that somebody asked for; `dev` finds `validation`, as files are called.
        default: Taken if nobody asked and it is there; None: there is no split that goes first.

    Returns:
        One of them; the only one where there is no other.

    Raises:
        UserError: If it is not there, or if it would have to be guessed.
    """
    there = ", ".join(splits)
    if wanted is not None:
        for name in (wanted, ALIASES.get(wanted, "")):
            if name in splits:
                return name
        raise UserError(f"{source}: no split {wanted!r}; there are {there}")
    if default in splits:
        return str(default)
    if len(splits) == 1:
        return next(iter(splits))
    missing = f"no split {default!r}" if default else "several splits"
    raise UserError(f"{source}: {missing}; there are {there}: name one as the split")


def read_files(
    source: str, folder: Path, wanted: str | None, default: str | None
) -> tuple[str | None, list[Path], list[Path]]:
    """Find what is read of a folder.

    Args:
        source: For messages.
        folder: The folder.
        wanted: As for `choose`.
        default: As for `choose`.

    Returns:
        The split, None where names tell none; its files; the others that hold rows.

    Raises:
        UserError: If there is nothing to read, or not what was asked for.
    """
    files = data_files(folder)
    if not files:
        raise UserError(f"{source}: no file of rows in this folder; known are {KNOWN}")
    splits = splits_of(folder, files)
    if not splits:
        if wanted is not None:
            raise UserError(f"{source}: split {wanted!r} has no effect on files; remove it")
        return None, files, []
    split = choose(source, splits, wanted, default)
    read = sorted(set(splits[split]))
    return split, read, [path for path in files if path not in set(read)]
