"""Agents as ONNX files that run without torch: written, compared with torch, scored, and described in a card."""

from polydistill_agents.export.course import Exported, export_agent

__all__ = ["Exported", "export_agent"]
