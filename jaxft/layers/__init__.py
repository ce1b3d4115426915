"""Layers: few, shared by every family, none knowing another's family.

The letters of dimensions, used in variable names, einsums, parameter axes, hub layouts and sharding rules alike:

    B batch rows   L row length (tokens)   M key length     S segment slots of a packed row
    D model        F feed-forward          V vocabulary     T table rows other than V (positions, token types)
    H heads        G key/value heads       K head size      HK, GK: heads x head size, flattened in kernels
    Q query heads that share one of G
    P pooled width C classes or outputs    N layers         R rank or width of a bottleneck
    E experts      X experts of a token    J pairs of a token and one of its experts, in a row
    Y rows         W columns               I channels of an image (in parameters: of a patch)

Activations carry the compute dtype: an embedding casts once, every later layer follows its input. Parameters stay in
their own dtype; norms, softmax and losses compute in float32.
"""
