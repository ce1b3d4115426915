"""Pages of HTML from a template: no script, one file."""

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any


def page(template: Path, filters: Mapping[str, Callable[..., str]], **values: Any) -> str:
    """The page; whatever text it is given is escaped. Raises jinja2.UndefinedError for a value that is missing."""
    import jinja2

    environment = jinja2.Environment(
        loader=jinja2.FileSystemLoader(template.parent),
        autoescape=True,
        undefined=jinja2.StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    environment.filters.update(filters)
    return environment.get_template(template.name).render(**values)
