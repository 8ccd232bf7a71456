"""Protects the identity of models, and the errors for directories that are none.

Everything downstream is cached under the fingerprint: if it did not change with the weights, old
answers and reference log-probabilities would be taken for the new model's; if it changed with the
path, they would be computed again for nothing. No pickled weights and no remote code, ever.
"""

from __future__ import annotations

import hashlib
import json
import os
import shutil
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path

import pytest
from safetensors.torch import load_file, save_file

from deltalearn.errors import UserError
from deltalearn.lm.load import Placement, context_length, load_model, load_tokenizer, place
from deltalearn.lm.locate import locate
from deltalearn.util.files import (
    digest,
    file_digest,
    read_jsonl,
    replacing,
    write_json,
    write_jsonl,
    write_text,
)


@pytest.fixture(autouse=True)
def hash_cache(tmp_path, monkeypatch) -> Path:
    """File hashes are remembered in the test's own directory."""
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "xdg"))
    return tmp_path / "xdg" / "deltalearn" / "file-hashes.json"


@pytest.fixture
def model(tmp_path, tiny_model) -> Path:
    """A copy of the tiny model that a test may damage."""
    return Path(shutil.copytree(tiny_model, tmp_path / "model"))


def fingerprint(directory: Path) -> str:
    return locate(str(directory)).fingerprint


def edit_json(path: Path, **changes: object) -> None:
    """Set keys of a JSON file; None removes one."""
    values = json.loads(path.read_text(encoding="utf-8"))
    values = {k: v for k, v in {**values, **changes}.items() if v is not None}
    path.write_text(json.dumps(values), encoding="utf-8")


# -- the fingerprint -----------------------------------------------------------------------------


def test_fingerprint_depends_on_content_not_on_path_time_or_neighbours(model, tmp_path):
    before = fingerprint(model)
    moved = model.rename(tmp_path / "elsewhere")
    for file in moved.iterdir():
        os.utime(file, (1, 1))
    (moved / "optimizer.pt").write_bytes(b"not part of the model")
    (moved / "README.md").write_text("nor this")
    assert fingerprint(moved) == before
    assert len(before) == 64


def change_one_byte(path: Path) -> None:
    data = bytearray(path.read_bytes())
    data[-5] ^= 1
    stat = path.stat()
    path.write_bytes(bytes(data))
    os.utime(path, ns=(stat.st_atime_ns, stat.st_mtime_ns))  # same size, same time


@pytest.mark.parametrize(
    "name",
    [
        "model.safetensors",
        "tokenizer.json",
        "tokenizer_config.json",
        "chat_template.jinja",
        "config.json",
        "generation_config.json",
    ],
)
def test_fingerprint_changes_with_one_byte_of_any_model_file(model, name):
    before = fingerprint(model)
    change_one_byte(model / name)
    assert fingerprint(model) != before


def test_fingerprint_changes_with_an_added_or_renamed_shard(model):
    before = fingerprint(model)
    shutil.copy(model / "model.safetensors", model / "model-2.safetensors")
    added = fingerprint(model)
    (model / "model-2.safetensors").rename(model / "model-3.safetensors")
    assert len({before, added, fingerprint(model)}) == 3


def test_files_and_name(model, monkeypatch):
    monkeypatch.chdir(model.parent)
    found = locate("model")
    assert (found.name, found.directory, found.fingerprint) == (
        "model",
        Path("model"),
        fingerprint(model),
    )


def test_package_place_is_the_same_model_as_its_path(lab_ladder):
    packaged = locate("package://deltalearn.lab/ladder/xs")
    assert packaged.fingerprint == fingerprint(lab_ladder / "xs")
    assert packaged.fingerprint != fingerprint(lab_ladder / "s")


# -- remembered hashes of large files ------------------------------------------------------------


@pytest.fixture
def large(model) -> Path:
    """A shard of 2 MiB beside the model's own weights."""
    shard = model / "big.safetensors"
    shard.write_bytes(os.urandom(2 << 20))
    return shard


@pytest.fixture
def hashed(monkeypatch) -> list[str]:
    """Names of the files that were really read for hashing."""
    names = []

    def counting(path: Path) -> str:
        names.append(path.name)
        return file_digest(path)

    monkeypatch.setattr("deltalearn.lm.hashes.file_digest", counting)
    return names


def test_large_file_is_hashed_once(model, large, hashed, hash_cache):
    first = fingerprint(model)
    assert "big.safetensors" in hashed and "config.json" in hashed
    assert list(json.loads(hash_cache.read_text()).values()) == [file_digest(large)]
    hashed.clear()
    assert fingerprint(model) == first
    assert "big.safetensors" not in hashed
    assert "model.safetensors" in hashed  # small ones are read anew: cheaper than being wrong


@pytest.mark.parametrize("change", ["size", "time"])
def test_large_file_is_hashed_again_when_size_or_time_changes(model, large, hashed, change):
    first = fingerprint(model)
    stat = large.stat()
    if change == "size":
        large.write_bytes(large.read_bytes() + b"x")
        os.utime(large, ns=(stat.st_atime_ns, stat.st_mtime_ns))
    else:
        change_one_byte(large)
        os.utime(large, ns=(stat.st_atime_ns, stat.st_mtime_ns + 1))
    hashed.clear()
    assert fingerprint(model) != first
    assert "big.safetensors" in hashed


def test_remembered_hashes_are_of_the_real_file_not_the_link(model, large, hashed, tmp_path):
    """As in the hub's cache, where snapshots link to blobs."""
    first = fingerprint(model)
    blob = large.rename(tmp_path / "blob")
    large.symlink_to(blob)
    os.utime(blob)
    assert fingerprint(model) == first
    hashed.clear()
    assert fingerprint(model) == first
    assert "blob" not in hashed


@pytest.mark.parametrize("content", ["", "{", "\x00\xff"])
def test_damaged_memory_of_hashes_is_ignored(model, large, hash_cache, content):
    first = fingerprint(model)
    hash_cache.write_text(content, encoding="latin-1")
    assert fingerprint(model) == first


@pytest.mark.parametrize("content", ["[]", "null", "7"])
def test_memory_of_hashes_of_another_shape_is_ignored(model, large, hash_cache, content):
    first = fingerprint(model)
    hash_cache.write_text(content)
    assert fingerprint(model) == first


def test_memory_that_cannot_be_written_costs_time_not_correctness(model, large, monkeypatch):
    first = fingerprint(model)
    (model.parent / "a file").write_text("in the way of the directory")
    monkeypatch.setenv("XDG_CACHE_HOME", str(model.parent / "a file"))
    assert fingerprint(model) == first


# -- directories that are no models --------------------------------------------------------------


def remove(*names: str) -> Callable[[Path], None]:
    def edit(model: Path) -> None:
        for name in names:
            (model / name).unlink()

    return edit


def pickled(model: Path) -> None:
    (model / "model.safetensors").rename(model / "pytorch_model.bin")


@pytest.mark.parametrize(
    ("damage", "says"),
    [
        (remove("config.json"), "no config.json, so this is not a model directory"),
        (remove("model.safetensors"), "no *.safetensors weights"),
        (pickled, "Pickled weights are not loaded; convert them with `model.save_pretrained"),
        (remove("tokenizer.json"), "Save one beside the weights with `tokenizer.save_pretrained"),
    ],
)
def test_incomplete_directory_is_a_user_error_with_a_remedy(model, damage, says):
    damage(model)
    with pytest.raises(UserError) as caught:
        locate(str(model))
    assert str(caught.value).startswith(f"{model}: ") and says in str(caught.value)


@pytest.mark.parametrize(
    "place",
    ["/no/such/place", "./nowhere", "../nowhere", "~/nowhere", "a/b/c", "two words", ""],
)
def test_missing_path_is_a_user_error_and_never_asked_of_the_hub(place, monkeypatch, tmp_path):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr("deltalearn.lm.locate.download", None)
    with pytest.raises(UserError):
        locate(place)


def test_missing_package_data_is_a_user_error():
    with pytest.raises(UserError, match="no such model directory"):
        locate("package://deltalearn.lab/ladder/xxl")
    with pytest.raises(UserError, match="there is no Python package 'nosuch'"):
        locate("package://nosuch/model")


def test_a_file_is_no_model(model):
    with pytest.raises(UserError, match=r"is no GGUF file.*give a model directory"):
        locate(str(model / "config.json"))


@pytest.mark.parametrize("place", ["org/some-model", "gpt2-no-such-model"])
def test_hub_id_without_a_network_is_a_user_error_with_remedies(place, monkeypatch, tmp_path):
    monkeypatch.chdir(tmp_path)
    with pytest.raises(UserError) as caught:
        locate(place)
    text = str(caught.value)
    assert text.startswith(f"{place}: no directory of that name here, and the Hugging Face hub")
    assert "`hf auth login`" in text and "without a network, pass the path" in text
    assert "\n" not in text


@pytest.fixture
def hub(model, monkeypatch) -> list[dict]:
    """A hub that gives the tiny model as commit `abc123`; the calls it got."""
    calls = []

    def snapshot_download(hub_id, **options):
        calls.append({"id": hub_id, **options})
        snapshot = model.parent / "snapshots" / "abc123"
        if not snapshot.exists():
            shutil.copytree(model, snapshot)
        return str(snapshot)

    monkeypatch.setattr("huggingface_hub.snapshot_download", snapshot_download)
    return calls


def test_hub_model_is_identified_by_its_commit(hub, model, monkeypatch):
    monkeypatch.chdir(model.parent)
    found = locate("org/model", "v1")
    assert found.fingerprint == "hub:org/model@abc123"
    assert found.name == "org/model"
    assert hub[0]["revision"] == "v1"


def test_neither_pickles_nor_code_are_asked_of_the_hub(hub, model, monkeypatch):
    monkeypatch.chdir(model.parent)
    locate("org/model")
    patterns = hub[0]["allow_patterns"]
    assert "*.safetensors" in patterns
    assert not [p for p in patterns if p.endswith((".bin", ".py", ".pt", ".pkl", "*"))]


def test_hub_model_without_weights_is_a_user_error(hub, model, monkeypatch):
    pickled(model)
    monkeypatch.chdir(model.parent)
    with pytest.raises(UserError, match="Pickled weights are not loaded"):
        locate("org/model")


def test_a_directory_of_that_name_wins_over_the_hub(hub, model, monkeypatch):
    shutil.copytree(model, model.parent / "org" / "model")
    monkeypatch.chdir(model.parent)
    assert locate("org/model").fingerprint == fingerprint(model)
    assert hub == []


# -- loading -------------------------------------------------------------------------------------


def test_loaded_model_is_as_placed_and_in_evaluation_mode(model):
    loaded = load_model(locate(str(model)), Placement("cpu", "bfloat16"))
    assert str(loaded.dtype) == "torch.bfloat16"
    assert not loaded.training
    assert context_length(loaded) == 96


def test_auto_placement_without_a_gpu(monkeypatch):
    monkeypatch.setattr("torch.cuda.is_available", lambda: False)
    monkeypatch.setattr("torch.backends.mps.is_available", lambda: False)
    assert place() == Placement("cpu", "float32")
    assert place("cpu", "bfloat16") == Placement("cpu", "bfloat16")
    monkeypatch.setattr("torch.cuda.is_available", lambda: True)
    assert place() == Placement("cuda", "bfloat16")
    assert place("cpu") == Placement("cpu", "float32")


def no_template(model: Path) -> None:
    (model / "chat_template.jinja").unlink()


def no_end(model: Path) -> None:
    edit_json(model / "tokenizer_config.json", eos_token=None)


def broken_tokenizer(model: Path) -> None:
    (model / "tokenizer.json").write_text("{")


@pytest.mark.parametrize(
    ("damage", "says"),
    [
        (no_template, "the tokenizer has no chat template, so prompts cannot be rendered. Use an"),
        (no_end, "the tokenizer has no eos_token, so no answer could end"),
        (broken_tokenizer, "the tokenizer does not load"),
    ],
)
def test_unusable_tokenizer_is_a_user_error(model, damage, says):
    damage(model)
    files = locate(str(model))
    with pytest.raises(UserError) as caught:
        load_tokenizer(files)
    assert str(caught.value).startswith(f"{model}: ") and says in str(caught.value)


def unknown_type(model: Path) -> None:
    edit_json(model / "config.json", model_type="nosuch")


def broken_config(model: Path) -> None:
    (model / "config.json").write_text("{")


def not_causal(model: Path) -> None:
    edit_json(model / "config.json", model_type="t5", architectures=["T5ForConditionalGeneration"])


def torn_weights(model: Path) -> None:
    weights = model / "model.safetensors"
    weights.write_bytes(weights.read_bytes()[:1000])


def other_shape(model: Path) -> None:
    edit_json(model / "config.json", intermediate_size=32)


@pytest.mark.parametrize(
    ("damage", "says"),
    [
        (unknown_type, "model type 'nosuch' is unknown"),
        (broken_config, "its config.json cannot be read"),
        (not_causal, "is an encoder-decoder; a causal language model is needed"),
        (torn_weights, "the model does not load"),
        (other_shape, "the model does not load"),
    ],
)
def test_model_that_does_not_load_is_a_user_error(model, damage, says, cpu):
    damage(model)
    with pytest.raises(UserError, match=says):
        load_model(locate(str(model)), cpu)


def test_missing_weights_are_a_user_error(model, cpu):
    weights = load_file(model / "model.safetensors")
    del weights["model.layers.1.mlp.up_proj.weight"]
    save_file(weights, model / "model.safetensors", metadata={"format": "pt"})
    with pytest.raises(UserError):
        load_model(locate(str(model)), cpu)


def test_remote_code_is_never_run(model, cpu, tmp_path):
    """A model that needs its own code is refused, and the code is not even imported."""
    (model / "evil.py").write_text(f"open({str(tmp_path / 'HACKED')!r}, 'w')\n")
    edit_json(
        model / "config.json",
        model_type="evil",
        auto_map={"AutoConfig": "evil.Config", "AutoModelForCausalLM": "evil.Model"},
    )
    edit_json(
        model / "tokenizer_config.json",
        tokenizer_class="Evil",
        auto_map={"AutoTokenizer": ["evil.Tokenizer", None]},
    )
    files = locate(str(model))
    with pytest.raises(UserError):
        load_model(files, cpu)
    with suppress(UserError):
        load_tokenizer(files)
    assert not (tmp_path / "HACKED").exists()


@pytest.mark.parametrize("kind", ["dangling link", "folder"])
def test_odd_entries_of_a_model_directory_are_no_traceback(model, kind):
    if kind == "folder":
        (model / "notes.json").mkdir()
        assert fingerprint(model)
    else:
        (model / "vocab.json").symlink_to(model / "nowhere")
        with pytest.raises(UserError):
            locate(str(model))


def test_revision_of_a_directory_is_a_user_error(model):
    with pytest.raises(UserError, match="revision 'abc' has no effect on a directory"):
        locate(str(model), "abc")


def test_tied_weights_are_not_missing(model, cpu):
    """The file holds the embedding alone; the head is tied to it, not drawn."""
    weights = load_file(model / "model.safetensors")
    del weights["lm_head.weight"]
    save_file(weights, model / "model.safetensors", metadata={"format": "pt"})
    edit_json(model / "config.json", tie_word_embeddings=True)
    load_model(locate(str(model)), cpu)


# -- files that are complete or absent -----------------------------------------------------------


def test_replacing_keeps_the_old_file_if_the_block_fails(tmp_path):
    path = tmp_path / "sub" / "file.txt"
    write_text(path, "old")
    with pytest.raises(RuntimeError), replacing(path) as temporary:
        temporary.write_text("half of the new")
        raise RuntimeError
    assert path.read_text() == "old"
    assert [p.name for p in path.parent.iterdir()] == ["file.txt"]


def test_a_reader_of_the_old_file_is_never_given_half_of_the_new(tmp_path):
    path = tmp_path / "rows.jsonl"
    write_jsonl(path, ["old"])
    with path.open() as reader:
        write_jsonl(path, ["new", "rows"])
        assert reader.read() == '"old"\n'
    assert read_jsonl(path) == ["new", "rows"]


def test_rows_that_cannot_be_written_leave_the_old_file(tmp_path):
    path = tmp_path / "rows.jsonl"
    write_jsonl(path, [{"a": "ü\n"}, 2])
    with pytest.raises(TypeError):
        write_jsonl(path, [1, object()])
    assert read_jsonl(path) == [{"a": "ü\n"}, 2]


def test_json_is_readable_and_ends_with_a_newline(tmp_path):
    write_json(tmp_path / "x.json", {"name": "Größe", "n": [1]})
    text = (tmp_path / "x.json").read_text(encoding="utf-8")
    assert "Größe" in text and text.endswith("}\n")


def test_digest_by_hand(tmp_path):
    """SHA-256 of the canonical text {"a":"ü","b":1}, however the dictionary was made."""
    expected = hashlib.sha256('{"a":"ü","b":1}'.encode()).hexdigest()
    assert digest({"b": 1, "a": "ü"}) == digest({"a": "ü", "b": 1}) == expected
    assert digest([1, 2]) != digest([2, 1])
    (tmp_path / "f").write_text('{"a":"ü","b":1}', encoding="utf-8")
    assert file_digest(tmp_path / "f") == expected
