"""The day that chat templates take for today, which is a run's and not the clock's.

Templates of Llama 3, Mistral, gpt-oss and others write the date into every prompt. A run that lasts
past midnight, or is resumed on another day, would go on with other prompts than it began with.
"""

from __future__ import annotations

import json
from datetime import date, datetime
from pathlib import Path

CLOCK = "strftime_now"  # the one function by which a template of transformers reads the clock
PLACES = ("*.jinja", "additional_chat_templates/*.jinja", "chat_template.json")
SETTINGS = "tokenizer_config.json"  # where older models have their template
DIRECTIVES = "aAwdbBmyYHIMSpfjUWGuVcxXzZ"  # of strftime
NOT_PADDED = "dmyHIMSj"  # those that are written without a leading zero behind a dash
PERCENT = "\ue000"  # stands for a percent sign of the text while directives are replaced


def today() -> str:
    """The clock's day here, as chat templates would have it: YYYY-MM-DD."""
    return date.today().isoformat()


def reads_clock(directory: Path) -> bool:
    """Tell whether the chat template of a model on disk asks what day it is.

    Args:
        directory: The model's files.
    """
    files = [file for pattern in PLACES for file in directory.glob(pattern)]
    files += [file for file in [directory / SETTINGS] if file.is_file()]
    return any(CLOCK in file.read_text(encoding="utf-8", errors="replace") for file in files)


def on_day(template: str, day: str) -> str:
    """Change a chat template into one that takes `day` for today.

    Args:
        template: Of Jinja.
        day: YYYY-MM-DD; of hours and minutes a template sees the day's beginning.

    Returns:
        The template behind a macro that has the name of the clock; as it is, if it reads none.
    """
    if CLOCK not in template:
        return template
    moment = datetime.fromisoformat(day)
    known = [f"%{letter}" for letter in DIRECTIVES] + [f"%-{letter}" for letter in NOT_PADDED]
    pairs = [("%%", PERCENT), *((name, _written(moment, name)) for name in known), (PERCENT, "%")]
    written = "".join(f".replace({json.dumps(a)}, {json.dumps(b)})" for a, b in pairs)
    macro = f"{{% macro {CLOCK}(format) %}}{{{{ format{written} }}}}{{% endmacro %}}"
    return f"{macro}\n{template}"  # trim_blocks takes this line break, and none of the template's


def _written(moment: datetime, directive: str) -> str:
    if directive[1] == "-":
        return moment.strftime(f"%{directive[2]}").lstrip("0") or "0"
    return moment.strftime(directive)
