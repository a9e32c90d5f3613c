"""Options that make rendering faster or smaller, applied to a transformer from outside.

The kernels of self attention are in `engine.models.attention`, the parallel layouts in `engine.distributed`.
"""
