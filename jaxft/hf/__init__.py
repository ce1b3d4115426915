"""Hugging Face folders, in and out: `config.json`, safetensors weights, tokenizer files, model card.

    files      what a folder holds, checked before anything is believed
    layout     "HK D -> D HK": how one tensor on disk becomes one (slice of a) parameter, and back
    load save  weights, streamed: no host ever holds the model
    hub        a name or a folder -> a folder
    tokenizer  text -> ids, on the Rust tokenizer alone
    card       README.md with the measured scores

The one weight format is safetensors. Nothing in this room can run code that came with a model.
"""
