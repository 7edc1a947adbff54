"""Teachers from elsewhere: https with a checksum, and the Hugging Face Hub, here a server of this test."""

from __future__ import annotations

import hashlib
import http.client
import http.server
import importlib.util
import io
import json
import logging
import os
import socket
import ssl
import subprocess
import sys
import threading
import types
import urllib.request
from pathlib import Path
from typing import Any, ClassVar

import pytest

from polydistill_agents.files import downloads as remote
from polydistill_agents.files.downloads import fetch
from tests.agents.samples import refusal
from tests.fuzz.seeds import make_seeds

AGENT = make_seeds()["dqn.zip"]
SHA256 = hashlib.sha256(AGENT).hexdigest()


# ------------------------------------------------------------------ https


class Answer(io.BytesIO):
    """What ``urlopen`` gives."""

    def __init__(self, content: bytes, url: str) -> None:
        super().__init__(content)
        self.url = url

    def geturl(self) -> str:
        return self.url


@pytest.fixture
def web(monkeypatch, tmp_path):
    """The web holds ``content`` at every address; the addresses asked for are listed."""
    asked: list[str] = []
    state: dict[str, Any] = {"content": AGENT, "leads_to": None, "asked": asked}

    def urlopen(address: str, timeout: float) -> Answer:
        asked.append(address)
        if isinstance(state["content"], BaseException):
            raise state["content"]
        return Answer(state["content"], state["leads_to"] or address)

    monkeypatch.setattr(urllib.request, "urlopen", urlopen)
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    return state


def test_a_file_with_the_right_checksum_is_fetched_once(web):
    where = f"https://example.org/agents/a.zip#sha256={SHA256}"
    path = fetch(where)
    assert path.read_bytes() == AGENT
    assert path.name == "a.zip"
    assert fetch(where) == path
    assert len(web["asked"]) == 1
    path.write_bytes(b"damaged since")
    assert fetch(where).read_bytes() == AGENT, "what has changed on disk is fetched again"


def test_another_file_than_the_checksum_says_is_refused_and_not_kept(web):
    web["content"] = AGENT[:-1] + b"x"
    assert "not what its checksum says" in refusal(fetch, f"https://example.org/a.zip#sha256={SHA256}")
    assert not list(remote.cache_folder().rglob("*.zip"))


@pytest.mark.parametrize("fragment", ["", "#", "#md5=abc", "#sha256=abc", "#sha256=" + "g" * 64])
def test_a_download_without_a_checksum_is_refused_before_it_begins(web, fragment):
    assert "needs its checksum" in refusal(fetch, "https://example.org/a.zip" + fragment)
    assert not web["asked"]


@pytest.mark.parametrize("scheme", ["http", "ftp", "file", "HTTP", "s3", "data"])
def test_another_scheme_is_refused(web, scheme):
    assert "https:// or hf:// only" in refusal(fetch, f"{scheme}://example.org/a.zip#sha256={SHA256}")
    assert not web["asked"]


def test_an_address_that_leads_away_from_https_is_refused(web):
    web["leads_to"] = "http://example.org/a.zip"
    assert "which is not https" in refusal(fetch, f"https://example.org/a.zip#sha256={SHA256}")


def test_a_file_over_the_bound_and_a_broken_line_are_one_line(web, monkeypatch):
    monkeypatch.setattr(remote, "MAX_FILE_BYTES", 1000)
    assert "more than 1,000 bytes" in refusal(fetch, f"https://example.org/a.zip#sha256={SHA256}")
    web["content"] = urllib.error.URLError("no route\nto host")
    assert "cannot get https://example.org/a.zip: " in refusal(fetch, f"https://example.org/a.zip#sha256={SHA256}")


class OfSomeClient(Exception):
    """An error whose class nobody here has heard of, as httpx's and requests' are."""


class WithoutWords(OfSomeClient):
    def __str__(self):
        return ""


FAILURES = [
    http.client.IncompleteRead(b"x"), http.client.InvalidURL("port"), http.client.BadStatusLine("?"), OSError(),
    ssl.SSLCertVerificationError("self-signed"), TimeoutError("slow"), socket.gaierror(-2, "Name not known"),
    ValueError("unknown url type"), UnicodeError("label too long"), ConnectionResetError(104, "reset"), MemoryError(),
    OfSomeClient("line one\nline two \x1b[2J"), WithoutWords(), KeyError("etag"), AttributeError("headers"),
]  # fmt: skip


@pytest.mark.parametrize("error", FAILURES, ids=lambda error: type(error).__name__)
def test_whatever_the_web_does_wrong_is_one_line(web, error):
    web["content"] = error
    assert refusal(fetch, f"https://example.org/a.zip#sha256={SHA256}").startswith(
        "cannot get https://example.org/a.zip: "
    )


def test_a_cache_that_cannot_be_written_is_one_line(web, tmp_path):
    (tmp_path / "cache").write_bytes(b"a file where a folder should be")
    assert refusal(fetch, f"https://example.org/a.zip#sha256={SHA256}").startswith(f"cannot write {tmp_path / 'cache'}")


@pytest.mark.parametrize("address", ["https://[x", "https://x:abc/a.zip", "https://\u2100/a.zip"])
def test_an_address_that_is_none_is_one_line(monkeypatch, tmp_path, address):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    assert refusal(fetch, f"{address}#sha256={SHA256}").startswith(f"cannot get {address}: ")


def test_an_interruption_is_no_failure_of_the_web(web):
    web["content"] = KeyboardInterrupt()
    with pytest.raises(KeyboardInterrupt):
        fetch(f"https://example.org/a.zip#sha256={SHA256}")


# ------------------------------------------------------------------ hf://


@pytest.mark.parametrize("error", [*FAILURES, KeyboardInterrupt()], ids=lambda error: type(error).__name__)
@pytest.mark.parametrize("step", ["list_repo_files", "get_hf_file_metadata", "hf_hub_download"])
def test_whatever_the_client_of_the_hub_raises_at_any_step_is_one_line(monkeypatch, error, step):
    def fail(*arguments, **options):
        raise error

    told = types.SimpleNamespace(size=3, etag="x", commit_hash="y")
    client = types.SimpleNamespace(
        list_repo_files=lambda repository: ["a.zip"],
        hf_hub_url=lambda *arguments, **options: "https://example.org",
        get_hf_file_metadata=lambda url: told,
        hf_hub_download=lambda *arguments, **options: "nowhere.zip",
    )
    setattr(client, step, fail)
    monkeypatch.setitem(sys.modules, "huggingface_hub", client)
    if isinstance(error, KeyboardInterrupt):
        with pytest.raises(KeyboardInterrupt):
            fetch("hf://org/name")
        return
    line = refusal(fetch, "hf://org/name")
    assert line.startswith("cannot get hf://org/name: ")
    assert line.removeprefix("cannot get hf://org/name: ")


NEEDS_HUB = pytest.mark.skipif(
    importlib.util.find_spec("huggingface_hub") is None, reason="needs the extra hub (huggingface_hub)"
)


def test_without_the_extra_the_hub_is_one_line(monkeypatch):
    monkeypatch.setitem(sys.modules, "huggingface_hub", None)
    assert "needs the extra hub: pip install 'polydistill[hub]'" in refusal(fetch, "hf://org/name")


def test_the_clients_log_of_its_attempts_is_not_printed(monkeypatch, caplog):
    def fail(repository):
        log = logging.getLogger("huggingface_hub.utils._http")
        log.setLevel(logging.WARNING)
        log.warning("Retrying in 1s [Retry 1/5].")
        raise OfSomeClient("no route")

    monkeypatch.setitem(sys.modules, "huggingface_hub", types.SimpleNamespace(list_repo_files=fail))
    assert refusal(fetch, "hf://org/name") == "cannot get hf://org/name: no route"
    assert not caplog.records
    assert logging.root.manager.disable == 0


class Hub(http.server.BaseHTTPRequestHandler):
    """The part of the Hub's protocol that a download of one file speaks."""

    repositories: ClassVar[dict[str, dict[str, bytes]]] = {}
    commit: ClassVar[str] = "0123456789abcdef0123456789abcdef01234567"
    asked: ClassVar[list[str]] = []
    etags: ClassVar[dict[str, str]] = {}  # other ones than the sha256 of the file

    def do_GET(self) -> None:
        self.asked.append(f"{self.command} {self.path}")
        parts = self.path.split("?")[0].strip("/").split("/")
        if parts[:2] == ["api", "models"]:
            files = self.repositories.get("/".join(parts[2:4]))
            if files is None:
                return self.answer(404, b"", {"X-Error-Code": "RepoNotFound"})
            siblings = [{"rfilename": name} for name in files]
            info = {"_id": "1", "id": "/".join(parts[2:4]), "sha": self.commit, "siblings": siblings, "private": False}
            info |= {"tags": [], "downloads": 0, "likes": 0}
            if len(parts) > 4 and parts[4] == "tree":
                tree = [{"type": "file", "path": n, "size": len(c), "oid": "1" * 40} for n, c in files.items()]
                return self.answer(200, json.dumps(tree).encode(), {"Content-Type": "application/json"})
            return self.answer(200, json.dumps(info).encode(), {"Content-Type": "application/json"})
        content = self.repositories.get("/".join(parts[:2]), {}).get("/".join(parts[4:]))
        if content is None:
            return self.answer(404, b"", {"X-Error-Code": "EntryNotFound"})
        etag = self.etags.get("/".join(parts[:2])) or hashlib.sha256(content).hexdigest()
        return self.answer(200, content, {"X-Repo-Commit": self.commit, "ETag": f'"{etag}"'})

    do_HEAD = do_GET

    def answer(self, status: int, content: bytes, headers: dict[str, str]) -> None:
        self.send_response(status)
        for name, value in (headers | {"Content-Length": str(len(content))}).items():
            self.send_header(name, value)
        self.end_headers()
        if self.command == "GET":
            self.wfile.write(content)

    def log_message(self, *arguments: Any) -> None:
        """Nothing."""


ASKED = """
import sys
from polydistill.errors import UserError
from polydistill_agents.files.downloads import fetch

for where in sys.stdin:
    try:
        found = fetch(where.strip())
    except UserError as error:
        found = f"error: {error}"
    print("found:", found, flush=True)
"""


@pytest.fixture(scope="module")
def hub(tmp_path_factory):
    """Ask the Hub, in a process that knows no other: its client reads the address when it is imported."""
    server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), Hub)
    thread = threading.Thread(target=server.serve_forever, daemon=True)
    thread.start()
    home = tmp_path_factory.mktemp("hub")
    environment = os.environ | {
        **{"HF_ENDPOINT": f"http://127.0.0.1:{server.server_port}", "HF_HOME": str(home), "NO_PROXY": "127.0.0.1"},
        **{"PYTHONPATH": str(Path(__file__).parents[3]), "HF_HUB_DISABLE_TELEMETRY": "1"},
    }
    with open(home / "errors.txt", "w") as errors:
        process = subprocess.Popen(
            [sys.executable, "-c", ASKED], env=environment, cwd=home, text=True,
            stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=errors,
        )  # fmt: skip

    def ask(where: str) -> str:
        assert process.stdin is not None
        assert process.stdout is not None
        print(where, file=process.stdin, flush=True)
        for line in process.stdout:
            if line.startswith("found: "):
                return line.removeprefix("found: ").strip()
        raise AssertionError((home / "errors.txt").read_text())

    yield ask
    process.communicate()
    server.shutdown()
    thread.join()
    server.server_close()


@NEEDS_HUB
def test_an_agent_comes_from_the_hub(hub):
    Hub.repositories["sb3/dqn-Pong"] = {"README.md": b"x", "dqn-Pong.zip": AGENT, "args.yml": b"x: 1"}
    path = Path(hub("hf://sb3/dqn-Pong"))
    assert path.name == "dqn-Pong.zip"
    assert path.read_bytes() == AGENT
    assert hub("hf://sb3/dqn-Pong/dqn-Pong.zip") == str(path)
    assert any(line.startswith("GET /sb3/dqn-Pong/resolve/") for line in Hub.asked)


@NEEDS_HUB
def test_a_file_of_the_hub_is_what_its_checksum_says(hub):
    for name, etag in {"git": hashlib.sha1(b"blob %d\0" % len(AGENT) + AGENT).hexdigest(), "bad": "0" * 64}.items():
        Hub.repositories[f"sums/{name}"] = {"a.zip": AGENT}
        Hub.etags[f"sums/{name}"] = etag
    assert Path(hub("hf://sums/git")).read_bytes() == AGENT
    assert hub("hf://sums/bad").startswith("error: hf://sums/bad: a.zip is not what its checksum says; remove ")


@NEEDS_HUB
def test_what_the_hub_does_not_hold_or_holds_twice_is_one_line(hub):
    Hub.repositories["sb3/two"] = {"a.zip": AGENT, "b.zip": AGENT}
    assert hub("hf://sb3/two") == "error: hf://sb3/two holds 2 files .zip; choose one: hf://sb3/two/a.zip"
    assert Path(hub("hf://sb3/two/b.zip")).name == "b.zip"
    Hub.repositories["sb3/none"] = {"README.md": b"x"}
    assert "holds no file that ends in .zip" in hub("hf://sb3/none")
    assert hub("hf://sb3/nobody").startswith("error: cannot get hf://sb3/nobody: ")
    assert hub("hf://sb3/two/c.zip").startswith("error: cannot get hf://sb3/two/c.zip: ")


@NEEDS_HUB
def test_statistics_come_with_their_agent_and_the_zoos_metrics_are_no_agent(hub):
    Hub.repositories["sb3/scaled"] = {"a.zip": AGENT, "vec_normalize.pkl": b"x", "train_eval_metrics.zip": b"y"}
    path = Path(hub("hf://sb3/scaled"))
    assert path.read_bytes() == AGENT
    assert sorted(file.name for file in path.parent.iterdir()) == ["a.zip", "vec_normalize.pkl"]


@NEEDS_HUB
def test_of_a_run_that_was_pushed_the_last_student_is_meant(hub):
    both = {
        "student.zip": AGENT,
        "generation_1.zip": b"x",
        "student.safetensors": b"x",
        "generation_1.safetensors": b"x",
    }
    Hub.repositories["run/both"] = both | {"summary.json": b"{}", "student.onnx": b"x", "student.onnx.json": b"{}"}
    assert Path(hub("hf://run/both")).name == "student.zip"
    Hub.repositories["run/wide"] = {name: content for name, content in both.items() if not name.endswith(".zip")}
    assert Path(hub("hf://run/wide")).name == "student.safetensors"


@NEEDS_HUB
@pytest.mark.parametrize("where", ["hf://", "hf://name", "hf://org/name/../x.zip", "hf://org/na me", "hf://org/name?x"])
def test_a_malformed_address_of_the_hub_is_one_line(where):
    assert "not of the form" in refusal(fetch, where)
