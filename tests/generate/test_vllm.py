"""Protects answers of a real vLLM, offline and behind its server: they are those of transformers.

Ids, text and finish reason agree under greedy decoding; a prompt that does not fit, or a worker
that is killed, costs nothing else; and a worker leaves no process behind. Each test that can takes
over a worker that is loaded already, because loading takes vLLM half a minute.

vLLM is found in the Python that DELTALEARN_VLLM_PYTHON names, else in what `make test` has made.
"""

from __future__ import annotations

import contextlib
import json
import os
import random
import re
import shutil
import signal
import socket
import string
import subprocess
import time
from collections import Counter
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from urllib.request import urlopen

import psutil
import pytest
from helpers.cli import deltalearn

from deltalearn.generate.engines.hf import TransformersEngine
from deltalearn.generate.engines.openai_server import ServedEngine
from deltalearn.generate.engines.vllm_offline import VllmEngine, VllmOptions
from deltalearn.generate.stage import generate
from deltalearn.lm.chat import prompt_ids
from deltalearn.lm.load import load_tokenizer
from deltalearn.lm.locate import locate
from deltalearn.openai_api import Endpoint
from deltalearn.records import Prompt, Rendering, Response, Sampling
from deltalearn.responses.requests import RequestPlan, Settings, short_seed
from deltalearn.responses.store import ResponseStore

pytestmark = pytest.mark.slow

MADE = Path(__file__).parents[2] / ".venv-vllm" / "bin" / "python"
CONTEXT = 256
GREEDY = Sampling(temperature=0.0, top_p=1.0, max_tokens=24)
SAMPLED = Sampling(temperature=0.8, top_p=0.9, max_tokens=24)
OPTIONS = {"dtype": "float32", "enforce_eager": True, "max_model_len": CONTEXT, "max_num_seqs": 16}
ENVIRONMENT = {"VLLM_CPU_KVCACHE_SPACE": "1", "VLLM_NO_USAGE_STATS": "1"}
WORDS = ["delta", "learning", "pairs", "two", "weak", "answers", "and", "teach", "a", "student"]
TEMPLATE = (
    "{% for message in messages %}"
    "{{ '<|' + message['role'] + '|>' + message['content'] + eos_token }}"
    "{% endfor %}"
    "{% if add_generation_prompt %}{{ '<|assistant|>' }}{% endif %}"
)


# -- a model, a Python, a worker, a server -------------------------------------------------------


@pytest.fixture(scope="module")
def python() -> Iterator[str]:
    """A Python that has vLLM, and an environment in which vLLM is content with little memory."""
    found = Path(os.environ.get("DELTALEARN_VLLM_PYTHON") or MADE)
    if not found.exists():
        reason = f"no Python with vLLM at {found}; `make {MADE.parts[-3]}/.installed` makes one"
        (pytest.fail if os.environ.get("CI") == "true" else pytest.skip)(reason)
    with pytest.MonkeyPatch.context() as patch:
        for name, value in ENVIRONMENT.items():
            patch.setenv(name, value)
        yield str(found)


@pytest.fixture(scope="module")
def place(tmp_path_factory) -> str:
    """Directory of a random Llama whose next token is clear, so that rounding decides nothing."""
    import torch
    from transformers import LlamaConfig, LlamaForCausalLM

    tokenizer = ascii_tokenizer()
    config = LlamaConfig(
        vocab_size=len(tokenizer),
        hidden_size=128,
        intermediate_size=256,
        num_hidden_layers=2,
        num_attention_heads=2,  # heads of 64: vLLM's attention on CPUs takes few other sizes
        num_key_value_heads=1,
        max_position_embeddings=CONTEXT,
        initializer_range=0.2,
        bos_token_id=None,
        eos_token_id=tokenizer.eos_token_id,
        pad_token_id=tokenizer.pad_token_id,
    )
    with torch.random.fork_rng():
        torch.manual_seed(0)
        model = LlamaForCausalLM(config)
    # No control token but the end is ever likely: within an answer it would be an error.
    unlikely = sorted(set(tokenizer.all_special_ids) - {tokenizer.eos_token_id})
    model.lm_head.weight.data[unlikely] = 0
    path = tmp_path_factory.mktemp("models") / "ascii"
    model.save_pretrained(path)
    tokenizer.save_pretrained(path)
    return str(path)


def ascii_tokenizer():
    """Byte-level, without bytes above 127: whatever a random model writes is valid UTF-8.

    Of other bytes a server and we make different replacement characters.
    """
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
    from transformers import PreTrainedTokenizerFast

    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    roles = ["<|system|>", "<|user|>", "<|assistant|>"]
    alphabet = string.ascii_letters + string.digits + string.punctuation + "\u0120\u010a"
    trainer = trainers.BpeTrainer(
        vocab_size=160,
        special_tokens=["<|end|>", "<|pad|>", *roles],
        initial_alphabet=list(alphabet),
        show_progress=False,
    )
    tokenizer.train_from_iterator([" ".join(WORDS)], trainer)
    return PreTrainedTokenizerFast(
        tokenizer_object=tokenizer,
        eos_token="<|end|>",
        pad_token="<|pad|>",
        additional_special_tokens=roles,
        chat_template=TEMPLATE,
        clean_up_tokenization_spaces=False,
    )


@pytest.fixture(scope="module")
def warm(place, python) -> Iterator[VllmEngine]:
    """An engine whose worker is loaded, unless a test has ended it."""
    engine = VllmEngine(locate(place), GREEDY, VllmOptions(python, OPTIONS))
    yield engine
    engine.close()


@pytest.fixture
def offline(warm, place) -> Callable[[Sampling], VllmEngine]:
    """`offline(sampling)`: an engine with the worker of `warm`, which outlives it."""
    if warm._worker is None:
        warm.start()

    def make(sampling: Sampling = GREEDY) -> VllmEngine:
        engine = VllmEngine(locate(place), sampling, warm.options)
        engine._worker, engine.name = warm._worker, warm.name
        engine.close = lambda: None
        return engine

    return make


@pytest.fixture(scope="module")
def server(place, python, tmp_path_factory) -> Iterator[str]:
    """URL of vLLM's own server with the model."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    command = [python, "-m", "vllm.entrypoints.openai.api_server", "--model", place]
    command += ["--served-model-name", "tiny", "--dtype", "float32", "--enforce-eager"]
    command += ["--max-model-len", str(CONTEXT), "--host", "127.0.0.1", "--port", str(port)]
    log = tmp_path_factory.mktemp("server") / "log.txt"
    with log.open("w") as out:
        process = subprocess.Popen(command, stdout=out, stderr=out, start_new_session=True)
    try:
        for _ in range(300):
            assert process.poll() is None, log.read_text()[-3000:]
            if healthy(port):
                break
            time.sleep(1)
        yield f"http://127.0.0.1:{port}/v1"
    finally:
        process.terminate()
        with contextlib.suppress(subprocess.TimeoutExpired):
            process.wait(20)
        with contextlib.suppress(ProcessLookupError):
            os.killpg(process.pid, signal.SIGKILL)
        process.wait()


def healthy(port: int) -> bool:
    try:
        with urlopen(f"http://127.0.0.1:{port}/health", timeout=5) as reply:
            return reply.status == 200
    except OSError:
        return False


def living(group: int) -> list[psutil.Process]:
    """Processes of a process group, those left out that are dead and not yet waited for."""
    found = []
    for process in psutil.process_iter():
        with contextlib.suppress(psutil.Error, ProcessLookupError):
            if os.getpgid(process.pid) == group and process.status() != psutil.STATUS_ZOMBIE:
                found.append(process)
    return found


# -- what is asked, and the answers of transformers ----------------------------------------------


def conversations(count: int) -> list[Prompt]:
    """Prompts of one turn and of several, half of them behind a system turn, none twice."""
    rng = random.Random(0)

    def said(role: str) -> dict[str, str]:
        return {"role": role, "content": " ".join(rng.choices(WORDS, k=rng.randint(6, 15)))}

    found = []
    for i in range(count):
        system = [said("system")] if i % 2 else []
        turns = [said("assistant" if turn % 2 else "user") for turn in range(1 + 2 * (i % 3))]
        found.append(Prompt(str(i), (*system, *turns)))
    return found


def of_length(place: str, tokens: int) -> Prompt:
    """A prompt of exactly so many tokens, the marks around its text included."""
    prompt = Prompt(f"{tokens} tokens", ({"role": "user", "content": "7" * (tokens - 3)},))
    (ids,) = prompt_ids(load_tokenizer(locate(place)), [prompt.messages])
    assert len(ids) == tokens
    return prompt


@pytest.fixture(scope="module")
def prompts() -> list[Prompt]:
    return conversations(200)


@pytest.fixture(scope="module")
def tight(place) -> list[Prompt]:
    """Prompts around the end of the context: room for 5 tokens, for 1, for none, and far beyond."""
    return [of_length(place, n) for n in (CONTEXT - 5, CONTEXT - 1, CONTEXT, 2 * CONTEXT)]


def requests_of(identity: str, prompts: list[Prompt], sampling=GREEDY, **settings):
    return list(RequestPlan(identity, prompts, Settings(sampling, **settings)))


def answer(store: Path, requests, make) -> dict[str, Response]:
    """Responses by the prompt's name; each request is answered once."""
    with ResponseStore(store) as opened:
        counts = generate(opened, requests, make, title="x")
        assert counts["generated"] == opened.count() == len(requests)
        found = opened.get(r.key for r in requests)
    return {r.prompt.id: found[r.key] for r in requests}


def engines_of(store: Path) -> set[str]:
    with ResponseStore(store, existing=True) as opened:
        return {name for (name,) in opened.db.execute("SELECT DISTINCT engine FROM responses")}


@pytest.fixture(scope="module")
def expected(place, prompts, tight, cpu, tmp_path_factory) -> dict[str, Response]:
    files = locate(place)
    requests = requests_of(files.fingerprint, prompts + tight)
    store = tmp_path_factory.mktemp("transformers") / "responses.sqlite"
    found = answer(store, requests, lambda: TransformersEngine(files, cpu, GREEDY, 4096))
    reasons = Counter(r.finish_reason for r in found.values())
    assert reasons["error"] == 2, "the prompts that leave no room"
    assert min(reasons["stop"], reasons["length"]) > 10, "both ways to end are compared"
    assert len({r.token_ids for r in found.values()}) > 190, "answers differ from prompt to prompt"
    return found


# -- offline -------------------------------------------------------------------------------------


def test_offline_answers_as_transformers_does(place, prompts, tight, expected, offline, tmp_path):
    requests = requests_of(locate(place).fingerprint, prompts + tight)
    found = answer(tmp_path / "r.sqlite", requests, offline)
    assert found == expected
    (name,) = engines_of(tmp_path / "r.sqlite")
    assert name.startswith("vllm ") and name[5].isdigit()


def test_a_seed_gives_the_same_answers_in_another_order(place, prompts, offline, tmp_path):
    def sampled(name: str, seed: int, order: int) -> dict[str, Response]:
        asked = requests_of(
            locate(place).fingerprint, prompts[:50][::order], SAMPLED, samples=2, seed=seed
        )
        with ResponseStore(tmp_path / name) as store:
            generate(store, asked, lambda: offline(SAMPLED), title="x")
            found = store.get(r.key for r in asked)
        assert {r.key: short_seed(r) for r in asked} == {k: r.seed for k, r in found.items()}
        return {(r.prompt.id, r.sample): found[r.key].token_ids for r in asked}

    first = sampled("first", seed=0, order=1)
    assert sampled("again", seed=0, order=-1) == first
    other = sampled("other", seed=1, order=1)
    # A model of random weights writes control tokens, too, and such an answer is none.
    written = {key: ids for key, ids in first.items() if ids}
    assert len(written) > 20
    assert len(set(written.values())) > 0.9 * len(written), "samples of one prompt differ"
    assert sum(other[key] != ids for key, ids in written.items()) > 0.9 * len(written)


DATED = "{{ strftime_now('%d %b %Y') }}|"


def test_a_dated_template_has_the_runs_day(place, prompts, offline, cpu, tmp_path):
    """Ids are made here, on the day of the run: vLLM answers as transformers does, whatever today.

    The worker has the same weights under another template, so it need not be loaded again.
    """
    dated = shutil.copytree(place, tmp_path / "dated")
    template = dated / "chat_template.jinja"
    template.write_text(DATED + template.read_text(), encoding="utf-8")
    files, found = locate(str(dated)), {}
    for day in ("2024-02-09", "2031-07-08"):
        rendering = Rendering(day=day)
        asked = requests_of(files.fingerprint, prompts[:30], day=day)
        transformers = TransformersEngine(files, cpu, GREEDY, 4096, rendering)
        loaded = offline()
        vllm = VllmEngine(files, GREEDY, loaded.options, rendering)
        vllm._worker, vllm.name, vllm.close = loaded._worker, loaded.name, lambda: None
        one = answer(tmp_path / f"{day}.sqlite", asked, lambda engine=transformers: engine)
        found[day] = answer(tmp_path / f"{day} vllm.sqlite", asked, lambda engine=vllm: engine)
        assert found[day] == one
    assert [r.token_ids for r in found["2024-02-09"].values()] != [
        r.token_ids for r in found["2031-07-08"].values()
    ]


def test_killed_twice_everything_is_answered_once(
    place, prompts, expected, warm, tmp_path, monkeypatch
):
    """SIGKILL for the worker, later for a process that vLLM began: it is started again each time.

    What was in flight is asked again, nothing else is, and no process is left.
    """
    if warm._worker is None:
        warm.start()
    said: list[str] = []
    workers: list[int] = []  # process ids, which are those of their groups too
    victims = iter([os.getpgid, largest_child])  # of the first worker, of the second

    def killing(windows, stop, answers=warm.answers) -> Iterator[list[Response]]:
        seen = 0
        for group in answers(windows, stop):
            yield group
            seen += len(group)
            pid = warm._worker._process.pid
            if pid not in workers:
                workers.append(pid)
                victim = next(victims, None)
                assert len(living(pid)) > 1, "or the end of this test would prove nothing"
            if victim and seen >= len(prompts) * len(workers) / 3:
                os.kill(victim(pid), signal.SIGKILL)
                victim = None

    for name, few in {"SENT": 20, "GROUP": 10}.items():  # so that much is left at each kill
        monkeypatch.setattr(f"deltalearn.generate.engines.vllm_offline.{name}", few)
    monkeypatch.setattr(warm, "answers", killing)
    monkeypatch.setattr(warm, "say", said.append)
    requests = requests_of(locate(place).fingerprint, prompts)
    found = answer(tmp_path / "r.sqlite", requests, lambda: warm)
    assert found == {prompt.id: expected[prompt.id] for prompt in prompts}
    assert len(said) == 2 and len(workers) == 3
    assert all(re.search("died with [1-9].* in flight; started again", line) for line in said)
    assert [living(group) for group in workers] == [[], [], []]


def largest_child(pid: int) -> int:
    """Whom the kernel kills when memory runs out."""
    children = psutil.Process(pid).children(recursive=True)
    return max(children, key=lambda child: child.memory_info().rss).pid


def test_the_command_line(place, prompts, expected, python, tmp_path):
    lines = [{"prompt": list(p.messages)} for p in prompts[:20]]
    (tmp_path / "prompts.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    options = {name: value for name, value in OPTIONS.items() if name != "dtype"}
    mark = str(tmp_path)
    result = deltalearn(
        "generate", "--model", f"a={place}", "--prompts", tmp_path / "prompts.jsonl",
        "--engine", "vllm", "--set", f"generate.vllm.python={python}",
        "--set", f"generate.vllm.options={json.dumps(options)}", "--device", "cpu",
        "--dtype", "float32", "--max-tokens", str(GREEDY.max_tokens), "--out", tmp_path / "out",
        MARK=mark,
    )  # fmt: skip
    assert result.returncode == 0, result.stdout + result.stderr
    assert "generated 20" in result.stdout
    with ResponseStore(tmp_path / "out" / "responses.sqlite", existing=True) as store:
        texts = {text for (text,) in store.db.execute("SELECT text FROM responses")}
    assert texts == {expected[p.id].text for p in prompts[:20]}
    assert not marked(mark), "the worker ends with the command"


def marked(mark: str) -> list[psutil.Process]:
    """Processes that were started with this mark in their environment."""
    found = []
    for process in psutil.process_iter():
        with contextlib.suppress(psutil.Error):
            if process.environ().get("MARK") == mark:
                found.append(process)
    return found


# -- behind a server -----------------------------------------------------------------------------


def content(response: Response) -> tuple:
    r = response
    return r.text, r.token_ids, r.finish_reason, r.prompt_tokens


def test_the_server_answers_as_transformers_does(prompts, tight, expected, server, tmp_path):
    requests = requests_of("served:tiny", prompts + tight)
    found = answer(
        tmp_path / "r.sqlite", requests, lambda: ServedEngine(Endpoint(server, "tiny"), GREEDY)
    )
    for prompt in prompts:
        assert content(found[prompt.id]) == content(expected[prompt.id])
    for prompt in tight:
        ours, theirs = found[prompt.id], expected[prompt.id]
        if theirs.fault == "too_long":
            assert (ours.finish_reason, ours.fault) == ("error", "refused"), "HTTP 400"
        else:
            assert content(ours) == content(theirs)
    (name,) = engines_of(tmp_path / "r.sqlite")
    assert name.startswith("openai (vllm ") and name[13].isdigit()


def test_a_limit_beyond_the_context_is_cut_to_it(place, prompts, tight, cpu, server, tmp_path):
    """vLLM refuses it with status 400; the model itself can answer, as it does in transformers."""
    files, beyond = locate(place), replace(GREEDY, max_tokens=2 * CONTEXT)
    asked = prompts[:20] + tight

    def local():
        return TransformersEngine(files, cpu, beyond, 4096)

    ours = requests_of(files.fingerprint, asked, beyond)
    expected = answer(tmp_path / "t.sqlite", ours, local)
    assert {r.finish_reason for r in expected.values()} == {"stop", "length", "error"}
    theirs = requests_of("served:tiny", asked, beyond)
    served = answer(
        tmp_path / "r.sqlite", theirs, lambda: ServedEngine(Endpoint(server, "tiny"), beyond)
    )
    for name, response in expected.items():
        if response.fault == "control":  # which a server leaves out of its text
            continue
        if response.finish_reason == "error":
            assert served[name].fault == "refused"
        else:
            assert content(served[name]) == content(response)
            assert served[name].tries == 2, "refused once"
