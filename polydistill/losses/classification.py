r"""Losses of classifiers: labels, born-again students, and Hinton's knowledge distillation.

Furlanello et al. 2018, "Born-Again Neural Networks" (sections 3.1, 3.2 and Table 2); Hinton, Vinyals and Dean 2015,
"Distilling the Knowledge in a Neural Network" (section 2).

Symbols: z student scores, t teacher scores, y label, T temperature; q = softmax(z), p = softmax(t), and with an
upper index T the softmax of the scores divided by T.

The contract: ``(batch, classes)`` scores in, ``(batch,)`` out, never reduced; the teacher is detached, computation
is in at least float32, and a class whose teacher score is -inf has p = 0.
"""

from __future__ import annotations

from torch import Tensor

from polydistill.losses.backend import Rows, numbers
from polydistill.losses.blocks import by_rows
from polydistill.losses.checks import (
    accept_labels,
    accept_pair,
    accept_single,
    check_fraction,
    check_temperature,
    check_weight,
    inspect_values,
    promote,
)
from polydistill.losses.description import Description, computed
from polydistill.losses.ignored import find_counted, set_aside
from polydistill.losses.probabilities import (
    add_label_term,
    ensemble_log_probabilities,
    kl_divergence,
    label_cross_entropy,
    soft_cross_entropy,
    student_log_probabilities,
    teacher_log_probabilities,
)


@computed
def cross_entropy(
    student: Tensor,
    labels: Tensor,
    *,
    label_smoothing: float = 0.0,
    ignore_index: int | None = None,
    check_values: bool = False,
) -> Description:
    r"""Cross-entropy with the labels: how generation 0 learns.

    .. math:: -\sum_i \big((1 - \varepsilon) [i = y] + \varepsilon / n\big) \ln q_i

    The gradient with respect to z is q minus the target (Furlanello et al. 2018, eq. 6, for no smoothing).

    Args:
        student: ``(batch, classes)`` scores, floating, finite. Gradient flows.
        labels: ``(batch,)`` integers in ``[0, classes)``, or ``(batch, classes)`` probabilities.
        label_smoothing: the share of the target that is spread over all n classes, in [0, 1].
        ignore_index: a label that marks padding: the sample's loss is 0 and has no gradient, see
            :mod:`~polydistill.losses.ignored`. None: no label is ignored, not even -100.
        check_values: also check that scores are finite and labels in range (waits for the device).

    Returns:
        ``(batch,)`` in nats, float32 (float64 for float64 input), >= 0.

    Raises:
        ValueError: a shape, device, ``label_smoothing`` or value is out of range.
        TypeError: an argument of another type.

    Example:
        >>> cross_entropy(torch.zeros(1, 4), torch.tensor([2])).item()  # ln 4
        1.3862943649291992
    """
    student = accept_single(student)
    labels = accept_labels(student, labels, probabilities=True)
    counted = find_counted(labels, ignore_index)
    labels = set_aside(labels, counted)
    check_fraction("label_smoothing", label_smoothing)
    if check_values:
        inspect_values(student, labels=labels)
    given, rows = numbers.Target(label_weight=1.0, smoothing=label_smoothing), Rows(student, labels=labels)
    return Description("label", given, rows, _cross_entropy, {"label_smoothing": label_smoothing}, counted)


def _cross_entropy(student: Tensor, labels: Tensor, *, label_smoothing: float) -> Tensor:
    return label_cross_entropy(promote(student), labels, label_smoothing)


@computed
def ban(student: Tensor, teacher: Tensor, *, check_values: bool = False) -> Description:
    r"""Born-again network: cross-entropy with the teacher's predictions, without labels and at T = 1.

    .. math:: -\sum_i p_i \ln q_i, \quad p = \mathrm{softmax}(t), \; q = \mathrm{softmax}(z)

    The gradient with respect to z is q - p (Furlanello et al. 2018, eq. 5). At equality the loss is the teacher's
    entropy, not 0.

    Args:
        student: ``(batch, classes)`` scores, floating, finite. Gradient flows.
        teacher: ``(batch, classes)`` scores; ``-inf`` excludes a class. Or ``(members, batch, classes)``: an ensemble,
            whose softmaxes are averaged. Detached.
        check_values: also check that scores are finite (waits for the device).

    Returns:
        ``(batch,)`` in nats, float32 (float64 for float64 input), >= 0.

    Raises:
        ValueError: the shapes or devices differ or are not 2-D, or a value is out of range.
        TypeError: an argument of another type.

    Example:
        >>> round(ban(torch.zeros(1, 2), torch.tensor([[3.0, 1.0]])).item(), 4)  # the student knows nothing: ln 2
        0.6931
    """
    student, teacher = accept_pair(student, teacher, check_values=check_values)
    return Description("soft", numbers.Target(teacher_weight=1.0), Rows(student, teacher), _ban)


@by_rows
def _ban(student: Tensor, teacher: Tensor) -> Tensor:
    teacher = ensemble_log_probabilities(teacher) if teacher.dim() > student.dim() else promote(teacher)
    return soft_cross_entropy(teacher.softmax(dim=-1), student_log_probabilities(student))


@computed
def ban_l(
    student: Tensor,
    teacher: Tensor,
    labels: Tensor,
    *,
    label_weight: float = 1.0,
    teacher_weight: float = 1.0,
    ignore_index: int | None = None,
    check_values: bool = False,
) -> Description:
    r"""Born-again network with labels: cross-entropy with the labels plus cross-entropy with the teacher.

    .. math:: -w_L \ln q_y - w_T \sum_i p_i \ln q_i

    Furlanello et al. 2018, Table 2 ("BAN+L"). The paper never states the weights: 1 and 1 is our choice, and the
    gradient is (w_L + w_T) times that of the mean target.

    Args:
        student: ``(batch, classes)`` scores, floating, finite. Gradient flows.
        teacher: ``(batch, classes)`` scores; ``-inf`` excludes a class. Or ``(members, batch, classes)``: an ensemble,
            whose softmaxes are averaged. Detached.
        labels: ``(batch,)`` integers in ``[0, classes)``, or ``(batch, classes)`` probabilities.
        label_weight: w_L >= 0.
        teacher_weight: w_T >= 0.
        ignore_index: a label that marks padding: the sample's loss is 0 and has no gradient, see
            :mod:`~polydistill.losses.ignored`. None: no label is ignored, not even -100.
        check_values: also check that scores are finite and labels in range (waits for the device).

    Returns:
        ``(batch,)`` in nats, float32 (float64 for float64 input), >= 0.

    Raises:
        ValueError: a shape, device, weight or value is out of range.
        TypeError: an argument of another type.

    Example:
        >>> round(ban_l(torch.zeros(1, 2), torch.tensor([[3.0, 1.0]]), torch.tensor([0])).item(), 4)  # 2 ln 2
        1.3863
    """
    student, teacher = accept_pair(student, teacher)
    labels = accept_labels(student, labels, probabilities=True)
    counted = find_counted(labels, ignore_index)
    labels = set_aside(labels, counted)
    check_weight("label_weight", label_weight)
    check_weight("teacher_weight", teacher_weight)
    if check_values:
        inspect_values(student, teacher, labels)
    given, rows = numbers.Target(teacher_weight, label_weight), Rows(student, teacher, labels)
    options = {"label_weight": label_weight, "teacher_weight": teacher_weight}
    return Description("soft_label", given, rows, _ban_l, options, counted)


@by_rows
def _ban_l(student: Tensor, teacher: Tensor, labels: Tensor, *, label_weight: float, teacher_weight: float) -> Tensor:
    return add_label_term(_ban(student, teacher) * teacher_weight, promote(student), labels, label_weight)


@computed
def hinton_kd(
    student: Tensor,
    teacher: Tensor,
    labels: Tensor | None = None,
    *,
    temperature: float = 4.0,
    label_weight: float = 0.1,
    teacher_weight: float = 0.9,
    ignore_index: int | None = None,
    check_values: bool = False,
) -> Description:
    r"""Knowledge distillation: both sides tempered, the soft term times T^2, plus cross-entropy with the labels.

    .. math:: -w_L \ln q_y + w_T \, T^2 \sum_i p^T_i (\ln p^T_i - \ln q^T_i)

    Hinton et al. 2015, section 2. The soft term's gradient, T (q^T - p^T), keeps its size when T is changed; for T
    to infinity the term becomes half the squared distance of the centred scores, divided by the classes. Departure:
    KL instead of cross-entropy, which differs by the teacher's entropy (no gradient), so that equal scores give 0.
    The defaults are the usual ones on CIFAR-100 (T = 4, weights 0.1 and 0.9).

    Args:
        student: ``(batch, classes)`` scores, floating, finite. Gradient flows.
        teacher: ``(batch, classes)`` scores; ``-inf`` excludes a class. Or ``(members, batch, classes)``: an ensemble,
            whose tempered softmaxes are averaged. Detached.
        labels: ``(batch,)`` integers in ``[0, classes)``, or ``(batch, classes)`` probabilities; None leaves the
            label term out.
        temperature: T > 0, of both sides.
        label_weight: w_L >= 0.
        teacher_weight: w_T >= 0; T^2 comes on top.
        ignore_index: a label that marks padding: the sample's loss is 0 and has no gradient, see
            :mod:`~polydistill.losses.ignored`. None: no label is ignored, not even -100.
        check_values: also check that scores are finite and labels in range (waits for the device).

    Returns:
        ``(batch,)`` in nats, float32 (float64 for float64 input), >= 0 up to rounding.

    Raises:
        ValueError: a shape, device, ``temperature``, weight or value is out of range.
        TypeError: an argument of another type.

    Example:
        >>> student, teacher = torch.zeros(1, 2), torch.tensor([[900.0, 0.0]])  # soft term: 4^2 ln 2
        >>> round(hinton_kd(student, teacher, torch.tensor([0])).item() / 0.6931472, 4)  # 0.1 + 0.9 * 16
        14.5
    """
    student, teacher = accept_pair(student, teacher)
    labels = None if labels is None else accept_labels(student, labels, probabilities=True)
    counted = find_counted(labels, ignore_index)
    labels = None if labels is None else set_aside(labels, counted)
    check_temperature(temperature)
    check_weight("label_weight", label_weight)
    check_weight("teacher_weight", teacher_weight)
    if check_values:
        inspect_values(student, teacher, labels)
    kind, scale = "kl" if labels is None else "kl_label", 1.0 / temperature
    given = numbers.Target(teacher_weight * temperature**2, label_weight, t_scale=scale, z_scale=scale)
    options = {"temperature": temperature, "label_weight": label_weight, "teacher_weight": teacher_weight}
    return Description(kind, given, Rows(student, teacher, labels), _hinton_kd, options, counted)


@by_rows
def _hinton_kd(
    student: Tensor,
    teacher: Tensor,
    labels: Tensor | None = None,
    *,
    temperature: float,
    label_weight: float,
    teacher_weight: float,
) -> Tensor:
    log_p = teacher_log_probabilities(teacher, None, temperature, ensemble=teacher.dim() > student.dim())
    soft = kl_divergence(log_p, student_log_probabilities(student, temperature=temperature))
    return add_label_term(soft * (teacher_weight * temperature**2), promote(student), labels, label_weight)
