"""Model x questions -> one score per item; arms compared in pairs, with intervals."""

from deltalearn.evaluate.items import Item, read_items
from deltalearn.evaluate.score import score_model
from deltalearn.evaluate.stats import Bootstrap, Interval

__all__ = ["Bootstrap", "Interval", "Item", "read_items", "score_model"]
