"""From text to batches: source, token cache, packing plan, pipeline. numpy only, never jax."""

DATASETS = {
    "docstrings": "jaxft.data.docstrings:docstrings",
    "tfds": "jaxft.data.tfds:tfds",
    "files": "jaxft.data.files:files",
}
