"""Protects people from tracebacks where a place is at fault, whatever the command.

Read-only file systems, files in the way, folders where files are expected, links that lead back:
one line, exit code 2. What is only read may lie where nothing can be written.
"""

from __future__ import annotations

import os
import shutil
import subprocess
from pathlib import Path

import pytest
from helpers.cli import LADDER, small

from deltalearn import cli
from deltalearn.errors import UserError
from deltalearn.pipeline.run import run_recipe
from deltalearn.pipeline.run_options import RunOptions
from deltalearn.recipe import load_recipe
from deltalearn.responses.store import ResponseStore

PAIRS = '{"prompt": "rev ab", "chosen": "ba", "rejected": "ab"}\n' * 4
PLACES = ["afile/x", "afile/x/y", "loop/x", "ro/x", "n" * 300]


@pytest.fixture(scope="module")
def folder(tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("places")
    small(folder)
    (folder / "afile").write_text("a file")
    (folder / "loop").symlink_to("loop")
    (folder / "afolder").mkdir()
    (folder / "pairs.jsonl").write_text(PAIRS)
    (folder / "ro").mkdir()
    loaded = load_recipe(folder / "small.yaml")
    run_recipe(loaded, RunOptions(folder / "run"), say=lambda line: None)
    shutil.copytree(folder / "run", folder / "ro" / "run")
    (folder / "ro" / "log").mkdir()
    shutil.copy(folder / "run" / "responses.sqlite", folder / "ro" / "log")
    return folder


@pytest.fixture(autouse=True)
def read_only(folder, monkeypatch):
    """In the folder; below `ro` nothing can be written, for root neither (as on a read-only mount).

    Everything that opens, makes or moves files asks the system through these functions.
    """
    monkeypatch.chdir(folder)
    access, mkdir = os.access, os.mkdir

    def below(path) -> bool:
        return (folder / "ro") in [Path(path).absolute(), *Path(path).absolute().parents]

    def no_access(path, mode, **more):
        return access(path, mode, **more) and not (mode & os.W_OK and below(path))

    def no_mkdir(path, mode=0o777, **more):
        if below(path):
            raise OSError(30, "Read-only file system", str(path))
        mkdir(path, mode, **more)

    monkeypatch.setattr(os, "access", no_access)
    monkeypatch.setattr(os, "mkdir", no_mkdir)


@pytest.fixture
def command(monkeypatch, capsys):
    """`command("run", ...)`: exit code, output and errors of the whole program, in this process."""

    def command(*arguments: object) -> tuple[int, str, str]:
        monkeypatch.setattr("sys.argv", ["deltalearn", *map(str, arguments)])
        capsys.readouterr()
        try:
            cli.main()
            code = 0
        except SystemExit as ended:
            code = int(ended.code or 0)
        return (code, *capsys.readouterr())

    return command


MODEL = str(LADDER / "m")
WRITERS = {
    "run": ("run", "small.yaml", "--out", "{}"),
    "generate": ("generate", "--model", f"s={MODEL}", "--prompts", "prompts.jsonl", "--out", "{}"),
    "pairs": ("pairs", "run", "--chosen", "s", "--rejected", "xs", "--out", "{}/p.parquet"),
    "tune": ("tune", "--student", MODEL, "--pairs", "pairs.jsonl", "--out", "{}"),
    "evaluate": ("evaluate", MODEL, "--benchmark", "ifeval", "--out", "{}"),
    "compare": ("compare", "run:delta", "run:base", "--json", "{}/numbers.json"),
    "plot": ("compare", "run:delta", "run:base", "--plot", "{}/forest"),
    "theory": ("theory", "--trials", "1", "--dimension", "20", "--out", "{}"),
    "export": ("responses", "export", "run", "{}/all.jsonl"),
    "import": ("responses", "import", "{}", "pairs.jsonl"),
    "check": ("run", "small.yaml", "--check", "--out", "{}"),
}


def one_line(result: tuple[int, str, str]) -> str:
    code, _, errors = result
    assert code == 2, result
    assert errors.startswith("error: ") and errors.count("\n") == 1, errors
    return errors


@pytest.mark.slow
@pytest.mark.parametrize("place", PLACES, ids=["below a file", "deeper", "loop", "ro", "long"])
@pytest.mark.parametrize("writer", WRITERS)
def test_where_nothing_can_be_written(command, writer, place):
    one_line(command(*(part.format(place) for part in WRITERS[writer])))


@pytest.mark.parametrize("writer", ["run", "generate", "tune", "evaluate"])
def test_nothing_is_computed_before_that_is_known(command, writer, monkeypatch):
    monkeypatch.setattr("deltalearn.lm.locate.directory_fingerprint", lambda path: pytest.fail())
    one_line(command(*(part.format("afile/x") for part in WRITERS[writer])))


@pytest.mark.parametrize(
    "arguments",
    [
        ("pairs", "run", "--chosen", "s", "--rejected", "xs", "--out", "f.parquet"),
        ("compare", "run:delta", "run:base", "--json", "afolder"),
        ("responses", "export", "run", "f.jsonl"),
        ("run", "afolder"),
        ("tune", "--student", "afile", "--pairs", "pairs.jsonl", "--out", "t"),
        ("tune", "--student", MODEL, "--pairs", "loop", "--out", "t"),
        ("report", "afile"),
        ("responses", "list", "afile"),
        ("responses", "list", "loop"),
        ("compare", "afile", "loop"),
        ("generate", "--model", f"s={MODEL}", "--prompts", "afolder", "--out", "g"),
        ("evaluate", "afile", "--benchmark", "ifeval"),
    ],
    ids=lambda arguments: " ".join(a for a in arguments if a[0] != "/" and "=" not in a),
)
def test_a_folder_for_a_file_or_a_file_for_a_folder(command, folder, arguments):
    for name in ("f.parquet", "f.jsonl"):
        (folder / name).mkdir(exist_ok=True)
    one_line(command(*arguments))


def test_a_finished_run_that_can_only_be_read(command, folder):
    before = {p: p.stat().st_mtime_ns for p in (folder / "ro").rglob("*")}
    code, said, errors = command("run", "small.yaml", "--out", "ro/run")
    assert code == 0, errors
    assert "ro/run: everything is done already, nothing to do" in said and "delta" in said
    changed = ("--set", "tune.steps=3", "--update")
    said = one_line(command("run", "small.yaml", "--out", "ro/run", *changed))
    assert "a run that can only be read here" in said
    assert command("responses", "list", "ro/run")[0] == 0
    assert command("responses", "check", "ro/run")[0] == 0
    assert command("compare", "ro/run:delta", "run:base")[0] == 0
    one_line(command("responses", "forget", "ro/run", "s", "--yes"))
    one_line(command("responses", "merge", "ro/run", "run"))
    assert {p: p.stat().st_mtime_ns for p in (folder / "ro").rglob("*")} == before


def test_answers_in_a_log_that_cannot_be_taken_in_are_not_left_out(folder):
    """A store that was copied while it was written has its newest answers in the log beside it."""
    file = folder / "ro" / "log" / "responses.sqlite"
    with ResponseStore(file, existing=True) as store:
        assert store.count() == 30
    file.with_name("responses.sqlite-wal").write_bytes(b"frames")
    with pytest.raises(UserError, match=r"its last answers are in responses\.sqlite-wal"):
        ResponseStore(file, existing=True)


@pytest.mark.skipif(not hasattr(os, "geteuid") or os.geteuid() != 0, reason="mounts need root")
def test_on_a_real_read_only_mount(folder, command):
    mount = folder / "mount"
    os.makedirs(mount, exist_ok=True)
    shutil.copytree(folder / "run", mount / "run")
    bind = [["mount", "--bind", mount, mount], ["mount", "-o", "remount,ro,bind", mount]]
    if any(subprocess.run(part, capture_output=True).returncode for part in bind):
        pytest.skip("nothing can be mounted here")
    try:
        assert command("run", "small.yaml", "--out", "mount/run")[0] == 0
        assert command("responses", "list", "mount/run")[0] == 0
        for writer in WRITERS.values():
            one_line(command(*(part.format("mount/x") for part in writer)))
    finally:
        subprocess.run(["umount", mount], check=True)
