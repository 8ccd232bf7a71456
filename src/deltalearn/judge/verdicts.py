"""What is compared, who judged it, and what came of it."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import asdict, dataclass, fields

from deltalearn.errors import UserError
from deltalearn.util.files import digest

TIE = 1.5
ERROR, UNREACHED = "error", "unreached"  # how faults begin that are no reply of the judge


@dataclass(frozen=True, slots=True)
class Pair:
    """Two answers to compare: output_1 is the reference's, output_2 the model's."""

    instruction: str
    output_1: str
    output_2: str
    generator_1: str
    generator_2: str
    dataset: str = ""


@dataclass(frozen=True, slots=True)
class JudgeIdentity:
    """Everything that makes a judge the same one; None where a file does not say.

    name: of the evaluator (alpaca_eval's annotator). prompt: SHA-256 of its template. version: of
    the package that the template is from. how: canonical JSON of the settings of a request and of
    how a reply is read.
    """

    name: str
    model: str | None = None
    prompt: str | None = None
    version: str | None = None
    how: str | None = None

    @property
    def shown(self) -> str:
        """The name to print with every number."""
        return f"{self.name} ({self.model})" if self.model else self.name

    @property
    def digest(self) -> str:
        """Identity as 64 hexadecimal digits."""
        return digest(asdict(self))


@dataclass(frozen=True, slots=True)
class Verdict:
    """The outcome of a comparison.

    preference: in [1, 2], the model's share plus 1; None if there is no reply or it could not be
    read (`fault` says why). swapped: whether the model's answer was shown first, None if unknown;
    the preference is always for output_2. asked: whether the judge saw it (equal answers are ties
    unasked). marks: delimiters of the judge's prompt that stand in the texts. reply: what the judge
    wrote; logprobs: of its tokens, a mapping per position.
    """

    preference: float | None
    fault: str | None = None
    swapped: bool | None = None
    asked: bool = True
    marks: tuple[str, ...] = ()
    reply: str | None = None
    logprobs: tuple[Mapping[str, float], ...] | None = None

    @property
    def lasting(self) -> bool:
        """True if the judge has replied; if not, asking it again may help."""
        return not (self.fault or "").startswith((f"{ERROR}: ", f"{UNREACHED}: "))

    @property
    def unreached(self) -> bool:
        """True if the judge never saw the question."""
        return (self.fault or "").startswith(f"{UNREACHED}: ")


@dataclass(frozen=True, slots=True)
class Annotation:
    """A pair, its judge and the verdict."""

    pair: Pair
    judge: JudgeIdentity
    verdict: Verdict

    @property
    def instruction(self) -> str:
        """Its instruction, by which annotations are aligned."""
        return self.pair.instruction

    @property
    def scored(self) -> bool:
        """True if there is a preference."""
        return self.verdict.preference is not None

    @property
    def score(self) -> float:
        """The model's share of the preference, in [0, 1]. ValueError if there is none."""
        if self.verdict.preference is None:
            raise ValueError("an unread reply has no score, not even that of a tie")
        return self.verdict.preference - 1


def one_judge(annotations: Iterable[Annotation]) -> JudgeIdentity:
    """The judge of all annotations. UserError if there are two, or none."""
    judges = list(dict.fromkeys(a.judge for a in annotations))
    if not judges:
        raise UserError("there are no annotations")
    if len(judges) > 1:
        first, other = judges[:2]
        different = [
            f.name for f in fields(first) if getattr(first, f.name) != getattr(other, f.name)
        ]
        raise UserError(
            f"two judges in one table: {first.shown} and {other.shown} (they differ in "
            f"{', '.join(different)}); their win rates cannot be compared: annotate all with one"
        )
    return judges[0]


def clean(text: str) -> str:
    """`text` with half surrogate pairs, which no file or request can hold, as question marks."""
    return text.encode("utf-8", "replace").decode("utf-8")
