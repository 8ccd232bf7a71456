"""From a recipe to work in a run directory: one module for each stage."""
