"""deltalearn: prompts and two weak models in, a stronger student with evidence out."""

__version__ = "0.1.0"
