"""Lineages of one's own models and data: any module that gives scores, any batches.

:mod:`~polydistill.modules.batches` reads batches, :mod:`~polydistill.modules.outputs` what networks give for them,
:mod:`~polydistill.modules.feed` gives them epoch by epoch, :mod:`~polydistill.modules.training` makes the steps,
:mod:`~polydistill.modules.world` is the world for a lineage and :mod:`~polydistill.modules.domain` the door to it,
:mod:`~polydistill.modules.kept` keeps its run, and :mod:`~polydistill.modules.teacher_scores` what a teacher gives.
"""

from polydistill.modules.domain import ModuleDomain
from polydistill.modules.teacher_cache import TeacherCache

__all__ = ["ModuleDomain", "TeacherCache"]
