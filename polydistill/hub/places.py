"""What a run knows of the machine that it was made on, and others need not: folders, and credentials in addresses.

Contract: of a path the name of the file stays, of an address all but user, password and query. A relative path of
several parts is taken for a path where its key, its flag or its ending says so: the id ``mine/Maze-v5`` is none.
"""

from __future__ import annotations

import json
import re
import shlex
from pathlib import PurePosixPath
from typing import Any
from urllib.parse import urlsplit

from polydistill.config.plain_yaml import parse_value

PLACES = ("path", "more", "root", "out", "config", "file", "dataset", "save_dataset", "teacher", "games")
ENDINGS = "zip|ya?ml|safetensors|pth?|onnx|json|npz|pkl|h5|hdf5|csv|bin|gz|html"
ADDRESS = r"[A-Za-z][A-Za-z0-9+.-]+://[^\s'\",\[\]{}]+"
ABSOLUTE = r"(?:~[\w.-]*|\.\.?|[A-Za-z]:)?[\\/]"  # as a path begins that leads out of where one is
# the whole text is a path, which may hold spaces; an architecture may stand before it
WHOLE = re.compile(rf"(?P<before>\w{{2,}}:)?(?P<path>(?:{ABSOLUTE}|~).*)", re.DOTALL)
INSIDE = re.compile(
    rf"(?P<address>{ADDRESS})"
    rf"|(?<![\w./\\~-])(?:{ABSOLUTE})[^\s'\",\[\]{{}}()]+"
    rf"|(?<![\w./\\~-])[\w.-]+(?:[\\/][\w.-]+)+\.(?:{ENDINGS})\b"
)


def name_only(place: str) -> str:
    """The name of what lies at a path or an address.

    Example:
        >>> name_only("/home/jane/dqn.zip"), name_only("nature:C:\\\\jane\\\\a b.pt"), name_only("runs/mine/")
        ('dqn.zip', 'nature:a b.pt', 'mine')
        >>> name_only("hf://org/name"), name_only("https://jane:secret@example.org/a.zip?key=1#sha256=ab")
        ('hf://org/name', 'https://example.org/a.zip#sha256=ab')
    """
    if re.fullmatch(ADDRESS, place):
        parts = urlsplit(place)
        if parts.scheme == "hf":
            return place
        host = parts.netloc.rpartition("@")[2]
        if parts.scheme not in ("http", "https") or not host:
            return _last(parts.path)
        return f"{parts.scheme}://{host}{parts.path}" + (f"#{parts.fragment}" if parts.fragment else "")
    before, colon, path = place.partition(":")
    if colon and re.fullmatch(r"\w{2,}", before):
        return f"{before}:{_last(path)}"
    return _last(place)


def public(value: Any, key: str = "") -> Any:
    """A plain value without the folders of a machine; mappings and lists are gone through.

    Args:
        value: as in summary.json.
        key: under which it stands.
    """
    if isinstance(value, dict):
        inner = key if key in PLACES else ""
        return {name: public(item, inner or str(name)) for name, item in value.items()}
    if isinstance(value, list):
        return [public(item, key) for item in value]
    if not isinstance(value, str):
        return value
    if key == "command":
        return public_command(value)
    if WHOLE.fullmatch(value) or (key in PLACES and re.search(r"[\\/]", value)):
        return name_only(value)
    return INSIDE.sub(lambda found: name_only(found[0]), value)


def public_command(command: str) -> str:
    """A command line in which every file is named without its folder.

    Example:
        >>> public_command("python scripts/show.py --teacher.path '/home/jane doe/a.zip' --env mine/Maze-v5 --out=x/y")
        'python scripts/show.py --teacher.path a.zip --env mine/Maze-v5 --out=y'
    """
    try:
        words = shlex.split(command)
    except ValueError:  # a quote without its partner: not written by this project
        words = command.split()
    found, key = [], ""
    for word in words:
        flag, equals, value = word.partition("=") if word.startswith("--") else ("", "", word)
        if flag and not equals:
            key = flag.rpartition(".")[2].lstrip("-")
            found.append(word)
            continue
        own = flag.rpartition(".")[2].lstrip("-") if flag else key
        found.append(f"{flag}{equals}{_public_word(value, own)}")
        key = ""
    return shlex.join(found)


def _public_word(word: str, key: str) -> str:
    if word.startswith(("[", "{")):  # a list or mapping, as a flag takes it
        try:
            return json.dumps(public(parse_value(word), key), ensure_ascii=False)
        except ValueError:
            pass
    return str(public(word, key))


def _last(path: str) -> str:
    return PurePosixPath(path.replace("\\", "/")).name or "."
