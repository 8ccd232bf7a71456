"""Shared fixtures: a tiny random model with a real tokenizer, the lab's ladder, results to compare.

Nothing here, and nothing in a test, may use the network: the hub is switched off before any
library reads its settings.
"""

from __future__ import annotations

import json
import os
import signal
from collections.abc import Callable, Iterable
from importlib import resources
from pathlib import Path
from typing import Any

import hypothesis
import pytest

os.environ["HF_HUB_OFFLINE"] = "1"
os.environ["HF_DATASETS_OFFLINE"] = "1"
os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")
# One thread: the models are tiny, and two threads that wait for each other on a busy machine are
# ten times slower than one.
os.environ.setdefault("OMP_NUM_THREADS", "1")
# A shell starts what it puts in the background without Ctrl-C, and so would be what tests start.
if signal.getsignal(signal.SIGINT) == signal.SIG_IGN:
    signal.signal(signal.SIGINT, signal.default_int_handler)

from helpers.data import find

from deltalearn.records import Prompt, Response

hypothesis.settings.register_profile("any machine", deadline=None)  # its default is 200 ms
hypothesis.settings.load_profile("any machine")

TINY_CONTEXT = 96
TINY_TEXT = [  # what the tiny tokenizer is trained on
    "The quick brown fox jumps over the lazy dog, and the dog does not mind.",
    "Deltas teach: the better of two weak answers, the worse of two weak answers.",
    "user assistant system question answer question answer",
    "Größe, naïve café, 你好世界, Привет, 🙂🚀, a\ttab and\n\na blank line.",
]
TINY_TEMPLATE = (
    "{% for message in messages %}"
    "{{ '<|' + message['role'] + '|>' + message['content'] }}"
    "{% if message['role'] == 'assistant' %}{{ eos_token }}{% endif %}"
    "{% endfor %}"
    "{% if add_generation_prompt %}{{ '<|assistant|>' }}{% endif %}"
)


@pytest.hookimpl(tryfirst=True)  # before fixtures, which may read the data
def pytest_runtest_setup(item: pytest.Item) -> None:
    """Skip what is marked `data` where the data, or one of the named parts, is absent."""
    for mark in item.iter_markers("data"):
        for name in mark.args or [""]:
            find(name)


@pytest.fixture(scope="session")
def lab_ladder() -> Path:
    """The shipped models, prompts and evaluation items of the lab."""
    return Path(str(resources.files("deltalearn.lab"))) / "ladder"


@pytest.fixture(scope="session")
def tiny_tokenizer():
    """Byte-level BPE trained on a few sentences: every string survives a round trip."""
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
    from transformers import PreTrainedTokenizerFast

    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=320,
        special_tokens=["<|end|>", "<|pad|>", "<|system|>", "<|user|>", "<|assistant|>"],
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    tokenizer.train_from_iterator(TINY_TEXT, trainer)
    return PreTrainedTokenizerFast(
        tokenizer_object=tokenizer,
        eos_token="<|end|>",
        pad_token="<|pad|>",
        additional_special_tokens=["<|system|>", "<|user|>", "<|assistant|>"],
        chat_template=TINY_TEMPLATE,
        model_max_length=TINY_CONTEXT,
        clean_up_tokenization_spaces=False,
    )


@pytest.fixture(scope="session")
def tiny_model(tmp_path_factory: pytest.TempPathFactory, tiny_tokenizer) -> Path:
    """Directory of a random 2-layer Llama of width 32; read-only, copy it to change it.

    Its weights are drawn ten times wider than usual, so that its next-token distributions are
    peaked and depend visibly on every earlier token.
    """
    import torch
    from transformers import LlamaConfig, LlamaForCausalLM

    config = LlamaConfig(
        vocab_size=len(tiny_tokenizer),
        hidden_size=32,
        intermediate_size=64,
        num_hidden_layers=2,
        num_attention_heads=4,
        num_key_value_heads=2,
        max_position_embeddings=TINY_CONTEXT,
        tie_word_embeddings=False,
        initializer_range=0.2,
        bos_token_id=None,
        eos_token_id=tiny_tokenizer.eos_token_id,
        pad_token_id=tiny_tokenizer.pad_token_id,
    )
    with torch.random.fork_rng():
        torch.manual_seed(0)
        model = LlamaForCausalLM(config)
    path = tmp_path_factory.mktemp("models") / "tiny"
    model.save_pretrained(path)
    tiny_tokenizer.save_pretrained(path)
    return path


@pytest.fixture(scope="session")
def cpu():
    """Placement on the CPU in float32."""
    from deltalearn.lm.load import Placement

    return Placement("cpu", "float32")


@pytest.fixture(scope="session")
def loaded(cpu) -> Callable[[Path], tuple[Any, Any]]:
    """`loaded(directory)` -> (model, tokenizer), as the pipeline loads them; each only once."""
    from deltalearn.lm.load import load_model, load_tokenizer
    from deltalearn.lm.locate import locate

    known: dict[Path, tuple[Any, Any]] = {}

    def load(directory: Path) -> tuple[Any, Any]:
        if directory not in known:
            files = locate(str(directory))
            known[directory] = load_model(files, cpu), load_tokenizer(files)
        return known[directory]

    return load


@pytest.fixture
def write_lines(tmp_path: Path) -> Callable[..., Path]:
    """`write_lines(rows, name)` writes JSON values (or raw bytes) one a line, as given."""

    def write(rows: Iterable[Any], name: str = "rows.jsonl", end: bytes = b"\n") -> Path:
        path = tmp_path / name
        path.parent.mkdir(parents=True, exist_ok=True)
        lines = [r if isinstance(r, bytes) else json.dumps(r).encode() for r in rows]
        path.write_bytes(b"".join(line + end for line in lines))
        return path

    return write


@pytest.fixture(scope="session")
def user_prompt() -> Callable[..., Prompt]:
    """`user_prompt("text")` -> a Prompt of one user turn."""

    def make(text: str, id: str | None = None) -> Prompt:
        return Prompt(id or f"id of {text}", ({"role": "user", "content": text},))

    return make


@pytest.fixture(scope="session")
def answered() -> Callable[..., Response]:
    """`answered("text")` -> a Response that stopped by itself, one token a character."""

    def make(text: str, key: str = "", finish_reason: str = "stop", **changes: Any) -> Response:
        given = {"token_ids": tuple(map(ord, text)), "prompt_tokens": 3, **changes}
        return Response(key or f"key of {text}", text, finish_reason=finish_reason, **given)

    return make


@pytest.fixture
def two_runs(tmp_path) -> tuple[Path, Path]:
    """7 items that only A answers, 1 that only B answers, of 10."""
    from helpers.compared_runs import ONES, ZEROS, gsm8k

    return gsm8k(tmp_path / "a", ONES), gsm8k(tmp_path / "b", ZEROS)


@pytest.fixture(scope="session")
def suites(tmp_path_factory) -> dict[str, Path]:
    """Whole suites: base, two clearly better seeds, one like base."""
    from helpers.compared_runs import suite

    root = tmp_path_factory.mktemp("suites")
    for i in range(3):
        suite(root / "better" / f"seed-{i}", 0.4 + 0.02 * i, 10 + i)
        suite(root / "base arm" / f"seed-{i}", 0.0, 20 + i)
    return {
        "base": suite(root / "base", 0.0, 1),
        "like": suite(root / "like", 0.02, 2),
        "better": suite(root / "good", 0.4, 3),
        "arm": root / "better",
        "base arm": root / "base arm",
    }
