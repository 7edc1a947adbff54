"""The losses once more, from the papers' formulas: float64, one sample and one class at a time, numpy and math only.

Written to differ from the library in form (loops over probabilities instead of tensor operations), so that an error
in one is not repeated in the other. Scores of -inf have probability 0; ``leaves`` names the classes of a mask.
"""

from __future__ import annotations

import math
from typing import NamedTuple

import numpy as np

INF = math.inf


def log_softmax(scores, leaves=()):
    kept = [s for i, s in enumerate(scores) if i not in leaves and s != -INF]
    top = max(kept)
    log_total = top + math.log(math.fsum(math.exp(s - top) for s in kept))
    return [-INF if i in leaves or s == -INF else s - log_total for i, s in enumerate(scores)]


def softmax(scores, leaves=()):
    return [math.exp(lp) for lp in log_softmax(scores, leaves)]


def kl(log_p, log_q):
    """sum p ln(p / q) over classes with p > 0."""
    return math.fsum(math.exp(a) * (a - b) for a, b in zip(log_p, log_q, strict=True) if math.exp(a) > 0)


def ce(p, log_q):
    return math.fsum(-a * b for a, b in zip(p, log_q, strict=True) if a > 0)


def per_row(function):
    """A function of one sample (z, t, y, leaves) -> a function of the batch."""

    def of_batch(z, t, y, mask=None, **options):
        rows = []
        for s in range(len(z)):
            leaves = () if mask is None else tuple(np.flatnonzero(np.broadcast_to(mask, np.shape(z))[s]))
            row_options = {name: value[s] if name == "permutation" else value for name, value in options.items()}
            rows.append(function(list(z[s]), list(t[s]), int(y[s]), leaves, **row_options))
        return np.array(rows)

    return of_batch


def divide(scores, temperature):
    return [s / temperature for s in scores]


def log_mean(members, temperature=1.0, leaves=()):
    """ln of the mean of the members' softmaxes: ``members[k][s]`` are the scores of member k for sample s."""
    rows = []
    for of_sample in zip(*members, strict=True):
        each = [softmax(divide(scores, temperature), leaves) for scores in of_sample]
        p = [math.fsum(column) / len(each) for column in zip(*each, strict=True)]
        rows.append([math.log(x) if x > 0 else -INF for x in p])
    return rows


class Diagnosis(NamedTuple):
    """Of one sample; see ``polydistill.losses.Diagnostics``."""

    agreement: bool
    teacher_confidence: float
    kl: float
    label_norm: float
    dark_knowledge_norm: float


def diagnose(z, members, y=None, temperature=1.0, leaves=()):
    """What is to be said of each sample with such an ensemble; ``y`` None: the gradient is split at its maxima."""
    found = []
    for s, log_p in enumerate(log_mean(members, temperature, leaves)):
        log_q = log_softmax(z[s], leaves)
        p, q = ([math.exp(x) for x in logs] for logs in (log_p, log_q))
        star = p.index(max(p)) if y is None else int(y[s])
        others = math.fsum(x for i, x in enumerate(p) if i != star)
        of_label = [p[star] * (x - (i == star)) for i, x in enumerate(q)]
        of_others = [others * x - p[i] * (i != star) for i, x in enumerate(q)]
        agreement = q.index(max(q)) == p.index(max(p))
        found.append(Diagnosis(agreement, max(p), kl(log_p, log_q), math.hypot(*of_label), math.hypot(*of_others)))
    return found


@per_row
def cross_entropy(z, t, y, leaves, label_smoothing=0.0):
    log_q = log_softmax(z)
    return -(1 - label_smoothing) * log_q[y] - label_smoothing * math.fsum(log_q) / len(z)


@per_row
def ban(z, t, y, leaves):
    return ce(softmax(t), log_softmax(z))


@per_row
def ban_l(z, t, y, leaves, label_weight=1.0, teacher_weight=1.0):
    log_q = log_softmax(z)
    return -label_weight * log_q[y] + teacher_weight * ce(softmax(t), log_q)


@per_row
def hinton_kd(z, t, y, leaves, temperature=4.0, label_weight=0.1, teacher_weight=0.9):
    soft = kl(log_softmax(divide(t, temperature)), log_softmax(divide(z, temperature)))
    return -label_weight * log_softmax(z)[y] + teacher_weight * temperature * temperature * soft


def cwtm(z, t, y):
    confidence = [max(softmax(row)) for row in t]
    total = math.fsum(confidence)
    return np.array([-len(z) * confidence[s] / total * log_softmax(z[s])[int(y[s])] for s in range(len(z))])


@per_row
def dkpp(z, t, y, leaves, permutation=()):
    p = softmax(t)
    best = p.index(max(p))
    others = [i for i in range(len(p)) if i != best]
    target = list(p)
    for place, source in enumerate(permutation):
        target[others[place]] = p[others[int(source)]]
    return ce(target, log_softmax(z))


def uniform_confidence(z, t, y):
    mean_confidence = math.fsum(max(softmax(row)) for row in t) / len(t)
    losses = []
    for zs, ts in zip(z, t, strict=True):
        p = softmax(ts)
        best = p.index(max(p))
        rest = math.fsum(p[i] for i in range(len(p)) if i != best)
        target = [mean_confidence if i == best else (1 - mean_confidence) * p[i] / rest for i in range(len(p))]
        losses.append(ce(target, log_softmax(zs)))
    return np.array(losses)


@per_row
def dkd(z, t, y, leaves, temperature=4.0, label_weight=1.0, alpha=1.0, beta=8.0):
    z_scaled, t_scaled = divide(z, temperature), divide(t, temperature)
    log_p, log_q = log_softmax(t_scaled), log_softmax(z_scaled)

    def split(log_r):
        rest = [lr for i, lr in enumerate(log_r) if i != y and lr != -INF]
        top = max(rest)
        return [log_r[y], top + math.log(math.fsum(math.exp(lr - top) for lr in rest))]

    tckd = kl(split(log_p), split(log_q))
    nckd = kl(log_softmax(t_scaled, (y,)), log_softmax(z_scaled, (y,)))
    return -label_weight * log_softmax(z)[y] + temperature**2 * (alpha * tckd + beta * nckd)


@per_row
def logit_standardized_kd(z, t, y, leaves, temperature=2.0, label_weight=0.1, teacher_weight=9.0):
    def standardize(scores):
        kept = [s for s in scores if s != -INF]
        mean = math.fsum(kept) / len(kept)
        deviation = math.sqrt(math.fsum((s - mean) ** 2 for s in kept) / (len(kept) - 1))
        return [s if s == -INF else (s - mean) / (deviation + 1e-7) for s in scores]

    soft = kl(log_softmax(divide(standardize(t), temperature)), log_softmax(divide(standardize(z), temperature)))
    return -label_weight * log_softmax(z)[y] + teacher_weight * temperature**2 * soft


@per_row
def reverse_kl(z, t, y, leaves, temperature=1.0):
    return kl(log_softmax(z, leaves), log_softmax(divide(t, temperature), leaves))


@per_row
def jsd(z, t, y, leaves, beta=0.5, temperature=1.0):
    p, q = softmax(divide(t, temperature), leaves), softmax(z, leaves)
    m = [beta * a + (1 - beta) * b for a, b in zip(p, q, strict=True)]
    of_p = math.fsum(a * math.log(a / c) for a, c in zip(p, m, strict=True) if a > 0)
    of_q = math.fsum(b * math.log(b / c) for b, c in zip(q, m, strict=True) if b > 0)
    return beta * of_p + (1 - beta) * of_q


@per_row
def policy_kl(z, t, y, leaves, temperature=0.01):
    return kl(log_softmax(divide(t, temperature), leaves), log_softmax(z, leaves))


@per_row
def policy_kl_q(z, t, y, leaves, temperature=0.01, q_weight=0.01):
    z, t = divide(z, temperature), divide(t, temperature)
    squares = [(a - b) ** 2 for i, (a, b) in enumerate(zip(z, t, strict=True)) if i not in leaves and b != -INF]
    mean = math.fsum(squares) / len(squares) if squares else 0.0
    return kl(log_softmax(t, leaves), log_softmax(z, leaves)) + q_weight * mean


@per_row
def policy_nll(z, t, y, leaves):
    best = max((i for i in range(len(t)) if i not in leaves), key=lambda i: t[i])
    return -log_softmax(z, leaves)[best]


@per_row
def policy_mse(z, t, y, leaves):
    return math.fsum((a - b) ** 2 for i, (a, b) in enumerate(zip(z, t, strict=True)) if i not in leaves and b != -INF)


@per_row
def policy_huber(z, t, y, leaves, delta=1.0):
    total = 0.0
    for i, (a, b) in enumerate(zip(z, t, strict=True)):
        if i in leaves or b == -INF:
            continue
        d = abs(a - b)
        total += d * d / 2 if d <= delta else delta * (d - delta / 2)
    return total


# (objective, options): each with its defaults and, where it has options, with others
CASES = [
    ("cross_entropy", {}),
    ("cross_entropy", {"label_smoothing": 0.1}),
    ("ban", {}),
    ("ban_l", {}),
    ("ban_l", {"label_weight": 0.3, "teacher_weight": 0.8}),
    ("hinton_kd", {}),
    ("hinton_kd", {"temperature": 2.5, "label_weight": 0.4, "teacher_weight": 0.7}),
    ("cwtm", {}),
    ("dkpp", {}),
    ("uniform_confidence", {}),
    ("dkd", {}),
    ("dkd", {"temperature": 1.5, "label_weight": 0.5, "alpha": 2.0, "beta": 3.0}),
    ("logit_standardized_kd", {}),
    ("logit_standardized_kd", {"temperature": 0.7, "label_weight": 0.4, "teacher_weight": 0.7}),
    ("reverse_kl", {}),
    ("reverse_kl", {"temperature": 0.6}),
    ("jsd", {}),
    ("jsd", {"beta": 0.2, "temperature": 0.6}),
    ("policy_kl", {}),
    ("policy_kl", {"temperature": 0.6}),
    ("policy_kl_q", {}),
    ("policy_kl_q", {"temperature": 0.6, "q_weight": 0.5}),
    ("policy_nll", {}),
    ("policy_mse", {}),
    ("policy_huber", {}),
    ("policy_huber", {"delta": 0.3}),
]
NAMES = list(dict.fromkeys(name for name, _ in CASES))
ONE_TEACHER = (
    "logit_standardized_kd",
    "policy_kl_q",
    "policy_mse",
    "policy_huber",
)  # scores that a mean of softmaxes is not
ENSEMBLED = [name for name in NAMES if name not in ("cross_entropy", *ONE_TEACHER)]
MASKED = ("reverse_kl", "jsd", "policy_kl", "policy_kl_q", "policy_nll", "policy_mse", "policy_huber")


def case_id(case):
    name, options = case
    return "-".join([name, *(f"{key}={value}" for key, value in options.items())])


def compute(name, z, t, y, **options):
    """The reference of objective ``name`` in float64, ``(batch,)``."""
    return globals()[name](z, t, y, **options)
