"""deltalearn: prompts and two weak models in, a stronger student with evidence out."""

from deltalearn import api as api  # light: it imports what a function needs when it is called

__version__ = "0.1.0"
