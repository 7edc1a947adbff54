"""Classifiers of a folder of pictures, with timm's networks and transforms: a lineage of them, teacher first.

:mod:`~polydistill.image_folders.folder` finds classes and files, :mod:`~polydistill.image_folders.pictures` decodes
one, :mod:`~polydistill.image_folders.data` makes batches, :mod:`~polydistill.image_folders.networks` builds networks by
name, and :mod:`~polydistill.image_folders.domain` is the world for a lineage, on top of :mod:`polydistill.modules`.
"""
