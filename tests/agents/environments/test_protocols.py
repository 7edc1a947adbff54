"""Protocols are the published ones, and say who samples."""

from __future__ import annotations

import pytest

from polydistill.errors import UserError
from polydistill_agents.environments.protocols import PROTOCOLS, get_protocol, sampling_temperature


def test_protocols_are_the_published_ones():
    rusu, machado, zoo = (PROTOCOLS[name] for name in ("rusu", "machado", "zoo"))
    assert (rusu.epsilon, rusu.noop_max, rusu.repeat_action_probability) == (0.05, 30, 0.0)
    assert (machado.epsilon, machado.noop_max, machado.repeat_action_probability) == (0.0, 0, 0.25)
    assert (zoo.epsilon, zoo.noop_max, zoo.repeat_action_probability, zoo.fire_on_life_loss) == (0.01, 30, 0.0, True)
    assert [protocol.samples_logits for protocol in (rusu, machado, zoo)] == [False, False, True]
    assert all(protocol.max_frames == 108_000 for protocol in PROTOCOLS.values())
    for protocol in PROTOCOLS.values():
        assert protocol.epsilon or protocol.repeat_action_probability, "none is greedy without randomness"


def test_an_unknown_protocol_is_one_line_with_the_nearest_name():
    with pytest.raises(UserError, match="did you mean machado"):
        get_protocol("machedo")


@pytest.mark.parametrize(
    ("play", "protocol", "kind", "expected"),
    [
        ("protocol", "zoo", "logits", 1.0),
        ("protocol", "zoo", "q_values", None),
        ("protocol", "rusu", "logits", None),
        ("protocol", "machado", "logits", None),
        ("greedy", "zoo", "logits", None),
        ("sample", "rusu", "logits", 1.0),
        ("sample", "rusu", "q_values", 0.25),
    ],
)
def test_agents_sample_where_the_zoo_does_or_they_are_told_to(play, protocol, kind, expected):
    assert sampling_temperature(play, PROTOCOLS[protocol], kind, 0.25) == expected
