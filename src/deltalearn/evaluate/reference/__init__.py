"""Questions with one reference answer, and what a model makes of them."""
