"""Weights that timm fetches from the Hugging Face Hub: whether there are any, and whether the Hub can be reached.

Contract: the answer takes some seconds at most. (The Hub's client itself tries for a minute before it gives up.)
"""

from __future__ import annotations

import functools

from polydistill.errors import UserError, printable
from polydistill.hub.client import open_client, quiet, status_of
from polydistill.image_folders.library import PREFIX, load_timm

SECONDS = 5.0  # to wait for the Hub
ABSENT = 404  # status of HTTP
NOT_FOR_ALL = "they are not for everybody: ask for them on their page there, and log in by `hf auth login`"
REFUSALS = {
    401: f"{NOT_FOR_ALL}; of a repository that is not there it says the same",
    403: NOT_FOR_ALL,
    ABSENT: "they are not there: leave teacher.pretrained out, or give a file by --teacher.path",
}
FILES = ("model.safetensors", "pytorch_model.bin")  # as timm names them there


@functools.cache
def require_weights(name: str) -> None:
    """Refuse a network of which timm has no weights, or none that can be fetched now.

    Args:
        name: of a network of timm, with its prefix.

    Raises:
        UserError: in one line that says what to do instead.
    """
    known = load_timm().models.get_pretrained_cfg(name.removeprefix(PREFIX))
    if known is None or not known.has_weights:
        raise UserError(f"timm has no weights of {name}: leave teacher.pretrained out, and it is trained here")
    if not known.hf_hub_id:  # they lie at an address of their own
        return
    hub = open_client(f"teacher.pretrained {name}")
    repository = known.hf_hub_id.partition("@")[0]
    files = (known.hf_hub_filename,) if known.hf_hub_filename else FILES
    if any(isinstance(hub.try_to_load_from_cache(repository, file), str) for file in files):
        return
    for file in files:
        try:
            with quiet():
                hub.get_hf_file_metadata(hub.hf_hub_url(repository, file), timeout=SECONDS)
            return
        except Exception as error:  # of whatever library the client uses
            if status_of(error) != ABSENT or file == files[-1]:
                raise not_fetched(name, error) from error


def not_fetched(name: str, error: BaseException) -> UserError:
    """The one line for weights that could not be fetched."""
    told = printable(str(error).strip().partition("\n")[0])
    advice = "fetch them where it can be reached, and give the file by --teacher.path"
    if status_of(error):  # it was reached
        told = f"its answer is HTTP {status_of(error)}"
        advice = REFUSALS.get(status_of(error), "try again later, or give a file by --teacher.path")
    return UserError(f"the weights of {name} cannot be fetched from the Hugging Face Hub ({told}): {advice}")
