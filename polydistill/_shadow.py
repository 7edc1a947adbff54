"""Tells polydistill's ``agents`` package from another one of the same name.

``agents`` is a common name. Another package so called, in the working directory, on ``PYTHONPATH`` or in
site-packages, would be imported instead of ours and fail with an ImportError that explains nothing. Contract:
nothing is imported here, so the check is safe to run before the first ``import agents``.
"""

import ast
import importlib.util
import sys
from pathlib import Path
from typing import NoReturn

MARK = "__polydistill__"


def require_own_agents() -> None:
    """Exit with one line and code 2 unless ``import agents`` gives (or gave) polydistill's package.

    Call it before the first import from ``agents``.

    Raises:
        SystemExit: with code 2; the line ``error: ...`` on standard error says which package is in the way.

    Example:
        >>> require_own_agents()
    """
    loaded = sys.modules.get("agents")
    if loaded is not None:
        if hasattr(loaded, MARK):
            return
        places = [loaded.__file__] if getattr(loaded, "__file__", None) else list(getattr(loaded, "__path__", []))
    else:
        spec = importlib.util.find_spec("agents")
        if spec is None:
            exit_with("polydistill's package 'agents' is not installed; run `pip install -e .` in the clone")
        if spec.origin is not None and _is_marked(Path(spec.origin)):
            return
        places = [spec.origin] if spec.origin else list(spec.submodule_search_locations or [])
    place = places[0] if places else "of unknown origin"
    exit_with(
        f"another package named 'agents' ({place}) hides polydistill's; "
        "rename or uninstall it, or leave its folder out of PYTHONPATH and the working directory"
    )


def _is_marked(source: Path) -> bool:
    """Whether the package's ``__init__.py`` assigns the mark at top level."""
    try:
        tree = ast.parse(source.read_bytes())
    except (OSError, SyntaxError, ValueError):  # a compiled extension, or a file that is not Python
        return False
    targets = [target for node in tree.body if isinstance(node, ast.Assign) for target in node.targets]
    return any(isinstance(target, ast.Name) and target.id == MARK for target in targets)


def exit_with(message: str) -> NoReturn:
    """Exit with one line and code 2, as a script does."""
    print(f"error: {message}", file=sys.stderr)
    raise SystemExit(2)
