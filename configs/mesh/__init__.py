"""One run for each kind of machine, with the mesh that fits it: take the nearest, and put your model in its place.

`python -m jaxft.plan` tells beforehand what a device would hold, and how fast a step can be.
"""
