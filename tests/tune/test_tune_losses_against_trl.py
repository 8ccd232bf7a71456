"""Protects the losses against TRL's code: same losses and gradients, and where TRL differs.

TRL's own functions run on given log-probabilities, without a model: DPOTrainer._compute_loss,
CPOTrainer.cpo_loss and ORPOTrainer.odds_ratio_loss, each with a stand-in for the trainer that has
only what the function reads. (Whole trainers with models: test_tune_against_trl.py.)
"""

from __future__ import annotations

from collections import defaultdict
from types import SimpleNamespace

import pytest
import torch
from torch import Tensor

from deltalearn.tune.losses import PREFERENCE_LOSSES

trl = pytest.importorskip("trl")

PROMPT, ANSWER = 3, 12  # tokens of the prompt, and of the longest answer
LENGTHS = torch.tensor([12, 1, 5, 7, 3, 4, 9, 12])  # of chosen answers, then of rejected ones
CPU = SimpleNamespace(
    device=torch.device("cpu"), gather=lambda x: x, gather_for_metrics=lambda x: x
)


@pytest.fixture
def token_logprobs() -> Tensor:
    """Log-probabilities (2B, PROMPT + ANSWER - 1) of each next token, 0 where none is answered."""
    torch.manual_seed(0)
    values = torch.randn(8, PROMPT + ANSWER - 1, dtype=torch.float64).exp().neg()
    return (values * answer_mask()[:, 1:]).requires_grad_()


@pytest.fixture
def references() -> tuple[Tensor, Tensor]:
    torch.manual_seed(1)
    return (-LENGTHS - torch.randn(8, dtype=torch.float64)).chunk(2)


def answer_mask() -> Tensor:
    """(2B, PROMPT + ANSWER), 1 at the tokens of the answer."""
    place = torch.arange(PROMPT + ANSWER)
    return ((place >= PROMPT) & (place < PROMPT + LENGTHS[:, None])).long()


def trl_dpo(token_logprobs: Tensor, references, loss_type: str, **settings) -> tuple[Tensor, dict]:
    """TRL's mean loss and the metrics that it logs."""
    trainer = SimpleNamespace(
        model=SimpleNamespace(training=True), accelerator=CPU, aux_loss_enabled=False,
        ld_alpha=None, precompute_ref_logps=True, f_divergence_type="reverse_kl",
        use_weighting=False, loss_types=[loss_type], loss_weights=[1.0], label_smoothing=0.0,
        _metrics={"train": defaultdict(list)}, _total_train_tokens=0, _tp_size=1,
    )  # fmt: skip
    vars(trainer).update(settings)
    unused = torch.zeros_like(token_logprobs)

    def model(**_):
        return SimpleNamespace(
            log_probs=token_logprobs, entropy=unused, mean_logits=unused, is_top1=unused.bool()
        )

    mask = answer_mask()
    inputs = {
        "input_ids": torch.zeros_like(mask),
        "attention_mask": torch.ones_like(mask),
        "completion_mask": mask,
        "ref_chosen_logps": references[0],
        "ref_rejected_logps": references[1],
    }
    loss = trl.DPOTrainer._compute_loss(trainer, model, inputs, return_outputs=False)
    return loss, trainer._metrics["train"]


def ours(token_logprobs: Tensor, references, method: str, **options) -> tuple[Tensor, Tensor]:
    """Our mean loss and margins."""
    policy = token_logprobs.sum(1).chunk(2)
    losses, margins = PREFERENCE_LOSSES[method](*policy, *references, *LENGTHS.chunk(2), **options)
    return losses.mean(), margins


def assert_same(one: Tensor, other: Tensor, by: Tensor, **tolerance) -> None:
    """Equal losses, and equal gradients by every single token."""
    torch.testing.assert_close(one, other, **tolerance)
    (first,), (second,) = torch.autograd.grad(one, by), torch.autograd.grad(other, by)
    torch.testing.assert_close(first, second, **tolerance)
    assert first.abs().max() > 1e-3, "a gradient of zero would prove nothing"


@pytest.mark.parametrize("scale", [1.0, 5.0])
@pytest.mark.parametrize(
    ("method", "loss_type", "beta"),
    [
        ("dpo_norm", "sigmoid_norm", 5.0),
        ("dpo", "sigmoid", 0.1),
        ("ipo", "ipo", 0.1),
        ("hinge", "hinge", 0.1),
        ("apo_zero", "apo_zero", 0.1),
        ("apo_down", "apo_down", 0.1),
        ("sppo", "sppo_hard", 0.1),
    ],
)
def test_dpo_trainer(token_logprobs, references, method, loss_type, beta, scale):
    theirs, _ = trl_dpo(token_logprobs, references, loss_type, beta=beta * scale)
    loss, _ = ours(token_logprobs, references, method, beta=beta * scale)
    assert_same(loss, theirs, token_logprobs)


@pytest.mark.parametrize("share", [0.0, 0.1, 0.4])
def test_robust(token_logprobs, references, share):
    options = {"beta": 0.3, "label_smoothing": share}
    theirs, _ = trl_dpo(token_logprobs, references, "robust", **options)
    loss, _ = ours(token_logprobs, references, "robust", **options)
    assert_same(loss, theirs, token_logprobs)


@pytest.mark.parametrize(
    ("method", "loss_type"), [("dpo", "sigmoid"), ("dpo_norm", "sigmoid_norm")]
)
def test_trl_ignores_label_smoothing_where_we_do_not(token_logprobs, references, method, loss_type):
    """TRL takes the option, checks its range and leaves it out of these two losses."""
    options = {"beta": 0.5, "label_smoothing": 0.2}
    smoothed, _ = trl_dpo(token_logprobs, references, loss_type, **options)
    plain, _ = trl_dpo(token_logprobs, references, loss_type, beta=0.5)
    assert smoothed.item() == plain.item()
    assert ours(token_logprobs, references, method, **options)[0].item() != pytest.approx(
        plain.item(), rel=1e-3
    )


def test_trl_logs_another_margin_than_its_loss_sees(token_logprobs, references):
    """TRL logs beta x the summed margin for sigmoid_norm too; we log the normalised."""
    _, metrics = trl_dpo(token_logprobs, references, "sigmoid_norm", beta=5.0)
    _, margins = ours(token_logprobs, references, "dpo_norm", beta=5.0)
    _, summed = ours(token_logprobs, references, "dpo", beta=5.0)
    (logged,) = metrics["rewards/margins"]
    assert logged == pytest.approx(5 * summed.mean().item())
    assert logged != pytest.approx(5 * margins.mean().item(), rel=0.5)


def trl_cpo(policy: tuple[Tensor, Tensor], loss_type: str, **settings) -> Tensor:
    cpo = pytest.importorskip("trl.experimental.cpo")
    trainer = SimpleNamespace(accelerator=CPU, loss_type=loss_type, alpha=0.0, **settings)
    return cpo.CPOTrainer.cpo_loss(trainer, *policy)[0].mean()


@pytest.mark.parametrize("gamma", [0.0, 1.0])
def test_simpo(token_logprobs, gamma):
    """TRL's loss for simpo is handed means, and its trainer adds cpo_alpha = 1 times the NLL."""
    means = (token_logprobs.sum(1) / LENGTHS).chunk(2)
    theirs = trl_cpo(means, "simpo", beta=2.0, label_smoothing=0.0, simpo_gamma=gamma)
    loss, _ = ours(token_logprobs, (None, None), "simpo", beta=2.0, gamma=gamma)
    assert_same(loss, theirs, token_logprobs)


def test_label_smoothing_is_that_of_cpo(token_logprobs, references):
    """CPO's loss on log-ratios is DPO's, and TRL does smooth it."""
    logratios = token_logprobs.sum(1) - torch.cat(references)
    theirs = trl_cpo(logratios.chunk(2), "sigmoid", beta=0.5, label_smoothing=0.2)
    loss, _ = ours(token_logprobs, references, "dpo", beta=0.5, label_smoothing=0.2)
    assert_same(loss, theirs, token_logprobs)


def test_orpo(token_logprobs):
    """NLL per token minus the weighted log-sigmoid of TRL, which computes it in float32."""
    orpo = pytest.importorskip("trl.experimental.orpo")
    means = (token_logprobs.sum(1) / LENGTHS).chunk(2)
    trainer = SimpleNamespace(accelerator=CPU, beta=0.4)
    weighted, *_ = orpo.ORPOTrainer.odds_ratio_loss(trainer, *means)
    loss, _ = ours(token_logprobs, (None, None), "orpo", beta=0.4)
    assert_same(loss, (-means[0] - weighted).mean(), token_logprobs, atol=1e-6, rtol=1e-5)


def test_trl_counts_the_prompt_in_the_nll_of_orpo():
    """TRL: "computed over the full prompt and response"; ours is of the answer, as sft is."""
    orpo = pytest.importorskip("trl.experimental.orpo")
    torch.manual_seed(0)
    logits = torch.randn(2, 6, 9)
    ids = torch.randint(9, (2, 6))
    labels = ids.clone()
    labels[:, :3] = -100  # three tokens of prompt, three of answer
    batch = {}
    for side, row in (("chosen", slice(0, 1)), ("rejected", slice(1, 2))):
        batch[f"{side}_input_ids"], batch[f"{side}_labels"] = ids[row], labels[row]
        batch[f"{side}_attention_mask"] = torch.ones_like(ids[row])
    trainer = SimpleNamespace(
        accelerator=CPU, is_encoder_decoder=False, padding_value=0, aux_loss_enabled=False,
        concatenated_inputs=orpo.ORPOTrainer.concatenated_inputs,
        get_batch_logps=orpo.ORPOTrainer.get_batch_logps,
    )  # fmt: skip
    chosen_mean, _, _, _, nll = orpo.ORPOTrainer.concatenated_forward(
        trainer, lambda *_, **__: SimpleNamespace(logits=logits), batch
    )
    logprobs = logits[0, :-1].log_softmax(-1).gather(1, ids[0, 1:, None])[:, 0]
    assert nll.item() == pytest.approx(-logprobs.mean().item())
    assert chosen_mean.item() == pytest.approx(logprobs[2:].mean().item())
    assert nll.item() != pytest.approx(-chosen_mean.item(), rel=1e-2)
