"""python -m jaxft.models: the families, their heads, and what of a hub checkpoint is supported, as Markdown.

docs/models.md is what this prints.
"""

from collections.abc import Iterator
from typing import Any

from jaxft.layers.rope import OPTIONS
from jaxft.models import ABSENT, MODELS, NOTES
from jaxft.registry import lookup


def lines() -> Iterator[str]:
    families = {name: lookup(MODELS, name, "model.name") for name in sorted(MODELS)}
    yield "# Model families"
    yield ""
    yield "What `python -m jaxft.models` prints. A checkpoint's family is the `model_type` of its config.json."
    yield ""
    yield "| model_type | kind | heads, and the class of transformers that each is loaded from and opened by |"
    yield "|---|---|---|"
    for name, family in families.items():
        heads = ", ".join(f"{head} (`{family.HF_ARCHITECTURES[head]}`)" for head in family.HF_HEADS)
        yield f"| {name} | {family.KIND} | {heads} |"
    yield ""
    yield "A checkpoint may come with another head, or with none: what is new and what is dropped is said aloud."
    yield ""
    yield "## Supported in part"
    yield ""
    yield "Fields of config.json that change numbers and of which one value is implemented. Another value is refused by"
    yield "name before any weight is read, and so is every field that nobody reads."
    yield ""
    common = set.intersection(*({_text(item) for item in family.HF_FIXED.items()} for family in families.values()))
    yield f"- all families: {', '.join(sorted(common))}"
    for name, family in families.items():
        own = [text for item in family.HF_FIXED.items() if (text := _text(item)) not in common]
        if own:
            yield f"- {name}: {', '.join(own)}"
    yield ""
    yield f"Rotary positions, where a family has them: {', '.join(f'`{kind}`' for kind in OPTIONS)}."
    yield "As in transformers, angles of `dynamic` and `longrope` depend on the longest text of a batch."
    yield ""
    yield "## Refused"
    yield ""
    for name, reason in ABSENT.items():
        yield f"- {name}: {reason}"
    yield ""
    yield "## Opening exports elsewhere"
    yield ""
    for name, note in NOTES.items():
        yield f"- {name}: {note}"


def _text(item: tuple[str, Any]) -> str:
    return f"`{item[0]}={item[1]!r}`"


if __name__ == "__main__":
    print("\n".join(lines()))
