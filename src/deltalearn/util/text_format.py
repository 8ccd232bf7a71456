"""How the report writes text it did not make, numbers, and what an interval allows one to say."""

from __future__ import annotations

import difflib
import math
import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any

NEAR = 0.6  # how alike what was meant and what was written are, at least
GAIN, LOSS, NONE = "gain", "loss", "no difference shown"
NO_INTERVAL = "no interval"

# What a reader would not see, or what would rearrange the text around it: control characters but
# tab and newline, zero-width and bidirectional controls, tags, surrogates, non-characters.
UNSEEN = re.compile(
    "[\x00-\x08\x0b-\x1f\x7f-\x9f\xad\u061c\u180e\u200b\u200e\u200f\u2028-\u202e\u2060-\u206f"
    "\ufeff\ufff9-\ufffb\ufdd0-\ufdef\ufffe\uffff\ud800-\udfff\U000e0000-\U000e007f]"
)


def visible(text: str) -> str:
    """`text` with every unseen character shown as a sign of its own; tab and newline stay."""
    return UNSEEN.sub(_sign, text)


def one_line(text: str, limit: int | None = None) -> str:
    """Write a text on one line, unseen characters shown, for names and figures.

    Args:
        text: Any text.
        limit: Most characters; a longer text is cut with an ellipsis. None for no limit.

    Returns:
        One line.
    """
    line = visible(text).replace("\n", "␊").replace("\t", "␉")
    return line if limit is None or len(line) <= limit else line[: limit - 1] + "…"


def _sign(match: re.Match[str]) -> str:
    code = ord(match.group())
    if code < 0x20:
        return chr(0x2400 + code)
    return "␡" if code == 0x7F else f"⟨U+{code:04X}⟩"


def signed(value: float, decimals: int) -> str:
    """Write a number with its sign: `+1.2`, `−1.2` (a real minus sign), `0.0` if it rounds to zero.

    Args:
        value: The number.
        decimals: Number of decimals.

    Returns:
        The text.
    """
    text = f"{abs(value):.{decimals}f}"
    if float(text) == 0:
        return text
    return ("+" if value > 0 else "−") + text


def plain(value: float, decimals: int) -> str:
    """Write a number with a real minus sign.

    Args:
        value: The number.
        decimals: Number of decimals.

    Returns:
        The text.
    """
    return signed(value, decimals).removeprefix("+")


WORDS = {  # names of counts whose own words would tell little
    "assumed_ends": "answers taken to have ended",
    "identical_ids": "identical answers",
    "identical_after_cut": "answers identical once cut",
}


def words(name: str) -> str:
    """Write the name of a count, or of the reason for one, as people say it."""
    return WORDS.get(name, name.replace("_", " "))


def did_you_mean(given: str, meant: Mapping[str, str] | Iterable[str], near: float = NEAR) -> str:
    """The end of an error with the nearest of some valid texts; empty if none is near.

    Args:
        given: What was written.
        meant: Valid texts, or what may be written for which of them.
        near: How alike both are at least, from 0 to 1.
    """
    meant = meant if isinstance(meant, Mapping) else {text: text for text in meant}
    known = {_plain_name(name): text for name, text in meant.items()}
    found = difflib.get_close_matches(_plain_name(given), known, n=1, cutoff=near)
    return f"; did you mean {known[found[0]]!r}?" if found else ""


def _plain_name(text: str) -> str:
    return text.lower().replace("-", "_").replace(" ", "_")


def count(value: int) -> str:
    """A whole number with thousands separators."""
    return f"{value:,}"


def plural(number: int, noun: str) -> str:
    """Count things: `1 seed`, `1,200 seeds`.

    Args:
        number: Of things.
        noun: What one of them is called; more of them have an s.
    """
    return f"{count(number)} {noun}{'' if number == 1 else 's'}"


def share(part: float, whole: float) -> str:
    """Write a share as a percentage; a small part never reads as none, nor a large as all.

    Args:
        part: The part.
        whole: All of it.

    Returns:
        The text.
    """
    if not whole:
        return "–"
    percent = 100 * part / whole
    if 0 < percent < 0.1:
        return "<0.1%"
    if 99.9 < percent < 100:
        return ">99.9%"
    return f"{percent:.0f}%" if percent in (0, 100) else f"{percent:.1f}%"


def duration(seconds: float) -> str:
    """`0.2 s`, `41 s`, `3 min 20 s` or `5 h 12 min`."""
    if seconds < 10:
        return f"{seconds:.1f} s"
    minutes, left = divmod(round(seconds), 60)
    if minutes < 1:
        return f"{left} s"
    hours, minutes = divmod(minutes, 60)
    return f"{hours} h {minutes} min" if hours else f"{minutes} min {left} s"


def verdict(difference: dict[str, Any]) -> str:
    """GAIN or LOSS if the interval lies on one side of zero; NONE if not, or if there is none."""
    if difference["lo"] is None:
        return NONE
    if difference["lo"] > 0:
        return GAIN
    return LOSS if difference["hi"] < 0 else NONE


def listing(items: Iterable[str]) -> str:
    """`a`, `a and b` or `a, b and c`; nothing of nothing."""
    found = list(items)
    if not found:
        return ""
    *front, last = found
    return f"{', '.join(front)} and {last}" if front else last


@dataclass(frozen=True)
class Measure:
    """A metric and how its scores and differences are written. Higher is better in all of them."""

    key: str
    label: str
    scale: float  # what a raw score is multiplied by
    suffix: str  # behind a score
    unit: str  # of a difference
    decimals: int

    @property
    def named(self) -> str:
        """The label as it stands in a sentence."""
        return f"the {self.label}" if self.label.startswith("average ") else self.label

    def score(self, value: float) -> str:
        """A score with its unit sign."""
        return plain(value * self.scale, self.decimals) + self.suffix

    def difference(self, value: float) -> str:
        """A signed difference without its unit."""
        return signed(value * self.scale, self.decimals)

    def amount(self, value: float) -> str:
        """An unsigned difference with its unit."""
        return f"{abs(value) * self.scale:.{self.decimals}f} {self.unit}"

    def interval(self, entry: dict[str, Any]) -> str:
        """`[lo, hi]` of a difference."""
        if entry["lo"] is None:
            return NO_INTERVAL
        return f"[{self.difference(entry['lo'])}, {self.difference(entry['hi'])}]"

    def score_interval(self, entry: dict[str, Any]) -> str:
        """`[lo, hi]` of a score."""
        if entry["lo"] is None:
            return NO_INTERVAL
        low, high = (plain(entry[end] * self.scale, self.decimals) for end in ("lo", "hi"))
        return f"[{low}, {high}]"

    def claim(self, entry: dict[str, float]) -> str:
        """State what may be said of a difference from base."""
        words = {
            GAIN: f"gains {self.amount(entry['mean'])}",
            LOSS: f"loses {self.amount(entry['mean'])}",
            NONE: f"{NONE}: {self.difference(entry['mean'])} {self.unit}",
        }
        if entry["lo"] is None:
            return f"{words[NONE]} ({NO_INTERVAL}: too few items, or all differ alike)"
        low, high = self.difference(entry["lo"]), self.difference(entry["hi"])
        return f"{words[verdict(entry)]} (95% interval {low} to {high})"


def measure(key: str, entry: dict[str, Any], differences: Iterable[dict[str, Any]]) -> Measure:
    """Choose how a benchmark's numbers are written: fine enough for its narrowest interval.

    Args:
        key: its name.
        entry: what the summary says of it: title, bounded, unit.
        differences: of it, each with `lo` and `hi`.
    """
    percent = entry.get("bounded", True)
    unit = "points" if percent else entry.get("unit") or "units"
    scale, suffix = (100, "%") if percent else (1, "")
    widths = [scale * (d["hi"] - d["lo"]) for d in differences if d["lo"] is not None]
    finest = min((w for w in widths if w > 1e-6), default=1.0)  # narrower is rounding error
    decimals = max(1 if percent else 3, min(4, -math.floor(math.log10(finest))))
    return Measure(key, entry["title"], scale, suffix, unit, decimals)
