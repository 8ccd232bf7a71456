"""Protects the loss, its gradients and the pairs format against an independent implementation.

TRL's DPOTrainer reads our Parquet as it is, and on the same batch its loss and every gradient
equal ours to 1e-5, for `dpo_norm` (TRL: sigmoid_norm) and `dpo` (TRL: sigmoid).
"""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from deltalearn.lm.forward import answer_logprobs, make_layout
from deltalearn.lm.layout import Tree
from deltalearn.lm.load import load_model, load_tokenizer, place
from deltalearn.lm.locate import locate
from deltalearn.lm.rows import choose_rows
from deltalearn.pairs import write_pairs
from deltalearn.records import Pair, Response
from deltalearn.tune import PairReader, prepare_examples
from deltalearn.tune.losses import PREFERENCE_LOSSES

ANSWERS = [  # prompt, chosen, rejected: lengths differ between sides and pairs
    ("rev abcd", "dcba", "dcb"),
    ("sort cab", "abc", "acb"),
    ("dup abc", "aabbcc", "abc"),
    ("pal fgh", "fghhgf", "fghgf"),
]
CPU = place("cpu", "float32")


def ladder(name: str):
    return locate(f"package://deltalearn.lab/ladder/{name}")


@pytest.fixture(scope="module")
def pairs_file(tmp_path_factory) -> Path:
    def response(text: str) -> Response:
        return Response(f"key-{text}", text, tuple(range(len(text))), "stop", 8)

    pairs = [
        Pair(p, 0, ({"role": "user", "content": p},), response(c), response(r))
        for p, c, r in ANSWERS
    ]
    path = tmp_path_factory.mktemp("pairs") / "s_over_xs.parquet"
    write_pairs(path, pairs, "s", "xs")
    return path


def trl_trainer(pairs_file: Path, out: Path, **settings):
    datasets = pytest.importorskip("datasets")
    trl = pytest.importorskip("trl")
    data = datasets.load_dataset(
        "parquet", data_files=str(pairs_file), split="train", cache_dir=str(out / "cache")
    )
    config = trl.DPOConfig(
        output_dir=str(out),
        per_device_train_batch_size=len(ANSWERS),
        report_to=[],
        use_cpu=True,
        bf16=False,
        gradient_checkpointing=False,
        **settings,
    )
    return trl.DPOTrainer(
        model=load_model(ladder("m"), CPU),
        ref_model=load_model(ladder("s"), CPU),
        args=config,
        train_dataset=data,
        processing_class=load_tokenizer(ladder("m")),
    )


def our_loss_and_gradients(pairs_file: Path, method: str, beta: float):
    model, reference = load_model(ladder("m"), CPU), load_model(ladder("s"), CPU)
    tokenizer = load_tokenizer(ladder("m"))
    examples, _ = prepare_examples(tokenizer, PairReader(str(pairs_file)), 64)
    trees = [Tree(e.prompt, (e.chosen, e.rejected)) for e in examples]

    def sums(of):  # shared rows: chosen and rejected take turns
        rows = choose_rows(of, trees, "shared")
        layout = make_layout(trees, rows, "cpu")
        return answer_logprobs(of, layout, rows), layout.lengths

    policy, lengths = sums(model)
    with torch.no_grad():
        fixed, _ = sums(reference)
    sides = [*(t[side::2] for t in (policy, fixed) for side in (0, 1))]
    losses, _ = PREFERENCE_LOSSES[method](*sides, lengths[0::2], lengths[1::2], beta=beta)
    loss = losses.mean()
    loss.backward()
    return loss.item(), {n: p.grad.clone() for n, p in model.named_parameters()}


@pytest.mark.parametrize(
    ("method", "trl_name", "beta"), [("dpo_norm", "sigmoid_norm", 5.0), ("dpo", "sigmoid", 0.1)]
)
def test_loss_and_gradients_equal_trl(pairs_file, tmp_path, method, trl_name, beta):
    trainer = trl_trainer(pairs_file, tmp_path, loss_type=[trl_name], beta=beta)
    trainer.model.train()
    batch = next(iter(trainer.get_train_dataloader()))
    theirs = trainer.compute_loss(trainer.model, batch)
    theirs.backward()
    ours, gradients = our_loss_and_gradients(pairs_file, method, beta)
    assert ours == pytest.approx(theirs.item(), abs=1e-5)
    assert abs(ours - 0.6931) > 1e-2, "policy and reference differ, so the loss must not be ln 2"
    for name, parameter in trainer.model.named_parameters():
        torch.testing.assert_close(gradients[name], parameter.grad, atol=1e-5, rtol=1e-5)
    assert max(g.abs().max() for g in gradients.values()) > 1e-2, "gradients are not trivially zero"


def test_trl_trains_on_our_pairs_as_they_are(pairs_file, tmp_path):
    trainer = trl_trainer(
        pairs_file,
        tmp_path,
        loss_type=["sigmoid_norm"],
        beta=5.0,
        max_steps=3,
        learning_rate=1e-3,
        logging_steps=1,
    )
    trainer.train()
    losses = [entry["loss"] for entry in trainer.state.log_history if "loss" in entry]
    assert len(losses) == 3
    assert losses[-1] < losses[0]
