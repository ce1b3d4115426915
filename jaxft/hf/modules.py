"""What transformers 5 calls the modules of a network where its files say otherwise: `peft` goes by the modules."""

import re

# model_type -> (regex over names in its files, what stands there instead), applied one after the other.
RENAMED = {
    "vit": (
        (r"vit\.encoder\.layer\.", "vit.layers."),
        (r"\.attention\.attention\.query\b", ".attention.q_proj"),
        (r"\.attention\.attention\.key\b", ".attention.k_proj"),
        (r"\.attention\.attention\.value\b", ".attention.v_proj"),
        (r"\.attention\.output\.dense\b", ".attention.o_proj"),
        (r"\.intermediate\.dense\b", ".mlp.fc1"),
        (r"\.output\.dense\b", ".mlp.fc2"),
    ),
}


def named(model_type: str, name: str) -> str:
    """A tensor's or module's name, which may be the newer one already."""
    for pattern, new in RENAMED.get(model_type, ()):
        name = re.sub(pattern, new, name)
    return name
