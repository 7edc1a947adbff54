"""The doctor finds each fault of a set-up when it is there, and is silent when it is not."""

from __future__ import annotations

import copy
import re

import pytest
import torch
import torch.nn.functional as F
from torch import nn

from polydistill.losses import OBJECTIVES, doctor, draw_permutation, hinton_kd

CLASSES, BATCH = 10, 32


@pytest.fixture
def inputs():
    return torch.randn(BATCH, 6, generator=torch.Generator().manual_seed(0))


@pytest.fixture
def labels(teacher, inputs):
    """Such that the teacher is right in 26 of 32."""
    known = teacher(inputs).argmax(dim=1)
    known[::5] = (known[::5] + 1) % CLASSES
    return known


def build(seed: int, classes: int = CLASSES) -> nn.Module:
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        return nn.Sequential(nn.Linear(6, 16), nn.BatchNorm1d(16), nn.ReLU(), nn.Dropout(0.5), nn.Linear(16, classes))


@pytest.fixture
def student():
    return build(0)


@pytest.fixture
def teacher():
    return scaled(build(1).eval().requires_grad_(False), 5.0)


def faults(report):
    return [text for level, text in report.findings if level != "fine"]


def test_sound_set_up_is_healthy(student, teacher, inputs, labels) -> None:
    report = doctor(student, teacher, "hinton_kd", inputs, labels)
    assert report.healthy
    assert faults(report) == []
    assert report.title == "hinton_kd, 32 samples of 10 classes on cpu, plain formulas"


def test_nothing_is_changed_by_the_examination(student, teacher, inputs, labels) -> None:
    before = copy.deepcopy((student.state_dict(), teacher.state_dict()))
    state = torch.get_rng_state()
    doctor(student, teacher, "hinton_kd", inputs, labels)
    assert torch.equal(torch.get_rng_state(), state)
    for old, network in zip(before, (student, teacher), strict=True):
        assert all(torch.equal(old[name], value) for name, value in network.state_dict().items())
    assert all(parameter.grad is None for parameter in student.parameters())
    assert all(module.training for module in student.modules())
    assert not any(module.training for module in teacher.modules())


@pytest.mark.parametrize(
    ("spoil", "level", "text"),
    [
        (lambda s, t: (s, s), "wrong", "student and teacher are the same network: build another one"),
        (lambda s, t: (s, t.train()), "wrong", "the teacher is in training mode"),
        (lambda s, t: (s, lambda x: t.requires_grad_(True)(x)), "wrong", "the teacher's scores have a graph"),
        (lambda s, t: (s, t.requires_grad_(True)), "suspicious", "the teacher's weights require gradients"),
        (lambda s, t: (share(s, t), t), "wrong", r"student and teacher share weights \(0.weight\)"),
        (lambda s, t: (s.eval(), t), "suspicious", "the student is in evaluation mode"),
        (lambda s, t: (s.requires_grad_(False), t), "wrong", "no weight of the student requires a gradient"),
        (lambda s, t: (copy_of(t), t), "suspicious", "gives the teacher's scores already"),
        (lambda s, t: (s, build(3, 7).eval().requires_grad_(False)), "wrong", "teacher must be of the student's shape"),
        (lambda s, t: (s, scaled(t, 1e6)), "suspicious", "scores up to .* losses are tested up to 10,000"),
        (lambda s, t: (s, scaled(t, float("nan"))), "wrong", r"teacher must be finite or -inf, got nan at \[0, 0\]"),
        (lambda s, t: (s, scaled(t, 1e4)), "suspicious", "the targets are labels; raise the temperature"),
        (lambda s, t: (s, scaled(t, 1e-3)), "suspicious", "the targets are flat; lower the temperature"),
    ],
    ids=["same", "training", "graph", "asks", "shared", "evaluating", "frozen", "copied", "shape", "large", "nan",
         "saturated", "flat"],
)  # fmt: skip
def test_fault_is_found(student, teacher, inputs, spoil, level, text) -> None:
    report = doctor(*spoil(student, teacher), "ban", inputs)
    assert any(found == level and re.search(text, said) for found, said in report.findings), str(report)
    assert report.healthy is (level != "wrong")


def share(student, teacher):
    student[0].weight = nn.Parameter(teacher[0].weight.data)
    return student


def copy_of(teacher):
    return copy.deepcopy(teacher).train().requires_grad_(True)


def scaled(teacher, factor):
    teacher[4].weight.mul_(factor)
    teacher[4].bias.mul_(factor)
    return teacher


def constant(value, dtype):
    """A function from inputs to scores that are all this, or these of each class."""
    return lambda x: torch.full((len(x), CLASSES), value, dtype=dtype)


@pytest.mark.parametrize(
    ("student_score", "teacher_score", "dtype", "level", "text"),
    [
        (20_000.0, 0.0, torch.float16, "suspicious", r"scores up to 2e\+04 in float16, which ends at 65,504"),
        (0.0, 1e-6, torch.float16, "suspicious", "gradients of the mean vanish in float16"),
        (1e20, 0.0, torch.float32, "wrong", "the loss is not finite in 32 of 32 samples"),
        (40_000.0, -40_000.0, torch.float16, "wrong", "the gradient is not finite"),
        (1.0, 1.0, torch.float32, "wrong", "the gradient is 0 in every sample: nothing will be learned"),
    ],
    ids=["range of float16", "vanishes in float16", "loss", "gradient", "no gradient"],
)
def test_numbers_that_a_type_cannot_hold_are_found(inputs, student_score, teacher_score, dtype, level, text) -> None:
    networks = constant(student_score, dtype), constant(teacher_score, dtype)
    report = doctor(*networks, "policy_mse", inputs)
    assert any(found == level and re.search(text, said) for found, said in report.findings), str(report)
    assert report.healthy is (level != "wrong")
    sound = doctor(constant(1.0, dtype), constant(0.0, dtype), "policy_mse", inputs)
    assert faults(sound) == []


def test_temperature_is_proposed_for_a_policy(student, teacher, inputs) -> None:
    report = doctor(student, scaled(teacher, 100.0), "policy_kl", inputs, temperature=0.01)
    assert any("raise the temperature, for example to" in text for text in faults(report))


def test_label_out_of_range_is_found(student, teacher, inputs, labels) -> None:
    labels[3] = -7
    report = doctor(student, teacher, "ban_l", inputs, labels)
    assert "labels must be in [0, 10), got -7 at [3]" in faults(report)
    assert not report.healthy


BAD_LABELS = {
    "too great": torch.full((BATCH,), CLASSES),
    "negative": torch.full((BATCH,), -1),
    "nan": torch.full((BATCH,), float("nan")),
    "fractions": torch.zeros(BATCH),
    "bool": torch.zeros(BATCH, dtype=torch.bool),
    "complex": torch.zeros(BATCH, dtype=torch.complex64),
    "column": torch.zeros(BATCH, 1, dtype=torch.int64),
    "short": torch.zeros(3, dtype=torch.int64),
    "list": [0] * BATCH,
}


@pytest.mark.parametrize("bad", BAD_LABELS.values(), ids=BAD_LABELS)
@pytest.mark.parametrize("name", OBJECTIVES)
def test_labels_that_are_none_are_a_finding(student, teacher, inputs, name, bad) -> None:
    report = doctor(student, teacher, name, inputs, bad, **permuted(OBJECTIVES[name]))
    assert [text.split(" must be ")[0] for level, text in report.findings if level == "wrong"] == ["labels"]


def test_labels_may_be_of_any_type_of_integers(student, teacher, inputs, labels) -> None:
    expected = doctor(student, teacher, "ban_l", inputs, labels)
    for dtype in (torch.uint8, torch.int8, torch.int32, torch.uint16, torch.uint64):
        assert doctor(student, teacher, "ban_l", inputs, labels.to(dtype)) == expected


@pytest.mark.parametrize("shape", [(3,), (BATCH, 1), (BATCH, CLASSES + 1)])
def test_mask_of_another_shape_is_a_finding(student, teacher, inputs, shape) -> None:
    report = doctor(student, teacher, "policy_kl", inputs, mask=torch.zeros(shape, dtype=torch.bool))
    assert report.findings[-1].text.startswith("mask must be of shape")
    assert not report.healthy


def test_check_values_is_no_fault(student, teacher, inputs, labels) -> None:
    expected = doctor(student, teacher, "hinton_kd", inputs, labels)
    for wanted in (True, False):
        assert doctor(student, teacher, "hinton_kd", inputs, labels, check_values=wanted) == expected


def test_shared_batch_statistics_are_found(student, teacher, inputs) -> None:
    student[1].running_mean = teacher[1].running_mean
    report = doctor(student, teacher, "ban", inputs)
    assert "student and teacher share weights (1.running_mean): deep-copy, or build another network" in faults(report)
    assert not report.healthy


def test_shared_constant_is_only_suspicious(student, teacher, inputs) -> None:
    constant = torch.ones(3)
    for network in (student, teacher):
        network.register_buffer("constant", constant)
    report = doctor(student, teacher, "ban", inputs)
    assert faults(report) == ["student and teacher share a buffer (constant): sound only if nothing ever changes it"]
    assert report.healthy


@pytest.mark.parametrize(("start", "shared"), [(0, True), (95, True), (96, False), (97, False)])
def test_slices_of_one_buffer_are_shared_where_they_overlap(student, teacher, inputs, start, shared) -> None:
    flat = torch.randn(300, generator=torch.Generator().manual_seed(2))
    student[0].weight = nn.Parameter(flat[:96].view(16, 6))
    teacher[0].weight = nn.Parameter(flat[start : start + 96].view(16, 6), requires_grad=False)
    report = doctor(student, teacher, "ban", inputs)
    assert any("share weights (0.weight)" in text for text in faults(report)) is shared
    assert report.healthy is not shared


def test_lazy_network_can_be_examined(teacher, inputs) -> None:
    assert doctor(nn.LazyLinear(CLASSES), teacher, "ban", inputs).healthy


def test_functions_that_give_one_tensor_are_found(inputs) -> None:
    buffer = torch.randn(2 * BATCH, CLASSES, generator=torch.Generator().manual_seed(3))
    report = doctor(lambda x: buffer[:BATCH], lambda x: buffer[:BATCH], "ban", inputs)
    assert "student and teacher give one and the same tensor: the student is its own teacher" in faults(report)
    assert not report.healthy
    assert doctor(lambda x: buffer[:BATCH], lambda x: buffer[BATCH:], "ban", inputs).healthy


def test_term_without_a_say_is_named(student, teacher, inputs, labels) -> None:
    report = doctor(student, teacher, "ban_l", inputs, labels, label_weight=0.001)
    assert report.terms["label"] < 0.01
    assert sum(report.terms.values()) == pytest.approx(1.0)
    assert any(text.startswith("the term label has 0.") for text in faults(report))


T = 4.0


def tempered_kl(z, t, temperature):
    """``T^2 KL(p^T || q^T)`` with torch's own function."""
    return F.kl_div((z / temperature).log_softmax(1), (t / temperature).softmax(1), reduction="none") * temperature**2


def standardized(x):
    return (x - x.mean(1, keepdim=True)) / x.std(1, keepdim=True)


def split_of_target(z, t, y, temperature):
    """The two parts of ``dkd`` by plain probabilities, before their weights and T^2."""
    p, q, target = (t / temperature).softmax(1), (z / temperature).softmax(1), F.one_hot(y, CLASSES).bool()
    py, qy = p[target], q[target]
    of_target = py * (py / qy).log() + (1 - py) * ((1 - py) / (1 - qy)).log()
    p, q = (x[~target].view(len(x), -1) / (1 - at)[:, None] for x, at in ((p, py), (q, qy)))
    return of_target, (p * (p / q).log()).sum(1)


SUMS = {  # the terms of each objective, with the weights of ``WEIGHTS`` and a temperature of 3, written out
    "ban_l": {
        "label": lambda z, t, y: 0.5 * F.cross_entropy(z, y, reduction="none"),
        "teacher": lambda z, t, y: 2.0 * F.cross_entropy(z, t.softmax(1), reduction="none"),
    },
    "hinton_kd": {
        "label": lambda z, t, y: 0.5 * F.cross_entropy(z, y, reduction="none"),
        "teacher": lambda z, t, y: 2.0 * tempered_kl(z, t, 3.0).sum(1),
    },
    "logit_standardized_kd": {
        "label": lambda z, t, y: 0.5 * F.cross_entropy(z, y, reduction="none"),
        "teacher": lambda z, t, y: 2.0 * tempered_kl(standardized(z), standardized(t), 3.0).sum(1),
    },
    "dkd": {
        "label": lambda z, t, y: 0.5 * F.cross_entropy(z, y, reduction="none"),
        "target class": lambda z, t, y: 2.0 * 9.0 * split_of_target(z, t, y, 3.0)[0],
        "other classes": lambda z, t, y: 7.0 * 9.0 * split_of_target(z, t, y, 3.0)[1],
    },
}
WEIGHTS = {
    "ban_l": {"label_weight": 0.5, "teacher_weight": 2.0},
    "hinton_kd": {"label_weight": 0.5, "teacher_weight": 2.0, "temperature": 3.0},
    "logit_standardized_kd": {"label_weight": 0.5, "teacher_weight": 2.0, "temperature": 3.0},
    "dkd": {"label_weight": 0.5, "alpha": 2.0, "beta": 7.0, "temperature": 3.0},
}


def double_scores(student, teacher, inputs):
    with torch.no_grad():
        return student.eval()(inputs).double(), teacher(inputs).double()


def gradient_of(loss_function, z, *others):
    leaf = z.clone().requires_grad_()
    return torch.autograd.grad(loss_function(leaf, *others).sum(), leaf)[0]


@pytest.mark.parametrize("name", SUMS)
def test_share_of_a_term_is_that_of_its_gradients_norm(student, teacher, inputs, labels, name) -> None:
    report = doctor(student, teacher, name, inputs, labels, **WEIGHTS[name])
    z, t = double_scores(student, teacher, inputs)
    gradients = {term: gradient_of(loss, z, t, labels) for term, loss in SUMS[name].items()}
    norms = {term: gradient.norm(dim=1).mean() for term, gradient in gradients.items()}
    expected = {term: float(norm / sum(norms.values())) for term, norm in norms.items()}
    assert report.terms == pytest.approx(expected, rel=1e-4)
    whole = gradient_of(lambda leaf: OBJECTIVES[name](leaf, t, labels, **WEIGHTS[name]), z)
    torch.testing.assert_close(sum(gradients.values()), whole, atol=1e-6, rtol=1e-5)


@pytest.mark.parametrize(
    ("name", "options", "of_student", "factor", "labelled"),
    [
        ("ban", {}, 1.0, 1.0, False),
        ("ban", {}, 1.0, 1.0, True),
        ("policy_kl", {"temperature": 0.5}, 1.0, 1.0, False),
        ("policy_kl", {"temperature": 2.0, "mask": torch.arange(CLASSES) >= 7}, 1.0, 1.0, False),
        ("policy_kl", {"temperature": 2.0, "mask": torch.arange(CLASSES) >= 7}, 1.0, 1.0, True),
        ("hinton_kd", {"temperature": 4.0, "teacher_weight": 0.7}, 4.0, 0.7 * 4.0, False),
    ],
    ids=["ban", "ban at labels", "policy_kl", "masked", "masked, at labels", "hinton_kd"],
)
def test_shares_of_label_and_dark_knowledge_split_the_objectives_own_gradient(
    student, teacher, inputs, labels, name, options, of_student, factor, labelled
) -> None:
    """With q and p at their temperatures: factor p* (q - e) and factor (1 - p*) (q - p~), whose sum is the gradient."""
    given = labels if labelled else None
    report = doctor(student, teacher, name, inputs, given, **options)
    z, t = double_scores(student, teacher, inputs)
    whole = gradient_of(lambda leaf: OBJECTIVES[name](leaf, t, None, **options), z)
    leaves = options.get("mask", torch.zeros(CLASSES, dtype=torch.bool))
    z, t = z.masked_fill(leaves, -torch.inf), t.masked_fill(leaves, -torch.inf)
    q, p = (z / of_student).softmax(1), (t / options.get("temperature", 1.0)).softmax(1)
    e = F.one_hot(t.argmax(1) if given is None else given, CLASSES)
    confidence = (p * e).sum(1, keepdim=True)
    rest = p * (1 - e)
    parts = factor * confidence * (q - e), factor * (1 - confidence) * (q - rest / rest.sum(1, keepdim=True))
    torch.testing.assert_close(parts[0] + parts[1], whole, atol=1e-6, rtol=1e-5)
    of_label, dark = (part.norm(dim=1) for part in parts)
    expected = float((of_label / (of_label + dark)).mean())
    assert report.terms == pytest.approx({"label or best class": expected, "dark knowledge": 1 - expected}, rel=1e-4)


def test_objective_without_terms_reports_no_shares(student, teacher, inputs, labels) -> None:
    """Their gradient is one term, or no number times q - p: shares of a cross-entropy with p would be another's."""
    reported = {
        (name, given is not None)
        for name, objective in OBJECTIVES.items()
        for given in ([labels] if objective.needs_labels else [None, labels])
        if doctor(student, teacher, name, inputs, given, **permuted(objective)).terms
    }
    split = {("ban", False), ("ban", True), ("policy_kl", False), ("policy_kl", True), ("hinton_kd", False)}
    assert reported == split | {(name, True) for name in SUMS}
    assert not doctor(student, teacher, "hinton_kd", inputs, teacher_weight=0.0).terms


def permuted(objective):
    drawn = draw_permutation(BATCH, CLASSES, generator=torch.Generator().manual_seed(0))
    return {"permutation": drawn} if objective.needs_permutation else {}


@pytest.mark.parametrize("value", [float("nan"), 500.0, 1e20])
def test_scores_of_a_masked_class_change_nothing(student, teacher, inputs, value) -> None:
    def spoil(x):
        scores = teacher(x).clone()
        scores[:, 0] = value
        return scores

    mask = torch.arange(CLASSES) == 0
    sound = doctor(student, lambda x: teacher(x), "policy_kl", inputs, temperature=1.0, mask=mask)
    assert sound.terms
    assert doctor(student, spoil, "policy_kl", inputs, temperature=1.0, mask=mask) == sound


def test_dark_knowledge_without_a_say_is_not_called_a_term(student, teacher, inputs) -> None:
    """There is no weight that could be raised: what the targets say is told of the temperature."""
    said = faults(doctor(student, scaled(teacher, 1e4), "hinton_kd", inputs))
    assert any("the targets are labels" in text for text in said)
    assert not any("the term" in text for text in said)


def soft(z, t):
    return F.kl_div((z / T).log_softmax(1), (t / T).softmax(1), reduction="none")


@pytest.mark.parametrize(
    ("loss_function", "level", "text"),
    [
        (lambda z, t, y: soft(z, t).sum(1).mean() * T * T, "fine", "the objective, averaged over the batch"),
        (lambda z, t, y: soft(z, t).sum(1) * T * T, "fine", "your loss is the objective, per sample"),
        (lambda z, t, y: soft(z, t).sum() * T * T, "wrong", "your loss is summed over the batch: 32 times too large"),
        (lambda z, t, y: soft(z, t).mean() * T * T, "wrong", "averaged over the classes too: 10 times too small"),
        (lambda z, t, y: soft(z, t).sum(1).mean(), "wrong", r"your loss lacks T\^2 = 16"),
        (lambda z, t, y: soft(z, t).sum(1).mean() * T**4, "wrong", r"has a T\^2 = 16 too many"),
        (lambda z, t, y: soft(z, t).mean(), "wrong", r"classes too: 10 times too small and lacks T\^2 = 16"),
        (lambda z, t, y: soft(z, t).sum(), "wrong", r"summed over the batch: 32 times too large and lacks T\^2 = 16"),
        (lambda z, t, y: soft(z, t).sum(1).mean() * 3, "suspicious", "times the objective: a weight"),
        (lambda z, t, y: F.mse_loss(z, t), "suspicious", "squared distance of scores"),
        (lambda z, t, y: F.kl_div(z, t.softmax(1), reduction="batchmean"), "wrong", "log_softmax is missing.*no side"),
        (lambda z, t, y: soft(z.detach(), t).sum(), "wrong", "your loss has no gradient"),
        (lambda z, t, y: torch.ones((), requires_grad=True) * 2, "wrong", "your loss has no gradient with respect to"),
        (lambda z, t, y: (z * float("inf")).sum(), "wrong", "a gradient that is not finite"),
        (lambda z, t, y: soft(z, t).sum().item(), "wrong", "your loss must be a tensor, got a float"),
    ],
    ids=["mean", "per sample", "sum", "class mean", "no T2", "T4", "no T2, class mean", "no T2, sum", "weight", "mse",
         "no log", "detached", "elsewhere", "infinite", "float"],
)  # fmt: skip
def test_scale_of_ones_own_loss_is_explained(student, teacher, inputs, loss_function, level, text) -> None:
    report = doctor(
        student, teacher, "hinton_kd", inputs, temperature=T, teacher_weight=1.0, loss_function=loss_function
    )
    found, said = report.findings[-1]
    assert found == level
    assert re.search(text, said), said


def test_ensemble_as_teacher_is_examined_by_its_mean(student, inputs, labels) -> None:
    """Members sure of different classes: the mean is not, so that the targets are no labels."""
    sure = torch.eye(CLASSES)[[1, 2]] * 1e3
    report = doctor(student, lambda x: sure[:, None].expand(2, len(x), CLASSES), "ban", inputs)
    assert report.healthy
    assert any("the teacher's best class has 0.5000 on average (entropy 30%" in said for _, said in report.findings)
    one = doctor(student, lambda x: sure[:1].expand(len(x), CLASSES), "ban", inputs)
    assert any("the targets are labels" in said for _, said in one.findings)


def test_ensemble_is_wrong_for_an_objective_that_looks_at_scores(student, inputs) -> None:
    report = doctor(student, lambda x: torch.zeros(2, len(x), CLASSES), "policy_mse", inputs)
    assert report.findings[-1].level == "wrong"
    assert report.findings[-1].text.endswith("average the members' scores yourself, teacher_q.mean(0)")


def test_own_loss_of_the_library_is_the_objective(student, teacher, inputs, labels) -> None:
    report = doctor(student, teacher, "hinton_kd", inputs, labels, loss_function=lambda z, t, y: hinton_kd(z, t, y))
    said = "your loss is the objective, per sample: 0.1 x cross-entropy + 0.9 x soft term"
    assert report.findings[-1] == ("fine", said)


def test_unknown_option_is_an_error_not_a_finding(student, teacher, inputs) -> None:
    with pytest.raises(ValueError, match=r"objective ban: .*temperature"):
        doctor(student, teacher, "ban", inputs, temperature=2.0)
    with pytest.raises(ValueError, match=r"unknown objective 'bann'"):
        doctor(student, teacher, "bann", inputs)


def test_functions_may_take_the_place_of_networks(inputs) -> None:
    report = doctor(lambda x: x @ torch.eye(6), lambda x: x.flip(1), "ban", inputs)
    assert report.healthy
    assert "whether it is frozen cannot be seen" in str(report)


def test_report_is_readable(student, teacher, inputs, labels) -> None:
    text = str(doctor(student, teacher.train(), "ban_l", inputs, labels))
    lines = text.splitlines()
    assert lines[0].startswith("doctor: ban_l, 32 samples")
    assert any(line.startswith("  WRONG       the teacher is in training mode") for line in lines)
    assert lines[-1].startswith("  gradient    label ")
    assert max(map(len, lines)) <= 120


def test_factors_that_are_equal_by_chance_are_all_named(student, teacher, inputs) -> None:
    """16 samples and T = 4: 16 is the batch, and T^2."""
    report = doctor(
        student, teacher, "hinton_kd", inputs[:16], temperature=T, teacher_weight=1.0,
        loss_function=lambda z, t, y: soft(z, t).sum() * T * T,
    )  # fmt: skip
    text = report.findings[-1].text
    assert text == "your loss has a T^2 = 16 too many, or is summed over the batch: 16 times too large"


def test_policy_loss_is_not_told_of_a_t_squared_that_it_never_had(student, teacher, inputs) -> None:
    report = doctor(
        student, teacher, "policy_kl", inputs, temperature=T,
        loss_function=lambda z, t, y: F.kl_div(z.log_softmax(1), (t / T).softmax(1), reduction="batchmean") / 16,
    )  # fmt: skip
    assert report.findings[-1] == ("suspicious", "your loss is 0.0625 times the objective: a weight, if that is meant")


@pytest.mark.parametrize("scores", [lambda x: {"x": x}, lambda x: x[:0], lambda x: x[0]], ids=["dict", "empty", "1-D"])
def test_network_that_gives_no_scores_is_an_error(student, inputs, scores) -> None:
    with pytest.raises(ValueError, match="the teacher must give scores"):
        doctor(student, scores, "ban", inputs)
