"""A Hub of the test's own, which the client in this process takes for the only one."""

from __future__ import annotations

import time
import types
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.hub.server import TOKEN, Hub, serve

DOWNLOADS = "/{repo_id}/resolve/{revision}/{filename}"


@pytest.fixture
def hub(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Hub]:
    """What it holds. The client is logged in, keeps its files below ``tmp_path``, and tries again without waiting."""
    pytest.importorskip("huggingface_hub", reason="needs the extra hub (huggingface_hub)")
    import huggingface_hub.utils._http as attempts
    from huggingface_hub import constants, file_download, hf_api

    server = serve()
    address = f"http://127.0.0.1:{server.server_port}"
    monkeypatch.setenv("HF_TOKEN", TOKEN)
    monkeypatch.setenv("NO_PROXY", "127.0.0.1")
    monkeypatch.setattr(constants, "ENDPOINT", address)
    for module in (constants, file_download):  # the oldest client has names of its own in the second
        monkeypatch.setattr(module, "HUGGINGFACE_CO_URL_TEMPLATE", f"{address}{DOWNLOADS}", raising=False)
    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path / "cache"))
    monkeypatch.setattr(constants, "HF_HUB_DISABLE_XET", True, raising=False)
    monkeypatch.setattr(hf_api.api, "endpoint", address)
    monkeypatch.setattr(attempts, "time", types.SimpleNamespace(sleep=lambda seconds: None, time=time.time))
    yield server.hub  # type: ignore[attr-defined]
    server.shutdown()
    server.server_close()
