"""What `deltalearn ladder` is told; the command line's options are made of these fields."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Literal, TypeVar

from deltalearn.errors import UserError, refuse_idle

Number = TypeVar("Number", int, float)
DType = Literal["auto", "float32", "bfloat16", "float16"]
CHOOSE_ON = 32  # texts; the greedy choice of 4 of 30 layers reads them 114 times
GROUP = 64
LEAST_MEASURED = 2  # texts; one has no interval


@dataclass(frozen=True)
class LadderOptions:
    """Which siblings are made, on what they are chosen and measured, and where."""

    layers_out: Annotated[
        str | None, "Siblings without so many layers, chosen one at a time on --text: 1,2,4."
    ] = None
    drop: Annotated[str | None, "One sibling without these layers, counted from 0: 14,17."] = None
    bits: Annotated[str | None, "Siblings with the matrices rounded to so many bits: 3,2."] = None
    group_size: Annotated[
        int | None, f"Of --bits: weights with a scale of their own. [default: {GROUP}]"
    ] = None
    noise: Annotated[
        str | None, "Siblings with normal noise on the matrices, in their deviations: 0.1."
    ] = None
    seed: Annotated[int | None, "Of --noise. [default: 0]"] = None
    text: Annotated[
        str | None, "Texts to measure on: rows with prompt and answer, or with text alone."
    ] = None
    answer_column: Annotated[str | None, "Of --text. [default: answer]"] = None
    choose_on: Annotated[
        int | None,
        f"Texts of --text, from the first, to choose layers on; the others are measured. "
        f"[default: {CHOOSE_ON}]",
    ] = None
    limit: Annotated[int | None, "Texts to read; default all."] = None
    out: Annotated[Path, "A folder for them, which must be new or empty."] = Path("runs/ladder")
    device: Annotated[str, "Where texts are scored: auto, or a torch device."] = "auto"
    dtype: Annotated[DType, "Precision of scoring; siblings are in the model's own."] = "auto"

    def __post_init__(self) -> None:
        wanted = [self.layers_out, self.drop, self.bits, self.noise]
        if not any(value is not None for value in wanted):
            raise UserError(
                "no sibling is asked for; give --layers-out 1,2,4 with --text FILE, or --drop, "
                "--bits or --noise"
            )
        for name, needed in (
            ("group_size", "bits"), ("seed", "noise"), ("answer_column", "text"), ("limit", "text"),
            ("choose_on", "layers_out"),
        ):  # fmt: skip
            if getattr(self, needed) is None:
                refuse_idle({_flag(name): getattr(self, name)}, f"without {_flag(needed)}")
        if self.layers_out is not None and self.text is None:
            raise UserError(
                "--layers-out needs --text FILE: the layers are chosen by the loss on it; or name "
                "them, --drop 14,17"
            )
        for name in ("choose_on", "limit", "group_size"):
            if (given := getattr(self, name)) is not None and given < 1:
                raise UserError(f"{_flag(name)} {given}: at least 1 is needed")
        _ = self.counts, self.dropped, self.widths, self.noises

    @property
    def counts(self) -> list[int]:
        """Numbers of layers to leave out, each once, the fewest first."""
        return sorted(set(self._numbers("layers_out", int, lambda n: n >= 0, "0 or more")))

    @property
    def dropped(self) -> tuple[int, ...] | None:
        """The layers of --drop in their order, each once; None if it is not given."""
        if self.drop is None:
            return None
        return tuple(sorted(set(self._numbers("drop", int, lambda n: n >= 0, "0 or more"))))

    @property
    def widths(self) -> list[int]:
        """Numbers of bits, the mildest first."""
        found = self._numbers("bits", int, lambda n: 1 <= n <= 8, "between 1 and 8")
        return sorted(set(found), reverse=True)

    @property
    def noises(self) -> list[float]:
        """Sizes of noise, the mildest first."""
        return sorted(set(self._numbers("noise", float, lambda n: 0 < n < 100, "above 0")))

    def _numbers(
        self, name: str, kind: type[Number], fits: Callable[[Number], bool], wanted: str
    ) -> list[Number]:
        given = getattr(self, name)
        if given is None:
            return []
        try:
            found = [kind(part) for part in given.split(",") if part.strip()]
        except ValueError:
            found = []
        if not found or not all(map(fits, found)):
            what = "whole numbers" if kind is int else "numbers"
            raise UserError(f"{_flag(name)} {given!r}: {what} {wanted} with commas are needed")
        return found


@dataclass(frozen=True)
class Sibling:
    """One weaker model that is to be made: by one of the four ways, the others None.

    Attributes:
        name: Of its folder.
        dropped: Layers that are left out, from 0.
        bits: Of a weight.
        group_size: Of `bits`.
        noise: Standard deviations.
        seed: Of `noise`.
    """

    name: str
    dropped: tuple[int, ...] | None = None
    bits: int | None = None
    group_size: int | None = None
    noise: float | None = None
    seed: int | None = None

    def what(self) -> str:
        """Say in words what was done to the model."""
        if self.dropped is not None:
            return f"without {_layers(self.dropped)}" if self.dropped else "without no layer"
        if self.bits is not None:
            return (
                f"with the matrices rounded to the nearest of {2**self.bits} values "
                f"({self.bits} bits) in groups of {self.group_size}, written in full"
            )
        return f"with normal noise of {self.noise:g} standard deviations on the matrices"


def siblings_of(options: LadderOptions, order: tuple[int, ...]) -> list[Sibling]:
    """List the siblings that are asked for.

    Args:
        options: What was asked.
        order: Layers in the order in which they were chosen to be left out.

    Returns:
        Each once, under a name of its own.
    """
    group, seed = options.group_size or GROUP, options.seed or 0
    found = [Sibling(f"without-{n}", tuple(sorted(order[:n]))) for n in options.counts]
    if options.dropped is not None:
        numbers = "-".join(map(str, options.dropped))
        found.append(Sibling(f"without-layers-{numbers}", options.dropped))
    found += [Sibling(f"bits-{n}", bits=n, group_size=group) for n in options.widths]
    found += [Sibling(f"noise-{size:g}", noise=size, seed=seed) for size in options.noises]
    return found


def _layers(numbers: tuple[int, ...]) -> str:
    return f"layer{'s' if len(numbers) > 1 else ''} {', '.join(map(str, numbers))}"


def _flag(name: str) -> str:
    return f"--{name.replace('_', '-')}"
