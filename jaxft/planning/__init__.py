"""What a run would need: its step compiled for machines that need not be there, and what the program says of itself.

topology.py     TPU slices by name; machine.py: those, or this machine, with what is known of them
measure.py      a config on a mesh -> the compiled step and its figures
hlo.py          the text of a compiled program, read; traffic.py: what it moves, counted
matmuls.py      FLOPs of the step as it is traced; products.py: dtypes of the compiled step's products
roofline.py     figures and chips -> seconds, and what bounds them
figures.py      all of it as JSON; table.py: for a person
advice.py       what to change where it does not fit
search.py       meshes, remat and batches, tried
"""
