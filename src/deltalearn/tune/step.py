"""One optimiser step's losses: some pairs in, a scalar to differentiate and metrics out."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from deltalearn.lm.forward import RowLayout, answer_logprobs, make_layout
from deltalearn.lm.layout import Tree
from deltalearn.lm.transfer import send
from deltalearn.recipe import TuneSpec
from deltalearn.tune.batching import Lengths
from deltalearn.tune.dataset import Examples
from deltalearn.tune.losses import bind_loss


@dataclass(frozen=True)
class Batch:
    """The pairs of one step, over all ranks, and the weight of each.

    Attributes:
        indices: Pairs of the step.
        answer_tokens: Tokens of their chosen answers, the denominator of sft.
    """

    indices: Sequence[int]
    answer_tokens: int

    @property
    def weight(self) -> float:
        """Weight of a pair: the same for all, whatever the split."""
        return 1 / len(self.indices)


@dataclass
class Objective:
    """The loss of pairs of `examples` under a policy.

    references: summed reference log-probabilities of (chosen, rejected), each (examples,) float32
    on the CPU, or None for methods without a reference.
    """

    examples: Examples
    references: tuple[Tensor, Tensor] | None
    settings: TuneSpec
    rows: RowLayout
    device: torch.device

    def batch(self, indices: Sequence[int]) -> Batch:
        """The step over the pairs `indices`."""
        return Batch(indices, sum(int(self.examples.chosen_lengths[i]) for i in indices))

    def lengths(self, indices: Sequence[int]) -> list[Lengths]:
        """Look up the lengths of pairs, for the planner."""
        sizes = self.examples
        return [
            (
                int(sizes.prompt_lengths[i]),
                (int(sizes.chosen_lengths[i]),)
                if self.settings.method == "sft"
                else (int(sizes.chosen_lengths[i]), int(sizes.rejected_lengths[i])),
            )
            for i in indices
        ]

    def micro(
        self, policy: nn.Module, places: Sequence[int], batch: Batch
    ) -> tuple[Tensor, dict[str, Tensor], int]:
        """Compute loss and metrics of some pairs of a step in one forward.

        They are sums over these pairs, weighted so that the micro-batches of a step add up to the
        step's means.

        Args:
            policy: The student, wrapped or sharded.
            places: The pairs, as indices into `batch.indices`. None at all: a forward of weight
                zero, for ranks in lockstep.
            batch: The step.

        Returns:
            (loss, metrics, computed tokens).
        """
        weight = batch.weight if places else 0.0
        indices = [batch.indices[p] for p in places] or [self._filler(batch)]
        pairs = [self.examples[i] for i in indices]
        sft = self.settings.method == "sft"
        trees = [Tree(p.prompt, (p.chosen,) if sft else (p.chosen, p.rejected)) for p in pairs]
        layout = make_layout(trees, self.rows, self.device)
        sums = answer_logprobs(policy, layout, self.rows)
        if sft:
            share = 1 / batch.answer_tokens if places else 0.0
            loss, metrics = self._sft(sums, layout.lengths, weight, share)
        else:
            loss, metrics = self._preference(sums, layout.lengths, indices, weight)
        return loss, metrics, layout.input_ids.numel()

    def _filler(self, batch: Batch) -> int:
        """The cheapest pair: it stands in where a rank has none left, and weighs nothing."""
        lengths = self.lengths(batch.indices)
        return min(zip(lengths, batch.indices, strict=True), key=lambda x: (sum(x[0][1]), x[1]))[1]

    def _sft(
        self, sums: Tensor, lengths: Tensor, weight: float, share: float
    ) -> tuple[Tensor, dict[str, Tensor]]:
        """Negative log-likelihood of chosen answers per token of the whole step."""
        loss = -sums.sum() * share
        return loss, {
            "loss": loss.detach(),
            "chosen_length": lengths.to(sums.dtype).sum() * weight,
        }

    def _preference(
        self, sums: Tensor, lengths: Tensor, indices: Sequence[int], weight: float
    ) -> tuple[Tensor, dict[str, Tensor]]:
        chosen, rejected = sums[0::2], sums[1::2]
        chosen_lengths, rejected_lengths = lengths[0::2], lengths[1::2]
        reference_chosen = reference_rejected = None
        if self.references is not None:
            reference_chosen, reference_rejected = (
                send(r[list(indices)], sums.device) for r in self.references
            )
        losses, margins = bind_loss(self.settings)(
            chosen,
            rejected,
            reference_chosen,
            reference_rejected,
            chosen_lengths,
            rejected_lengths,
        )
        # simpo's margin is beyond its target, so its accuracy is the share that reached it.
        per_pair = {"loss": losses, "margin": margins, "accuracy": (margins > 0).float()}
        total = losses
        if self.settings.nll_coef:
            nll = -chosen / chosen_lengths
            total = losses + self.settings.nll_coef * nll
            per_pair["nll"] = nll
        if reference_chosen is not None and reference_rejected is not None:
            # per token: how far each side has moved from the reference
            moved = (chosen - reference_chosen) - (rejected - reference_rejected)
            per_pair["summed_margin"] = moved  # whatever the loss normalises
            per_pair["chosen_logratio"] = (chosen - reference_chosen) / chosen_lengths
            per_pair["rejected_logratio"] = (rejected - reference_rejected) / rejected_lengths
        else:
            per_pair["chosen_logprob"] = chosen / chosen_lengths
            per_pair["rejected_logprob"] = rejected / rejected_lengths
        per_pair["chosen_length"] = chosen_lengths.float()
        per_pair["rejected_length"] = rejected_lengths.float()
        metrics = {name: value.detach().sum() * weight for name, value in per_pair.items()}
        return total.sum() * weight, metrics
