"""The Tülu 3 suite as tasks of lm-evaluation-harness: one folder for each benchmark.

A folder holds all that a benchmark is read by: `__init__.py` (where its data is, the worked
examples of its prompt, `BENCHMARK` for tables), the YAML by which lm_eval asks it, and `grader.py`
(pure functions from text to a score, which know nothing of models or prompts, so that a verdict can
be tried in a line; where lm_eval has a copy of the published scorer, it is that). lm_eval runs the
YAML files alone, with this folder as its include path.

Shared: `sources` (rows of local files or of the hub), `items` (one form for all), `examples` (the
proof that they are the published ones), `benchmark` and `grade` (what a benchmark and a verdict
are). `suite` collects the benchmarks and says what counts in the average.
"""

from pathlib import Path

INCLUDE_PATH = Path(__file__).parent
