"""A page about where an agent and its teacher disagree: how often, what it costs, when, in which actions and states."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

from polydistill.report.document import Block, Code, Document, Items, Paragraph, Picture, Section, Table
from polydistill.report.sketches import Point, draw_curve
from polydistill_agents.environments.disagreement import PARTS, Confusion, Disagreement, Estimate
from polydistill_agents.environments.gallery import STRETCH
from polydistill_agents.lineage.state_pictures import draw_state, numbers_of

MATRIX_UP_TO = 8  # actions: a wider table fits on no page
MOST_PAIRS = 10
UNITS = {"q_values": "in the unit of the teacher's Q-values", "logits": "in probability of the teacher's policy"}
MEANING = {
    "q_values": "Regret of a state: the Q-value of the teacher's best action less that of the agent's.",
    "logits": "Regret of a state: the probability of the teacher's likeliest action less that of the agent's.",
}


@dataclass(frozen=True)
class Setting:
    """Who was compared, and how.

    Args:
        agent: its path.
        teacher: likewise.
        game: what they played.
        protocol: under which.
        kinds: of the scores of teacher and agent.
        command: that made the page.
    """

    agent: str
    teacher: str
    game: str
    protocol: str
    kinds: tuple[str, str]
    command: str


def make_page(found: Disagreement, setting: Setting) -> Document:
    """The page, for :func:`polydistill.report.html.render_html`."""
    return Document(
        f"Where {Path(setting.agent).name} and {Path(setting.teacher).name} disagree",
        [
            Section("", [*_answer(found, setting)]),
            Section("Over the course of the game", _course(found, setting)),
            Section("Which actions are taken for which", [*_actions(found)]),
            Section("The states of the largest regret", [*_states(found, setting)]),
            Section("How it was measured", _how(setting)),
        ],
    )


def summary(found: Disagreement) -> list[tuple[str, str]]:
    """The numbers in short: names, and values with their intervals over games."""
    share = "" if found.worst_share is None else _percent(found.worst_share)
    return [
        ("games", f"{found.n_games}"),
        ("states", f"{found.n_states:,}"),
        ("agreement", f"{_percent(found.agreement.mean)}{_ends(found.agreement, percent=True)}"),
        ("mean regret", f"{found.regret.mean:.4g}{_ends(found.regret)}"),
        ("of random", "" if found.of_random is None else _percent(found.of_random)),
        ("worst 1%", share),
    ]


def _percent(share: float) -> str:
    return f"{100 * share:.1f}%"


def _ends(value: Estimate, *, percent: bool = False) -> str:
    if value.interval is None:
        return ""
    return " [{}, {}]".format(*(f"{100 * end:.1f}" if percent else f"{end:.3g}" for end in value.interval))


def _answer(found: Disagreement, setting: Setting) -> Iterator[Block]:
    cost = f"its actions cost {found.regret.mean:.3g} on average, {UNITS[setting.kinds[0]]}"
    if found.of_random is not None:
        cost += f": {_percent(found.of_random)} of what random actions would cost"
    chosen = f"The agent chooses its teacher's action in {_percent(found.agreement.mean)} of {found.n_states:,} states"
    yield Paragraph(f"{chosen}; {cost}.", "answer")
    if found.worst_share is not None:
        worst = f"The worst 1% of the states carry {_percent(found.worst_share)} of the regret."
        yield Paragraph(f"{worst} A disagreement where the teacher hardly prefers its action counts next to nothing.")
    headers, values = zip(*summary(found), strict=True)
    yield Table(headers, (values,), n_names=0)
    who = f"The agent is {setting.agent}, the teacher {setting.teacher}; the agent plays {setting.game}."
    yield Paragraph(f"{who} In brackets: 95% over games.", "note")


def _course(found: Disagreement, setting: Setting) -> list[Block]:
    curves = [
        (found.agreement_course, "Agreement", 1.0),
        (found.regret_course, f"Mean regret, {UNITS[setting.kinds[0]]}", None),
    ]
    pictures: list[Block] = [
        Picture(draw_curve(_points(course), "share of the game", top), f"{name}; the band is 95% over games.")
        for course, name, top in curves
    ]
    note = f"Each game is cut into {PARTS} equal parts; every game counts alike, however long it is."
    return [*pictures, Paragraph(note, "note")]


def _points(course: Sequence[Estimate | None]) -> list[Point | None]:
    return [
        None if value is None else Point((part + 0.5) / PARTS, value.mean, value.interval)
        for part, value in enumerate(course)
    ]


def _actions(found: Disagreement) -> Iterator[Block]:
    pairs = [pair for pair in found.confusions if pair.teacher != pair.agent]
    if not pairs:
        yield Paragraph("The agent chose its teacher's action in every state.")
        return
    total = sum(pair.regret for pair in pairs) or 1.0
    names = found.action_names
    rows = tuple(
        (
            *(names[pair.teacher], names[pair.agent], f"{pair.states:,}"),
            *(f"{pair.regret / pair.states:.3g}", _percent(pair.regret / total)),
        )
        for pair in pairs[:MOST_PAIRS]
    )
    headers = ("teacher", "agent", "states", "mean regret", "of all regret")
    yield Table(headers, rows, n_names=2)
    if len(pairs) > MOST_PAIRS:
        yield Paragraph(f"The {MOST_PAIRS} pairs that cost most, of {len(pairs)}.", "note")
    used = sorted({action for pair in found.confusions for action in (pair.teacher, pair.agent)})
    if len(used) <= MATRIX_UP_TO:
        yield Paragraph("States by the teacher's action (rows) and the agent's (columns):")
        yield _matrix(found.confusions, used, names)


def _matrix(confusions: Sequence[Confusion], used: Sequence[int], names: Sequence[str]) -> Table:
    counts = {(pair.teacher, pair.agent): pair.states for pair in confusions}
    rows = tuple((names[teacher], *(f"{counts.get((teacher, agent), 0):,}" for agent in used)) for teacher in used)
    return Table(("teacher", *(names[agent] for agent in used)), rows)


def _states(found: Disagreement, setting: Setting) -> Iterator[Block]:
    names = found.action_names
    for state in found.gallery.states:
        theirs, own = names[int(state.teacher.argmax())], names[int(state.agent.argmax())]
        numbers = numbers_of(state)
        caption = (
            f"Game {state.game + 1}, step {state.step:,}: the teacher means {theirs}, the agent {own}. "
            f"Regret {state.regret:.3g}." + f" It sees {numbers}." * bool(numbers)
        )
        yield Picture(draw_state(state, names, setting.kinds), caption)
    near = f"No two states of one game are nearer than {STRETCH} steps to each other."
    bars = "Bars of Q-values go from the worst action of the state to the best."
    frames = "Of frames in a stack the newest is large; those before stand beside it, the oldest on top."
    yield Paragraph(f"{near} {bars} {frames}" if found.gallery.states else "None: no action cost anything.", "note")


def _how(setting: Setting) -> list[Block]:
    return [
        Items(
            (
                f"The agent plays under the protocol {setting.protocol}; its teacher is asked in each state that it "
                "meets. Compared are the greedy actions of both; those that the protocol draws at random count for "
                "neither.",
                MEANING[setting.kinds[0]],
                "Regret of random actions: the mean over all actions, drawn alike, in the same states; 0% is the "
                "teacher, 100% are random actions. This share compares across games and kinds of scores.",
                "Intervals: bootstrap over whole games, from three games on.",
            )
        ),
        Code(setting.command),
    ]
