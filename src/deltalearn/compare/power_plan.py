"""What the suite can see before anything is run: the minimum detectable effects of its sizes."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any

from deltalearn.errors import UserError
from deltalearn.evaluate.tulu3.suite import ALL, ELEVEN
from deltalearn.stats import power
from deltalearn.util.terminal import Column, Grid, console
from deltalearn.util.text_format import count

# As many items of one stratum are as precise as the macro average: K^2 / sum_k (1 / n_k), of the
# sizes of 57 subjects (100 to 1,534 questions) and 7 subjects (474 to 1,187 problems).
EFFECTIVE = {"mmlu_mc": 9528.2, "mmlu_cot": 9528.2, "math": 4463.2}
TWINS = ("humaneval", "humanevalplus")


@dataclass(frozen=True)
class Plan:
    """sd: of the per-item differences, one for all benchmarks; effect: wanted, in points."""

    sd: float
    effect: float

    @staticmethod
    def of(discordance: float | None, sd: float | None, effect: float) -> Plan:
        """From one of the two. UserError if they are no such numbers, or neither or both given."""
        if discordance is not None and sd is None:
            if not 0 < discordance <= 1:
                raise UserError(f"--discordance {discordance}: a share above 0, at most 1")
            sd = math.sqrt(discordance)  # of 0/1 scores: the largest it can be, without an effect
        elif sd is None or discordance is not None:
            raise UserError(
                "--plan needs either --discordance (the share of items on which two models "
                "differ, e.g. 0.16) or --sd (the deviation of item differences, e.g. 0.40)"
            )
        elif not 0 < sd <= 1:
            raise UserError(f"--sd {sd}: differences of scores in [0, 1] have one in (0, 1]")
        if not 0 < effect <= 100:
            raise UserError(f"--effect {effect}: points, above 0 and at most 100")
        return Plan(sd, effect)

    def rows(self) -> list[dict[str, Any]]:
        """One per benchmark: n, detectable (a fraction), the same for the macro average."""
        return [
            {
                "name": b.name,
                "title": b.title,
                "n": b.full,
                "aggregation": b.aggregation,
                "detectable": float(power.detectable(self.sd, b.full)),
                "detectable_macro": float(power.detectable(self.sd, EFFECTIVE[b.name]))
                if b.name in EFFECTIVE
                else None,
            }
            for b in ALL
        ]

    def average_se(self, twins: float = 0.0) -> float:
        """Standard error of the 11-average: sqrt(sum of sd^2 / n) / 11.

        twins: correlation of the differences of HumanEval and HumanEval+, which have the same
        problems; at 0 they count as two samples, which they are not.
        """
        sizes = [b.full for b in ALL if b.name in ELEVEN or b.name == "mmlu_cot"]
        both = [b.full for b in ALL if b.name in TWINS]
        shared = 2 * twins / math.sqrt(both[0] * both[1])
        return self.sd * math.sqrt(sum(1 / n for n in sizes) + shared) / len(sizes)

    @property
    def wanted(self) -> str:
        """The wanted effect as text, `1 point`."""
        return f"{self.effect:g} point{'' if self.effect == 1 else 's'}"

    @property
    def needed(self) -> int:
        """Items with which `effect` is detectable."""
        return power.needed(self.sd, self.effect / 100)

    def as_json(self) -> dict[str, Any]:
        """One JSON value; effects are fractions."""
        averages = {
            name: {"se": se, "detectable": power.multiple() * se}
            for name, se in (
                ("independent", self.average_se()),
                ("same_problems", self.average_se(twins=1.0)),
            )
        }
        return {
            "sd": self.sd,
            "alpha": power.ALPHA,
            "power": power.POWER,
            "benchmarks": self.rows(),
            "average": averages,
            "effect": self.effect / 100,
            "items_needed": self.needed,
        }


def print_plan(plan: Plan) -> None:
    """The table, and what it means for the wanted effect."""
    terminal = console()
    heads = ("n", "detectable, points", f"sees {plan.wanted}")
    remarks = Column("remarks", number=False, keep=1, fold=24)
    table = Grid([Column("", number=False), *map(Column, heads), remarks], elsewhere="--json")
    for row in plan.rows():
        shown = row["detectable_macro"] or row["detectable"]
        note = ""
        if row["detectable_macro"]:
            note = f"as a macro average {100 * row['detectable_macro']:.2f}"
        if row["name"] == "drop":
            note = "more: questions share passages"
        table.row(
            row["title"],
            count(row["n"]),
            f"{100 * row['detectable']:.2f}",
            "yes" if 100 * shown <= plan.effect else "no",
            note,
        )
    table.rule()
    low, high = plan.average_se(), plan.average_se(twins=1.0)
    least, most = (100 * power.multiple() * se for se in (low, high))
    table.row(
        "11-average",
        "",
        f"{least:.2f}",
        "yes" if most <= plan.effect else "no",
        f"up to {most:.2f}: HumanEval and HumanEval+ share their problems",
    )
    table.show(terminal)
    terminal.print(
        f"Minimum detectable effect (5% two-sided, 80% power), full splits, deviation of item "
        f"differences {plan.sd:.3g}; standard error of the 11-average {100 * low:.2f} to "
        f"{100 * high:.2f} points. To see {plan.wanted} a benchmark needs "
        f"{count(plan.needed)} items. Measure the deviation: `deltalearn compare` prints what was "
        "detectable with the real one. Training seeds come on top."
    )
