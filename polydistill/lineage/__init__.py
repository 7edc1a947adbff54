"""Lineages: a teacher teaches a student, which teaches the next."""

from polydistill.lineage.keeper import run_lineage
from polydistill.lineage.loop import Domain, Generation, Lineage, LineageConfig

__all__ = ["Domain", "Generation", "Lineage", "LineageConfig", "run_lineage"]
