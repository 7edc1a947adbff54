"""What batches and outputs of one's own may look like: all give the same students."""

from __future__ import annotations

from collections import OrderedDict, UserDict, namedtuple
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from polydistill.learning.lesson import Lesson
from polydistill.losses import cross_entropy
from polydistill.modules import ModuleDomain
from polydistill.modules.batches import move, read_batch
from polydistill.modules.feed import Feed
from polydistill.modules.outputs import AS_GIVEN, read_scores
from polydistill.modules.sample_hashes import hash_samples
from polydistill.modules.training import ModuleTraining

LABELS = torch.arange(12) % 3
INPUTS = torch.randn(12, 4, generator=torch.Generator().manual_seed(0)) + LABELS.unsqueeze(1)
Output = namedtuple("Output", ["logits", "aux"])


class Net(nn.Module):
    """Takes ``x``, or two parts of it; wraps its scores."""

    def __init__(self, wrap: Any = None) -> None:
        super().__init__()
        self.layer, self.wrap = nn.Linear(4, 3), wrap

    def forward(self, x: Tensor, y: Tensor | None = None) -> Any:
        scores = self.layer(x if y is None else torch.cat([x, y], dim=-1))
        return self.wrap(scores) if self.wrap else scores


def weights(batches: Any, wrap: Any = None, **options: Any) -> list[str | None]:
    one = ModuleDomain(lambda: Net(wrap), batches, batches, epochs=2, **options)
    return [generation.sha256 for generation in one.distill(1)]


@pytest.fixture(scope="module")
def plain() -> list[str | None]:
    return weights([(INPUTS, LABELS)])


@pytest.mark.parametrize(
    "batch",
    [
        {"x": INPUTS, "labels": LABELS},
        UserDict({"x": INPUTS, "label": LABELS}),
        {"x": INPUTS[:, :2], "y": INPUTS[:, 2:], "labels": LABELS},
        (INPUTS[:, :2], INPUTS[:, 2:], LABELS),
        [INPUTS, LABELS],
        (INPUTS, LABELS.to(torch.int32)),
        (INPUTS, LABELS.unsqueeze(1)),
        (INPUTS, LABELS.tolist()),
        (INPUTS, LABELS.numpy()),
    ],
    ids=["dict", "mapping", "two keywords", "triple", "list", "int32", "column", "plain list", "numpy"],
)
def test_every_form_of_a_batch_gives_the_same_students(plain: list[str | None], batch: Any) -> None:
    assert weights([batch]) == plain


class CountedDict(UserDict[str, Any]):
    """Counts how often its labels are looked up."""

    lookups = 0

    def __getitem__(self, key: str) -> Any:
        self.lookups += key == "labels"
        return super().__getitem__(key)


def test_a_step_reads_its_batch_once() -> None:
    once, batch, network = CountedDict(x=INPUTS, labels=LABELS), CountedDict(x=INPUTS, labels=LABELS), Net()
    read_batch(once)
    optimizer = torch.optim.SGD(network.parameters(), lr=0.1)
    how = {"epochs": 3, "log_every_steps": 50, "ignore_index": -100, "n_classes": 3}
    list(ModuleTraining(network, Lesson("cross_entropy"), optimizer, Feed([batch], 0), **how).run())
    assert batch.lookups == 3 * once.lookups > 0


@pytest.mark.parametrize(
    "wrap",
    [
        lambda scores: SimpleNamespace(logits=scores, loss=None),
        lambda scores: OrderedDict(loss=None, logits=scores),
        lambda scores: (scores, scores.mean()),
        lambda scores: [scores],
        lambda scores: Output(scores, None),
        lambda scores: (SimpleNamespace(logits=scores), None),
        lambda scores: scores.double(),
    ],
    ids=["attribute", "dict", "tuple", "list", "namedtuple", "nested", "float64"],
)
def test_every_form_of_an_output_gives_the_same_students(plain: list[str | None], wrap: Any) -> None:
    assert weights([(INPUTS, LABELS)], wrap) == plain


@pytest.mark.parametrize("objective", ["ban", "cwtm", "uniform_confidence"])
def test_tokens_count_as_samples_and_padding_for_nothing(objective: str) -> None:
    expected = weights([(INPUTS, LABELS)], objective=objective)
    whole = [(INPUTS.view(3, 4, 4), LABELS.view(3, 4))]
    assert weights(whole, objective=objective) == expected
    padded = torch.cat([INPUTS.view(3, 4, 4), torch.full((3, 2, 4), 9.0)], dim=1)
    ignored = torch.cat([LABELS.view(3, 4), torch.full((3, 2), -100)], dim=1)
    one = ModuleDomain(Net, [(padded, ignored)], [(padded, ignored)], epochs=2, objective=objective)
    found = list(one.distill(1))
    two = ModuleDomain(Net, whole, whole, epochs=2, objective=objective)
    for ours, theirs in zip(found, two.distill(1), strict=True):
        torch.testing.assert_close(ours.member.layer.weight, theirs.member.layer.weight)
        there = {name: value for name, value in theirs.metrics.items() if value is not None}
        assert {name: ours.metrics[name] for name in there} == pytest.approx(there, rel=1e-4)


@pytest.mark.parametrize("objective", ["ban", "cwtm", "hinton_kd"])
def test_a_teacher_may_give_anything_where_labels_are_padding(objective: str) -> None:
    class Unfilled(Net):
        def forward(self, x: Tensor, y: Tensor | None = None) -> Any:
            return super().forward(x).index_fill(1, torch.tensor([3]), torch.nan)

    padded = LABELS.view(3, 4).index_fill(1, torch.tensor([3]), -100)
    batches, known = [(INPUTS.view(3, 4, 4), padded)] * 2, Net()
    unfilled = Unfilled()
    unfilled.load_state_dict(known.state_dict())
    found = [
        list(ModuleDomain(Net, batches, batches, epochs=1, teacher=teacher, objective=objective).distill(1))
        for teacher in (known, unfilled)
    ]
    assert found[0][1].sha256 == found[1][1].sha256


def test_any_number_may_mark_padding_and_a_function_of_ones_own_never_sees_it() -> None:
    seen: list[int] = []

    def own(student: Tensor, teacher: Tensor, labels: Tensor) -> Tensor:
        seen.extend(labels.tolist())
        return cross_entropy(student, labels)

    padded = torch.where(torch.arange(12) < 9, LABELS, 99)
    batches = [(INPUTS, padded)]
    one = ModuleDomain(Net, batches, batches, epochs=1, objective=own, ignore_index=99)
    list(one.distill(1))
    assert set(seen) == {0, 1, 2}
    with pytest.raises(ValueError, match="labels must be from 0 to 2; the first batch of `batches` has 99"):
        next(ModuleDomain(Net, batches, batches, epochs=1, ignore_index=None).distill())


def test_images_with_a_label_for_each_pixel_are_lined_up() -> None:
    labels = torch.arange(8).view(2, 2, 2) % 3
    scores = torch.randn(2, 3, 2, 2)
    batch = read_batch((scores, labels))
    found = AS_GIVEN.score(nn.Identity(), batch)
    assert torch.equal(found[5], scores[1, :, 0, 1])
    assert batch.labels[5] == labels[1, 0, 1]


class Tagger(nn.Conv1d):
    """``(batch, classes, time)`` scores, as convolutions give them, or with the classes last."""

    def __init__(self, last: bool) -> None:
        super().__init__(2, 5, 1)
        self.last = last

    def forward(self, x: Tensor) -> Tensor:
        scores = super().forward(x)
        return scores.transpose(1, 2) if self.last else scores


def tagged(length: int) -> tuple[Tensor, Tensor]:
    generator = torch.Generator().manual_seed(length)
    labels = torch.randint(5, (8, length), generator=generator)
    return torch.randn(8, 2, length, generator=generator), labels


@pytest.mark.parametrize("last", [False, True])
def test_as_many_positions_as_classes_are_read_as_in_the_batches_before(last: bool) -> None:
    batches = [tagged(4), tagged(5), tagged(6)]
    one = ModuleDomain(lambda: Tagger(last), batches, batches, epochs=1)
    network = next(one.distill(1)).member
    for inputs, labels in batches:
        scores = network(inputs) if last else network(inputs).transpose(1, 2)
        assert torch.equal(AS_GIVEN.score(network, read_batch((inputs, labels))), scores.reshape(-1, 5))


def test_the_first_batch_that_can_be_read_in_two_ways_is_told() -> None:
    network = Tagger(last=False)
    with pytest.warns(UserWarning, match=r"\(8, 5, 5\) fit labels of shape \(8, 5\) in two ways; .* dimension 2$"):
        AS_GIVEN.score(network, read_batch(tagged(5)))
    with pytest.raises(ValueError, match="have their classes in dimension 1, those of a batch before in dimension 2"):
        AS_GIVEN.score(network, read_batch(tagged(6)))


def test_names_go_with_their_samples_and_other_values_with_all() -> None:
    names = [f"picture {number}" for number in range(12)]
    batch = read_batch({"x": INPUTS, "names": names, "size": [224, 224], "way": "fast", "labels": LABELS})
    parts = batch.split(5)
    assert [name for part in parts for name in part.keywords["names"]] == names
    assert all(len(part.keywords["names"]) == len(part.keywords["x"]) for part in parts)
    assert {(*part.keywords["size"], part.keywords["way"]) for part in parts} == {(224, 224, "fast")}


@pytest.mark.parametrize("n_texts", [1, 12])
def test_a_mapping_of_texts_belongs_to_all_samples_however_many_it_has(n_texts: int) -> None:
    """A list of as many texts as samples is a text of each."""
    texts = {number: f"class {number}" for number in range(n_texts)}
    given = {"x": INPUTS, "prompts": texts, "labels": LABELS}
    assert all(part.keywords["prompts"] == texts for part in read_batch(given).split(5))
    half = {"x": INPUTS[:6], "prompts": texts, "labels": LABELS[:6]}
    assert hash_samples(read_batch(half)) == hash_samples(read_batch(given))[:6]


@pytest.mark.parametrize(
    ("batch", "text"),
    [
        (INPUTS, r"a batch must be \(inputs, labels\) or a mapping with labels, got a Tensor"),
        ((INPUTS,), r"got a tuple of 1"),
        ({"x": INPUTS, "target": LABELS}, 'must have its labels under "labels", this one has x, target'),
        ((INPUTS, LABELS.float()), "labels must be a tensor of integers, got a tensor of torch.float32"),
        ((INPUTS, "labels"), "labels must be a tensor of integers, got a str"),
    ],
)
def test_what_is_no_batch_is_refused(batch: Any, text: str) -> None:
    with pytest.raises(TypeError, match=text):
        read_batch(batch)


def test_a_data_set_in_the_place_of_its_loader_is_refused() -> None:
    with pytest.raises(ValueError, match="put a data set into a DataLoader"):
        read_batch((INPUTS[0], LABELS[0]))


@pytest.mark.parametrize(
    "output",
    [None, {"scores": INPUTS}, torch.zeros(2, dtype=torch.int64), ()],
    ids=["None", "no logits", "integers", "empty"],
)
def test_what_holds_no_scores_is_refused(output: Any) -> None:
    with pytest.raises(TypeError, match="a network must give"):
        read_scores(output)


@pytest.mark.parametrize("shape", [(1, 12), (6,), (4, 3), (6, 2)])
def test_labels_that_do_not_fit_the_scores_are_refused(shape: tuple[int, ...]) -> None:
    batch = read_batch((INPUTS, LABELS[: torch.Size(shape).numel()].view(shape)))
    with pytest.raises(ValueError, match=r"scores of shape \(12, 3\) do not fit labels of shape"):
        AS_GIVEN.score(Net(), batch)


def test_tensors_are_moved_wherever_they_are_nested() -> None:
    packed = nn.utils.rnn.pack_sequence([torch.ones(2, 1)])
    given = {"a": [torch.ones(1), {"b": torch.ones(2)}], "c": Output(torch.ones(3), "text"), "d": None}
    moved = move(given, torch.device("meta"))
    assert moved["a"][0].is_meta
    assert moved["a"][1]["b"].is_meta
    assert moved["c"].logits.is_meta
    assert (moved["c"].aux, moved["d"]) == ("text", None)
    assert move(packed, torch.device("cpu")) is packed
    assert move(given["a"][0], torch.device("cpu")) is given["a"][0]
