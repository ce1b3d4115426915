"""Computations of attention other than the dense one, and the choice among them; layers.attention calls them."""
