"""The Tülu 3 suite as tasks of lm-evaluation-harness.

The YAML files of this folder are the suite: lm_eval runs them alone with this folder as its include
path. Python is for what YAML cannot say: where data is (`sources`, `docs`), the examples of the
prompts (`shots`), scores (`scoring`). `suite` says what each benchmark is, for tables.
"""

from pathlib import Path

INCLUDE_PATH = Path(__file__).parent
