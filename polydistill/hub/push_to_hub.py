"""Send a finished run to the Hugging Face Hub: its networks, their card, its summary.

    python scripts/push_to_hub.py runs/mine --repo org/name --dry_run   what would be sent, where, how large
    python scripts/push_to_hub.py runs/mine --repo org/name --license mit
    python scripts/push_to_hub.py runs/mine --repo org/name --private   a new one that only its owner sees

Everything is sent in one commit, or nothing. The networks are then opened as hf://org/name wherever a path is taken.
Needs the extra hub, and a token that may write: `hf auth login`, or HF_TOKEN. Folders of this machine are left out of
what is sent. The scripts that distil take --push_to_hub org/name, and check it before they begin.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from polydistill.config.fields import check_fields
from polydistill.config.parsing import parse
from polydistill.errors import run_script
from polydistill.hub.card import check_license
from polydistill.hub.push import check_name
from polydistill.hub.sharing import SCRIPT, push_run
from polydistill.hub.worlds import finish_card, read_finished


@dataclass(frozen=True)
class PushConfig:
    """What is sent where.

    Args:
        run: folder of a finished run.
        repo: org/name on the Hub; made if it is not there.
        private: a new repository is seen by its owner alone; one that is there must be private already.
        license: of the weights, an identifier of the Hub like mit; empty: as in the card that is there, or not stated.
        replace_readme: replace a card on the Hub that a person has written or changed; else it stays.
        dry_run: print what would be sent, and send and write nothing.
    """

    run: str
    repo: str
    private: bool = False
    license: str = ""
    replace_readme: bool = False
    dry_run: bool = False

    def __post_init__(self) -> None:
        check_fields(self)


@run_script
def main(argv: list[str] | None = None, called: str = SCRIPT) -> None:
    """Do what the words ask for; None: those of this process. ``called`` is how a user calls it."""
    config = parse(
        PushConfig,
        argv,
        program=f"{called} RUN",
        description=(__doc__ or "").replace(SCRIPT, called),
        default_name=None,
        first_word="run",
    ).config
    out = Path(config.run)
    check_license(config.license)
    check_name(config.repo)
    summary = read_finished(out)
    if not config.dry_run:
        finish_card(summary, out, config.license, shown_again=True)
    push_run(
        summary,
        out,
        config.repo,
        private=config.private,
        replace_readme=config.replace_readme,
        dry_run=config.dry_run,
    )
