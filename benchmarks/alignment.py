"""Would these pairs move a student towards gold answers? Asked of gradients, before any tuning.

    python benchmarks/alignment.py STUDENT --model one=s/without-1 --model four=s/without-4@1.2 \
        --pair one/four --pair self/four --items gsm8k/train.jsonl

Each model answers some prompts (`self` is the student; `@1.2` is a temperature). At the student,
where policy and reference are equal, the gradient of a length-normalised preference loss points
along the difference of two gradients: that of the mean log-likelihood of a token of the chosen
answers less that of the rejected ones. Its cosine with the gradient of the gold answers' mean
log-likelihood on other items is the share of a small step that is spent on them. The second target
is gold answers less the same answers with other numbers: drift alone moves both alike.
"""

from __future__ import annotations

import argparse
import json
import random
import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from scipy import stats
from torch import Tensor, nn

from deltalearn.formats.questions import Item, read_items
from deltalearn.lm.chat import answer_ids, prompt_ids
from deltalearn.lm.decode import decode_within_context
from deltalearn.lm.load import load_model, load_tokenizer, place
from deltalearn.lm.locate import locate
from deltalearn.lm.logprobs import collate, padded_logprobs
from deltalearn.records import Sampling

Row = tuple[list[int], list[int]]  # ids of a prompt and of an answer
SELF = "self"


@dataclass(frozen=True)
class Alignment:
    """A direction of the weights and how it lies to a target's gradient.

    Attributes:
        cosine: Between -1 and 1.
        lo: Of a 95% interval over prompts, with the length of the direction as it is.
        hi: See `lo`.
        sign_share: What a small step along the signs, as Adam's first one, gives the target, in
            what the signs of the target's own gradient would.
    """

    cosine: float
    lo: float
    hi: float
    sign_share: float


def mean_loglik(model: nn.Module, rows: Sequence[Row]) -> Tensor:
    """Mean log-likelihood of a token of each answer, (n,), differentiable, in one forward."""
    batch = collate(rows)
    parts = padded_logprobs(model, batch).split(batch.lengths.tolist())
    return torch.stack([part.mean() for part in parts])


def gradients(model: nn.Module, rows: Sequence[Row]) -> Iterator[Tensor]:
    """Yield the gradient of each row's mean log-likelihood, flat, in float32."""
    for row in rows:
        model.zero_grad(set_to_none=True)
        mean_loglik(model, [row]).sum().backward()
        parts = [torch.zeros_like(p) if p.grad is None else p.grad for p in model.parameters()]
        yield torch.cat([part.flatten() for part in parts]).float()
    model.zero_grad(set_to_none=True)


def mean_gradient(
    model: nn.Module, rows: Sequence[Row], targets: Sequence[Tensor] = ()
) -> tuple[Tensor, np.ndarray]:
    """The mean of the rows' gradients, and the inner product of each with targets of length 1.

    Args:
        model: In evaluation mode.
        rows: Ids of each.
        targets: Flat gradients.

    Returns:
        Flat, and (n, targets).
    """
    total, products = None, []
    units = [target / target.norm() for target in targets]
    for found in gradients(model, rows):
        total = found if total is None else total.add_(found)
        products.append([(found @ unit).item() for unit in units])
    assert total is not None  # of one row at least
    return total / len(rows), np.array(products)


def alignment(direction: Tensor, target: Tensor, by_prompt: np.ndarray) -> Alignment:
    """Compare a direction with a target's gradient.

    Args:
        direction: Flat: the mean over prompts.
        target: Flat.
        by_prompt: (n,) derivative along the target's unit vector of each prompt's part.
    """
    length = direction.norm().item()
    cosine = (direction @ target).item() / (length * target.norm().item())
    reach = stats.t.ppf(0.975, len(by_prompt) - 1) * stats.sem(by_prompt) / length
    share = (target @ direction.sign()).item() / target.abs().sum().item()
    return Alignment(cosine, cosine - reach, cosine + reach, share)


def with_other_numbers(text: str, seed: int) -> str:
    """The same text in which every number of digits is another one of as many digits."""
    rng = random.Random(seed)

    def other(match: re.Match[str]) -> str:
        digits = match.group()
        least = 10 ** (len(digits) - 1) if len(digits) > 1 else 0
        choices = set(range(least, min(10 ** len(digits), least + 5000))) - {int(digits)}
        return str(rng.choice(sorted(choices)))

    return re.sub(r"\d+", other, text)


def answer(place_: str, items: Sequence[Item], max_tokens: int, dtype: str) -> list[Row]:
    """Let a model (`PATH` or `PATH@temperature`) answer items; rows of ids."""
    path, _, heat = place_.partition("@")
    files, sampling = locate(path), Sampling(float(heat or 0), 1.0, max_tokens)
    model, tokenizer = load_model(files, place("cpu", dtype)), load_tokenizer(files)
    prompts = prompt_ids(tokenizer, [item.messages for item in items])
    seeds = list(range(len(items)))
    found = decode_within_context(model, tokenizer, prompts, sampling, seeds)
    end = tokenizer.eos_token_id
    return [
        (prompt, [*one.ids, *([end] if one.ended or not one.ids else [])])
        for prompt, one in zip(prompts, found, strict=True)
        if one is not None
    ]


def main() -> None:
    """Answer, take gradients, print a table and a last line of JSON."""
    given = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    given.add_argument("student")
    given.add_argument("--model", action="append", default=[], metavar="NAME=PATH[@TEMPERATURE]")
    given.add_argument("--pair", action="append", required=True, metavar="CHOSEN/REJECTED")
    given.add_argument("--items", required=True, help="questions with gold answers")
    given.add_argument("--prompts", type=int, default=20)
    given.add_argument("--gold", type=int, default=16)
    given.add_argument("--max-tokens", type=int, default=96)
    given.add_argument("--dtype", default="bfloat16", help="of answering")
    given.add_argument("--keep", type=Path, help="a file of answers, which are read from it again")
    given.add_argument("--precision", default="float32", help="of gradients")
    options = given.parse_args()
    models = dict(one.split("=", 1) for one in options.model) | {SELF: options.student}
    pairs = [tuple(pair.split("/")) for pair in options.pair]
    named = list(dict.fromkeys(name for pair in pairs for name in pair))
    items = read_items(options.items, limit=options.prompts + options.gold)
    asked, gold = items[: options.prompts], items[options.prompts :]
    kept = {}
    if options.keep and options.keep.exists():
        kept = json.loads(options.keep.read_text())
    for name in named:
        if name not in kept:
            kept[name] = answer(models[name], asked, options.max_tokens, options.dtype)
            print(f"{name}: answered", flush=True)
            if options.keep:
                options.keep.write_text(json.dumps(kept))
    result = measure(options.student, {n: kept[n] for n in named}, pairs, gold, options.precision)
    print(json.dumps(result))


def measure(
    student: str,
    answers: dict[str, list[Row]],
    pairs: Sequence[tuple[str, str]],
    gold: Sequence[Item],
    precision: str = "float32",
) -> dict:
    """Print the table of all pairings; the same as a dictionary."""
    files = locate(student)
    model, tokenizer = load_model(files, place("cpu", precision)), load_tokenizer(files)
    prompts = prompt_ids(tokenizer, [item.messages for item in gold])
    wrong = [with_other_numbers(item.answer, i) for i, item in enumerate(gold)]
    right_rows, wrong_rows = (
        list(zip(prompts, answer_ids(tokenizer, texts, [True] * len(gold)), strict=True))
        for texts in ([item.answer for item in gold], wrong)
    )
    targets = {"gold": mean_gradient(model, right_rows)[0]}
    targets["right over wrong"] = targets["gold"] - mean_gradient(model, wrong_rows)[0]
    gold_alone, contrast = targets.values()
    between = (gold_alone @ contrast / (gold_alone.norm() * contrast.norm())).item()
    table: dict = {"logliks": {}, "pairs": {}, "between targets": between}
    print(f"cosine of {' with '.join(targets)}: {between:+.3f}", flush=True)
    found, slopes = {}, {}
    for name, rows in answers.items():
        flat, slopes[name] = mean_gradient(model, rows, list(targets.values()))
        found[name] = flat.bfloat16()
        with torch.no_grad():
            likelihood = torch.cat([mean_loglik(model, [row]) for row in rows]).mean().item()
        table["logliks"][name] = likelihood
        print(f"{name}: the student gives its answers {likelihood:.3f} a token", flush=True)
    for chosen, rejected in pairs:
        direction = found[chosen].float() - found[rejected].float()
        by_prompt = slopes[chosen] - slopes[rejected]
        entry = {}
        for i, (target, flat) in enumerate(targets.items()):
            entry[target] = vars(alignment(direction, flat, by_prompt[:, i]))
        table["pairs"][f"{chosen}/{rejected}"] = entry
        shown = "   ".join(
            f"{target} {e['cosine']:+.3f} [{e['lo']:+.3f}, {e['hi']:+.3f}], "
            f"by signs {e['sign_share']:+.3f}"
            for target, e in entry.items()
        )
        print(f"{chosen} over {rejected}: {shown}", flush=True)
    return table


if __name__ == "__main__":
    main()
