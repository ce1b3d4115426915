"""From text and images to batches: source, cache, packing plan, pipeline. numpy only, never jax."""

DATASETS = {
    "docchat": "jaxft.data.docchat:docchat",
    "docstrings": "jaxft.data.docstrings:docstrings",
    "digits": "jaxft.data.digits:digits",
    "pycode": "jaxft.data.pycode:pycode",
    "tfds": "jaxft.data.tfds:tfds",
    "files": "jaxft.data.files:files",
    "images": "jaxft.data.folders:images",
    "prepared": "jaxft.data.prepared:prepared",
}
