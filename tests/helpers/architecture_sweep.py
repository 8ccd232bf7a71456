"""Every causal model type of transformers through tuning, LoRA, scoring and answering, tiny.

Run as a script it tries all of them (ten minutes on one core) and writes the table of
docs/tuning.md anew:

    PYTHONPATH=src:tests python tests/helpers/architecture_sweep.py
"""

from __future__ import annotations

import json
import os
import re
import sys
import tempfile
from collections import defaultdict
from collections.abc import Callable
from dataclasses import asdict, dataclass
from pathlib import Path

import torch
from transformers import AutoModelForCausalLM, PreTrainedModel

from deltalearn import api
from deltalearn.errors import UserError
from deltalearn.lm.decode import best_company, decode_within_context
from deltalearn.lm.layout import Tree
from deltalearn.lm.load import Placement, load_model, load_tokenizer
from deltalearn.lm.locate import locate
from deltalearn.lm.rows import choose_rows
from deltalearn.lm.scoring import score_answers, score_batch
from deltalearn.records import Sampling
from helpers.architectures import MODEL_TYPES, tiny_config

DOCS = Path(__file__).parents[2] / "docs" / "tuning.md"
BEGIN, END = "<!-- architectures: begin -->", "<!-- architectures: end -->"
GREEDY = Sampling(temperature=0.0, top_p=1.0, max_tokens=6)
TOLERANCE = 1e-4  # of a mean log-probability per token, float32
CPU = Placement("cpu", "float32")
SETTINGS = ["lr=1e-3", "steps=2", "batch_size=4", "method=dpo", "device=cpu", "dtype=float32"]
REASONS = {  # what is found in a reason, and the words of the table
    "a causal language model is needed": "its text model has no type that can be loaded by itself",
    "no causal language model": "looks ahead (an encoder, unless its config has `is_decoder`)",
    "does not score a text": "its forward wants more than ids",
    "written and not read again": "what is written could not be read again",
    "more than an ordinary one": "attention with sinks, or the like",
    "layers without full attention": "layers without full attention",
    "attention functions": "takes no attention function",
    "differ from padded ones": "positions or masks of its own",
    "fail on this model": "computes in a way of its own",
    "more than its base model": "does more than its base model and head",
}


@dataclass(frozen=True)
class Outcome:
    """How a model type fares; `reason` is why rows are padded or the type is refused."""

    tune: str  # shared, padded, refused, or not built
    lora: str  # yes or refused
    answers: str  # best_company, or refused
    reason: str = ""


def outcome(model_type: str, folder: Path, tokenizer) -> Outcome:
    """Try one type; AssertionError where numbers differ, any other error as it comes.

    A UserError of a stage is its refusal.
    """
    try:
        student = save_tiny(model_type, folder, tokenizer)
    except Exception as error:  # of transformers, which refuses the tiny config or lacks a package
        return Outcome("not built", "", "", f"no tiny config ({type(error).__name__})")
    pairs = _pairs(folder)
    said: list[str] = []

    def tuned(out: str, *more: str) -> str:
        final = api.tune(str(student), pairs, folder / out, [*SETTINGS, *more], say=said.append)
        load_model(locate(str(final)), CPU)
        (rows,) = (line for line in said if line.startswith("layout: "))
        said.clear()
        return rows

    rows = _or_refused(lambda: tuned("full"))
    lora = _or_refused(lambda: tuned("lora", "lora.r=2"))
    scored = _or_refused(lambda: _scores_as_a_plain_loop(student))
    answers = _or_refused(lambda: _answers_as_alone(student))
    if rows.startswith("refused"):
        assert scored.startswith("refused"), scored
        return Outcome("refused", "refused", answers.partition(":")[0], _reason(rows))
    layout = rows.split()[1]
    return Outcome(
        layout,
        "refused" if lora.startswith("refused") else "yes",
        answers.partition(":")[0],
        "" if layout == "shared" else _reason(rows),
    )


def _or_refused(find: Callable[[], str]) -> str:
    try:
        return find()
    except UserError as error:
        assert "\n" not in str(error), error
        return f"refused: {error}"


def _reason(text: str) -> str:
    known = (words for part, words in REASONS.items() if part in text)
    return next(known, re.sub(r"[\d.e+-]+", "#", text)[:80])


def save_tiny(model_type: str, folder: Path, tokenizer) -> Path:
    """A model with wide random weights, so that every earlier token shows in the result."""
    end = tokenizer.eos_token_id
    ids = {"bos_token_id": end, "eos_token_id": end, "pad_token_id": tokenizer.pad_token_id}
    with torch.random.fork_rng():
        torch.manual_seed(0)
        config = tiny_config(model_type, len(tokenizer), **ids)
        model = AutoModelForCausalLM.from_config(config).eval()
        with torch.no_grad():
            for parameter in model.parameters():
                if parameter.ndim > 1:
                    parameter.mul_(3)
    model.generation_config.eos_token_id = end
    path = folder / "student"
    model.save_pretrained(path)
    tokenizer.save_pretrained(path)
    return path


def _pairs(folder: Path) -> Path:
    def turn(role: str, text: str) -> list[dict[str, str]]:
        return [{"role": role, "content": text}]

    rows = [
        {
            "prompt": turn("user", "the fox " + "jumps " * (i % 3)),
            "chosen": turn("assistant", f"dog {i}" * (1 + i % 2)),
            "rejected": turn("assistant", f"wizards {i}"),
        }
        for i in range(4)
    ]
    path = folder / "pairs.jsonl"
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return path


def _draw(*sizes: int) -> list[list[int]]:
    generator = torch.Generator().manual_seed(1)
    return [torch.randint(5, 300, (n,), generator=generator).tolist() for n in sizes]


def _scores_as_a_plain_loop(student: Path) -> str:
    """Every layout that the model takes gives what one row at a time gives, per token."""
    model = load_model(locate(str(student)), CPU)
    shared, *texts = _draw(9, 5, 8, 14, 3, 2, 11)
    rows = [(shared, texts[0]), (shared, texts[1]), (texts[2], texts[3]), (texts[4], texts[5])]
    found = dict(score_answers(model, rows))
    plain = load_model(locate(str(student)), CPU)
    expected = [_plain(plain, prompt, answer) for prompt, answer in rows]
    for i, (_, answer) in enumerate(rows):
        assert abs(found[i] - expected[i]) / len(answer) < TOLERANCE, (found, expected)
    trees = [Tree(prompt, (answer,)) for prompt, answer in rows]
    if choose_rows(model, trees).layout == "shared":
        packed = choose_rows(model, trees, "packed")
        for (value,), own, tree in zip(
            score_batch(model, trees, packed, "cpu"), expected, trees, strict=True
        ):
            assert abs(value - own) / len(tree.answers[0]) < TOLERANCE, "packed"
    return "yes"


@torch.no_grad()
def _plain(model: PreTrainedModel, prompt: list[int], answer: list[int]) -> float:
    logits = model(input_ids=torch.tensor([prompt + answer]), use_cache=False).logits[0]
    places = range(len(prompt) - 1, len(prompt) + len(answer) - 1)
    logprobs = logits.double().log_softmax(-1)
    return sum(logprobs[at, token].item() for at, token in zip(places, answer, strict=True))


def _answers_as_alone(student: Path) -> str:
    files = locate(str(student))
    model, tokenizer = load_model(files, CPU), load_tokenizer(files)
    prompts = _draw(12, 3, 7, 7)
    together = decode_within_context(model, tokenizer, prompts, GREEDY)
    alone = [decode_within_context(model, tokenizer, [p], GREEDY)[0] for p in prompts]
    assert together == alone
    return best_company(model)


# -- the table -------------------------------------------------------------------------------


def table(outcomes: dict[str, Outcome]) -> str:
    """The outcomes as a table in Markdown, types that fare alike in one row."""
    alike: dict[tuple[str, ...], list[str]] = defaultdict(list)
    for name, found in sorted(outcomes.items()):
        alike[found.tune, found.reason, found.lora, found.answers].append(name)
    order = ["shared", "padded", "refused", "not built"]
    lines = [
        "| rows | because | LoRA | a batch of prompts | model types |",
        "|---|---|---|---|---|",
    ]
    for key in sorted(alike, key=lambda k: (order.index(k[0]), -len(alike[k]))):
        names = ", ".join(f"`{name}`" for name in alike[key])
        lines.append("| " + " | ".join(key) + f" | {names} |")
    return "\n".join(lines)


def read_table(text: str) -> dict[str, Outcome]:
    """Read the outcomes from the page."""
    inside = text.partition(BEGIN)[2].partition(END)[0]
    found = {}
    for line in inside.strip().splitlines()[2:]:
        tune, reason, lora, answers, names = (cell.strip() for cell in line.strip("|").split("|"))
        for name in re.findall(r"`([^`]+)`", names):
            found[name] = Outcome(tune, lora, answers, reason)
    return found


def main(names: list[str]) -> None:
    """Try the types and put them into the page's table."""
    from conftest import tiny_tokenizer

    tokenizer = tiny_tokenizer.__wrapped__()
    tokenizer.model_max_length = 512
    text = DOCS.read_text()
    outcomes = read_table(text)
    for name in names or MODEL_TYPES:
        with tempfile.TemporaryDirectory() as folder:
            outcomes[name] = outcome(name, Path(folder), tokenizer)
        print(name, asdict(outcomes[name]), flush=True)
        head, _, rest = DOCS.read_text().partition(BEGIN)
        tail = rest.partition(END)[2]
        DOCS.write_text(f"{head}{BEGIN}\n{table(outcomes)}\n{END}{tail}")


if __name__ == "__main__":
    os.environ["HF_HUB_OFFLINE"] = "1"
    main(sys.argv[1:])
