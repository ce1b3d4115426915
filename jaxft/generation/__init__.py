"""Texts written by a language model, token by token.

    settings   what is wanted: the hub's generation_config.json under the flags of the command line
    sampling   logits of the next token -> the token
    write      the loop, greedy or sampling: one program for the prompts, one for all tokens after
    beam       the loop that keeps several texts of each prompt and gives the best

A model is anything with `start(params, batch, room)` and `next(params, batch, cache)` (network.Network); what it keeps
of a text is an explicit pytree (layers.cache), which the loops carry.
"""
