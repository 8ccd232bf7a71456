"""Pack what `gpu.py` needs for a GPU machine without a network: this tree, and missing packages.

python benchmarks/gpu_pack.py gpu-day.tar [--python 3.12] [--packages NAME==VERSION ...]

There: tar xf gpu-day.tar && cd gpu-day && bash go.sh [options of gpu.py]. It expects a Python of
that version with torch, transformers, accelerate, peft and the ordinary scientific packages; the
wheels are for what such an image lacks. They are installed beside, into a folder of their own.
"""

from __future__ import annotations

import argparse
import subprocess
import sys
import tarfile
import tempfile
import zipfile
from collections.abc import Sequence
from pathlib import Path

ROOT = Path(__file__).parents[1]
LIMIT = 64 << 20  # bytes: what a small upload takes
# Everything by name, since nothing can be looked up there; TRL's side needs trl and datasets.
PACKAGES = (
    "pydantic==2.14.4", "pydantic_core==2.50.5", "annotated_types", "typing_inspection",
    "trl==1.16.0", "datasets==5.2.0", "dill==0.4.1", "multiprocess==0.70.19",
    "liger-kernel==0.8.5", "torchao==0.18.0", "bitsandbytes==0.50.2",
)  # fmt: skip
# Of packages with a library for every CUDA, that of torch 2.11's alone: 1 MB instead of 43.
LIBRARIES = {"bitsandbytes": ("libbitsandbytes_cpu.so", "libbitsandbytes_cuda130.so")}
PLATFORMS = (
    "manylinux_2_28_x86_64",
    "manylinux_2_24_x86_64",
    "manylinux_2_17_x86_64",
    "manylinux2014_x86_64",
)
GO = """#!/bin/bash
# Install the wheels beside whatever is here, and run the stages: bash go.sh [options of gpu.py]
set -eu
cd "$(dirname "$0")"
site=$(mktemp -d)
python3 -m pip install -q --no-index --no-deps --no-compile --target "$site" wheels/*.whl
export PYTHONPATH="$site:$PWD/src"
exec python3 benchmarks/gpu.py "$@"
"""


def main() -> None:
    options = parse()
    with tempfile.TemporaryDirectory() as temporary:
        place = Path(temporary) / "gpu-day"
        place.mkdir()
        tree = subprocess.run(
            ["git", "archive", "HEAD", "src", "benchmarks", "recipes", "pyproject.toml"],
            cwd=ROOT, capture_output=True, check=True,
        )  # fmt: skip
        subprocess.run(["tar", "x", "-C", place], input=tree.stdout, check=True)
        (place / "go.sh").write_text(GO)
        download(place / "wheels", options.python, options.packages)
        with tarfile.open(options.file, "w") as packed:
            packed.add(place, "gpu-day")
    size = options.file.stat().st_size
    print(f"{options.file}: {size / (1 << 20):.1f} MiB of {LIMIT >> 20}")
    if size > LIMIT:
        sys.exit("too large: leave packages out with --packages")


def download(wheels: Path, python: str, packages: list[str]) -> None:
    """The wheels of exactly these packages, for that Python on Linux."""
    wheels.mkdir()
    platforms = [part for name in PLATFORMS for part in ("--platform", name)]
    command = [sys.executable, "-m", "pip", "download", "--quiet", "--no-deps",
               "--only-binary=:all:", "--python-version", python, "--implementation", "cp",
               *platforms, "--dest", str(wheels), *packages]  # fmt: skip
    if subprocess.run(command).returncode:
        sys.exit("some package has no such wheel; name others with --packages")
    for name, kept in LIBRARIES.items():
        for wheel in wheels.glob(f"{name}-*.whl"):
            trim(wheel, kept)


def trim(wheel: Path, kept: Sequence[str]) -> None:
    """Leave out the libraries of a wheel but for some, and their lines in its list of files."""

    def stays(name: str) -> bool:
        return not name.endswith(".so") or Path(name).name in kept

    whole = wheel.rename(wheel.with_suffix(".whole"))
    with zipfile.ZipFile(whole) as old, zipfile.ZipFile(wheel, "w", zipfile.ZIP_DEFLATED) as new:
        for name in filter(stays, old.namelist()):
            content = old.read(name)
            if name.endswith(".dist-info/RECORD"):
                lines = content.decode().splitlines(keepends=True)
                content = "".join(x for x in lines if stays(x.partition(",")[0])).encode()
            new.writestr(name, content)
    whole.unlink()


def parse() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("file", type=Path, help="the tar file to write")
    parser.add_argument("--python", default="3.12", help="of the machine; default: 3.12")
    parser.add_argument("--packages", nargs="+", default=list(PACKAGES), help="wheels to pack")
    return parser.parse_args()


if __name__ == "__main__":
    main()
