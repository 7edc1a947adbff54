"""The generation loop, in a world of tiny linear networks that learn from a few points."""

from __future__ import annotations

import json

import pytest
import torch
from torch import nn

from polydistill.errors import UserError
from polydistill.learning.networks import share_weights
from polydistill.lineage import Generation, Lineage, LineageConfig
from polydistill.provenance import weights_sha256
from polydistill.streams import derive_seed, numpy_stream, torch_stream


class TinyDomain:
    """Students of one linear layer; keeps a diary of who taught whom."""

    objective = "mse"

    def __init__(self, seed: int = 0) -> None:
        self.seed = seed
        self.diary: list[tuple[str, int, object]] = []
        self.initial: dict[int, nn.Linear] = {}

    def fresh(self, generation: int) -> nn.Linear:
        network = nn.Linear(3, 2)
        generator = torch_stream(self.seed, "initial weights", generation)
        with torch.no_grad():
            for parameter in network.parameters():
                parameter.copy_(torch.randn(parameter.shape, generator=generator))
        return network

    def first(self) -> nn.Linear:
        self.diary.append(("first", 0, None))
        return self.fresh(0)

    def teach(self, teacher: nn.Linear, generation: int) -> nn.Linear:
        self.diary.append(("teach", generation, teacher))
        assert not teacher.training
        assert not any(parameter.requires_grad for parameter in teacher.parameters())
        student = self.fresh(generation)
        self.initial[generation] = self.fresh(generation)
        points = torch.eye(3)
        optimizer = torch.optim.SGD(student.parameters(), lr=0.1)
        for _ in range(3):
            optimizer.zero_grad()
            (student(points) - teacher(points)).square().sum().backward()
            optimizer.step()
        return student

    def network(self, member: nn.Linear) -> nn.Module | None:
        return member

    def evaluate(self, member: nn.Linear, teacher: nn.Linear | None, generation: int) -> dict[str, object]:
        self.diary.append(("evaluate", generation, teacher))
        return {"distance": None if teacher is None else float((member.weight - teacher.weight).norm())}


def run(domain: TinyDomain, generations: int = 3) -> list[Generation[nn.Linear]]:
    return list(Lineage(domain, LineageConfig(generations)))


def test_each_generation_is_taught_by_the_one_before_and_compared_with_it():
    domain = TinyDomain()
    found = run(domain)
    assert [entry.generation for entry in found] == [0, 1, 2, 3]
    for entry, teacher in zip(found[1:], found, strict=False):
        lesson, comparison = (
            [who for what, number, who in domain.diary if (what, number) == (event, entry.generation)]
            for event in ("teach", "evaluate")
        )
        assert lesson == [teacher.member]
        assert comparison == [teacher.member]
        assert entry.teacher_sha256 == teacher.sha256


def test_generation_0_has_no_teacher_and_no_objective():
    first, second = run(TinyDomain(), 1)
    assert (first.teacher_sha256, first.objective, first.metrics) == (None, None, {"distance": None})
    assert (second.objective, second.parameters) == ("mse", 8)


def test_generations_are_named_by_their_weights():
    found = run(TinyDomain())
    assert len({entry.sha256 for entry in found}) == 4
    for entry in found:
        assert entry.sha256 == weights_sha256(entry.member.state_dict())


def test_each_generation_starts_from_weights_of_its_own_and_a_seed_repeats_them_all():
    first, second, other = TinyDomain(), TinyDomain(), TinyDomain(seed=1)
    assert [entry.sha256 for entry in run(first)] == [entry.sha256 for entry in run(second)]
    assert not {entry.sha256 for entry in run(first)} & {entry.sha256 for entry in run(other)}
    starts = {weights_sha256(network.state_dict()) for network in first.initial.values()}
    assert len(starts) == 3


def test_a_generation_is_handed_out_before_the_next_is_taught():
    domain = TinyDomain()
    generations = iter(Lineage(domain, LineageConfig(2)))
    assert domain.diary == []
    next(generations)
    assert [event[:2] for event in domain.diary] == [("first", 0), ("evaluate", 0)]
    next(generations)
    assert [event[:2] for event in domain.diary[2:]] == [("teach", 1), ("evaluate", 1)]


def test_every_generation_is_handed_out_frozen_and_in_eval_mode():
    for entry in run(TinyDomain()):
        assert not entry.member.training
        assert not any(parameter.requires_grad for parameter in entry.member.parameters())


def test_a_parameter_without_elements_is_not_shared():
    class Odd(TinyDomain):
        def fresh(self, generation):
            network = super().fresh(generation)
            network.nothing = nn.Parameter(torch.empty(0))
            return network

    assert len(run(Odd(), 1)) == 2


def test_a_student_that_is_its_teacher_is_refused():
    class Same(TinyDomain):
        def teach(self, teacher, generation):
            return teacher

    with pytest.raises(RuntimeError, match="generation 1 shares weights with its teacher"):
        run(Same())


def test_a_student_that_shares_one_tensor_with_its_teacher_is_refused():
    class Shared(TinyDomain):
        def teach(self, teacher, generation):
            student = super().teach(teacher, generation)
            if generation == 2:
                student.bias = teacher.bias
            return student

    domain = Shared()
    with pytest.raises(RuntimeError, match="generation 2 shares weights with its teacher"):
        run(domain)


def laid_in(flat: torch.Tensor, start: int) -> nn.Linear:
    """A layer whose six weights lie in ``flat`` from ``start`` on."""
    layer = nn.Linear(3, 2)
    layer.weight = nn.Parameter(flat[start : start + 6].view(2, 3))
    return layer


@pytest.mark.parametrize(("start", "shared"), [(0, True), (1, True), (5, True), (6, False), (7, False)])
def test_slices_of_one_buffer_are_shared_only_where_they_overlap(start: int, shared: bool) -> None:
    flat = torch.zeros(20)
    networks = laid_in(flat, 0), laid_in(flat, start)
    assert share_weights(*networks) is shared
    assert share_weights(*reversed(networks)) is shared


def test_a_weight_inside_the_memory_of_several_others_is_shared() -> None:
    """The second network's weights overlap each other; the first's lies within the longest, beyond the last begun."""
    flat = torch.zeros(100)
    first, second = nn.Module(), nn.Module()
    first.weight = nn.Parameter(flat[60:70])
    for name, (start, end) in {"long": (0, 80), "short": (10, 20), "shorter": (30, 31)}.items():
        second.register_parameter(name, nn.Parameter(flat[start:end]))
    assert share_weights(first, second)
    assert share_weights(second, first)


@pytest.mark.parametrize("name", ["running_mean", "running_var", "num_batches_tracked"])
def test_a_shared_batch_statistic_is_a_shared_weight(name: str) -> None:
    first, second = nn.BatchNorm1d(3), nn.BatchNorm1d(3)
    assert not share_weights(first, second)
    setattr(first, name, getattr(second, name))
    assert share_weights(first, second)


def test_a_constant_may_be_shared_and_what_is_not_in_memory_is_nobodys() -> None:
    first, second = nn.Linear(3, 2), nn.Linear(3, 2)
    constant = torch.ones(3)
    for network in (first, second):
        network.register_buffer("constant", constant)
        network.register_buffer("sparse", torch.eye(3).to_sparse())
    assert not share_weights(first, second)
    assert not share_weights(nn.Linear(3, 2, device="meta"), nn.Linear(3, 2, device="meta"))
    assert not share_weights(nn.LazyLinear(2), nn.LazyLinear(2))


@pytest.mark.parametrize("change", [1e-7, float("nan")])
def test_a_lesson_that_changes_its_teacher_is_refused(change):
    class Changing(TinyDomain):
        def teach(self, teacher, generation):
            student = super().teach(teacher, generation)
            with torch.no_grad():
                teacher.weight[0, 0] += change * (teacher.weight[0, 0].abs() + 1)
            return student

    with pytest.raises(RuntimeError, match="teacher of generation 1 changed"):
        run(Changing())


def reread(domain: TinyDomain, generation: Generation[nn.Linear]) -> Generation[nn.Linear]:
    """The generation as another process would make it from its summary and its weights."""
    member = nn.Linear(3, 2)
    member.load_state_dict(generation.member.state_dict())
    return Generation(member=member, **json.loads(json.dumps(generation.summary())))


@pytest.mark.parametrize("n_done", [1, 2, 3, 4])
def test_a_lineage_that_goes_on_ends_as_the_unbroken_one(n_done: int) -> None:
    whole, domain = run(TinyDomain()), TinyDomain()
    done = [reread(domain, generation) for generation in whole[:n_done]]
    rest = list(Lineage(domain, LineageConfig(3), done))
    assert [entry.summary() for entry in rest] == [entry.summary() for entry in whole[n_done:]]
    assert not any(event == "first" for event, *_ in domain.diary), "nothing is done twice"
    assert all(not parameter.requires_grad for entry in done for parameter in entry.member.parameters())


def test_a_generation_that_is_not_what_it_was_is_refused() -> None:
    done = [reread(TinyDomain(), generation) for generation in run(TinyDomain())[:2]]
    with torch.no_grad():
        done[1].member.weight[0, 0] += 1e-6
    with pytest.raises(UserError, match="generation 1 is not what it was when it was finished"):
        Lineage(TinyDomain(), LineageConfig(3), done)


def test_generations_that_are_not_the_first_ones_are_refused() -> None:
    with pytest.raises(ValueError, match="got 1 at 0"):
        Lineage(TinyDomain(), LineageConfig(3), run(TinyDomain())[1:])


def test_a_bare_function_may_teach_and_has_no_hash():
    class Functions(TinyDomain):
        def first(self):
            return super().first().forward

        def teach(self, teacher, generation):
            return self.fresh(generation)

        def network(self, member):
            return member if isinstance(member, nn.Module) else None

        def evaluate(self, member, teacher, generation):
            return {}

    first, second = run(Functions(), 1)
    assert (first.sha256, first.parameters, second.teacher_sha256) == (None, None, None)
    assert second.sha256 is not None


def test_a_summary_is_plain_json_without_the_weights():
    (_, second) = run(TinyDomain(), 1)
    summary = json.loads(json.dumps(second.summary()))
    assert set(summary) == {"generation", "sha256", "teacher_sha256", "objective", "parameters", "metrics"}


@pytest.mark.parametrize("generations", [float("nan"), float("inf"), 1.0, "2", True, None])
def test_generations_that_are_no_whole_number_are_refused(generations):
    with pytest.raises(ValueError, match=r"generations must be .*got"):
        LineageConfig(generations)


def test_a_lineage_without_end_is_refused():
    with pytest.raises(ValueError, match="at most 1000, got 1000000000"):
        LineageConfig(10**9)


def test_a_lineage_without_students_ends_with_generation_0():
    domain = TinyDomain()
    assert [entry.generation for entry in run(domain, 0)] == [0]
    assert [event[:2] for event in domain.diary] == [("first", 0), ("evaluate", 0)]


def test_fewer_students_than_none_are_refused():
    with pytest.raises(ValueError, match="at least 0, got -1"):
        LineageConfig(-1)


def test_streams_differ_by_seed_name_and_generation_and_repeat_otherwise():
    seeds = {
        derive_seed(seed, name, generation)
        for seed in (0, 1, 2**62)
        for name in ("initial weights", "data order")
        for generation in (0, 1, 2)
    }
    assert len(seeds) == 18
    assert all(0 <= seed < 2**63 for seed in seeds)
    first, second = (torch.randn(4, generator=torch_stream(3, "x", 1)) for _ in range(2))
    assert torch.equal(first, second)
    assert numpy_stream(3, "x", 1).random() == numpy_stream(3, "x", 1).random() != numpy_stream(3, "x", 2).random()
