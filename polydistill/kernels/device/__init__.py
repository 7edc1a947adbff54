"""The kernels' own source: Triton code that runs on a GPU, or in Triton's interpreter (``TRITON_INTERPRET=1``).

Importing a module of this package imports Triton; only :mod:`polydistill.kernels.prepared` does, at the first launch.
"""
