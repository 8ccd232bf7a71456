"""Pages: one HTML file that needs nothing else, made of a template in a package."""

from __future__ import annotations

from typing import Any

from jinja2 import Environment, PackageLoader, StrictUndefined, Template


def page_template(package: str, **options: Any) -> Template:
    """Find the template of a page: what it prints is escaped, what it lacks is an error.

    Args:
        package: Where `template.html.j2` is, with what it includes.
        options: `finalize` of jinja's environment, and `filters` by name.
    """
    filters = options.pop("filters", {})
    environment = Environment(
        loader=PackageLoader(package, "."),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
        **options,
    )
    environment.filters.update(filters)
    return environment.get_template("template.html.j2")
