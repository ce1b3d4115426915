"""From text and images to batches: source, cache, packing plan, pipeline. numpy only, never jax."""

DATASETS = {
    "docchat": "jaxft.data.docchat:docchat",
    "docpairs": "jaxft.data.docchat:docpairs",
    "docstrings": "jaxft.data.docstrings:docstrings",
    "digits": "jaxft.data.digits:digits",
    "docquestions": "jaxft.data.docquestions:docquestions",
    "number_words": "jaxft.data.number_words:number_words",
    "pycode": "jaxft.data.pycode:pycode",
    "summaries": "jaxft.data.summaries:summaries",
    "library_choices": "jaxft.data.library_choices:library_choices",
    "tfds": "jaxft.data.tfds:tfds",
    "files": "jaxft.data.files:files",
    "parallel": "jaxft.data.parallel:parallel",
    "images": "jaxft.data.folders:images",
    "prepared": "jaxft.data.prepared:prepared",
}
