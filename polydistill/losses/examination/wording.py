"""What a loss is, in words: its terms, their weights, and what is wrong with them."""

from __future__ import annotations

from collections.abc import Sequence

from polydistill.losses.examination.findings import Finding
from polydistill.losses.examination.fit import Explanation
from polydistill.losses.examination.readings import Reading

NEARLY = 0.999  # cosine


def say(
    objective: str,
    found: Explanation,
    weights: tuple[float, float],
    faults: Sequence[str],
    readings: Sequence[Reading],
    averaged: str,
    asked_explicitly: bool,
) -> Finding:
    """The finding for an explanation.

    Args:
        objective: what is meant.
        found: the terms of the loss.
        weights: of the mean over the rows, as they are found.
        faults: of the terms themselves.
        readings: of the weights; none where no weights are plausible.
        averaged: "averaged over the batch" or "per sample".
        asked_explicitly: the objective's weights were given.
    """
    if found.soft is not None and found.soft.another and not faults:  # its weights are not the objective's
        text = f"your loss is {name_terms(found, weights)}: not {objective}, {found.soft.another}"
        return Finding("suspicious", f"{text}; fine only if that is meant")
    alone = found.label is None and found.soft is not None and found.soft.right
    slips = list(dict.fromkeys(text for reading in readings if (text := _join_slips(reading, alone and not faults))))
    if slips and alone and not faults:
        return Finding("wrong", f"your loss {', or '.join(slips)}")
    what = name_terms(found, readings[0].weights if readings else weights, readings[0] if readings else None)
    if faults or slips:
        return Finding("wrong", f"your loss is {what}: " + "; ".join([*faults, *filter(None, [", or ".join(slips)])]))
    if readings and readings[0].asked:
        return Finding("fine", f"your loss is the objective, {averaged}" + ("" if alone else f": {what}"))
    if readings:
        return Finding("fine", f"your loss is the objective, {averaged}, with weights of its own: {what}")
    hint = _without_factor(found, weights)
    if asked_explicitly:
        others = f"{weights[1]:.4g} times the objective: a weight" if alone else f"{what}: not the weights asked for"
        return Finding("suspicious", f"your loss is {others}{hint}, if that is meant")
    names = "label_weight= and teacher_weight=" if found.label else "teacher_weight="
    text = f"your loss is {what}{hint}, {averaged}: whether these weights are meant cannot be decided; pass {names}"
    return Finding("cannot tell", text)


def _without_factor(found: Explanation, weights: tuple[float, float]) -> str:
    """The weight of the soft term if T^2 were not part of it."""
    if found.soft is None or found.soft.temperature == 1.0:
        return ""
    return f" (or {weights[1] * found.soft.temperature**2:.4g} x {found.soft.name} without T^2)"


def say_changing(found: Explanation, weights: tuple[float, float], faults: Sequence[str]) -> Finding:
    """The finding for a loss whose weights change with the scores."""
    text = f"your loss has on this batch the gradient of {name_terms(found, weights)}, with other scores other weights"
    why = "a root, a logarithm or a power of a mean does that, or a weight that follows the scores"
    if faults:
        return Finding("wrong", f"{text}: {'; '.join(faults)}; and {why}")
    return Finding("suspicious", f"{text}: {why}; fine only if that is meant")


def say_unknown(objective: str, cosine: float, coarse: bool, drawn: str) -> Finding:
    """The finding for a loss that is no sum of known terms.

    Args:
        objective: what is meant.
        cosine: of the two gradients.
        coarse: the loss is rounded to 16 bits.
        drawn: what it is at scores drawn at random; or "".
    """
    of_gradient = f"its gradient has cosine {cosine:.4f} with {objective}'s"
    if coarse:
        text = f"your loss is rounded to 16 bits, too coarse to tell what it is ({of_gradient}): let it take float32"
        return Finding("cannot tell", text)
    hint = (
        f"; at scores drawn at random it is {drawn}: does it clip scores, or choose samples by them?" if drawn else ""
    )
    if cosine > NEARLY:
        return Finding("suspicious", f"your loss is nearly the objective, and not quite: {of_gradient}{hint}")
    text = f"your loss is not {objective}, nor a known mistake in it: {of_gradient}"
    return Finding("wrong", f"{text}; fine only if another loss is meant{hint}")


def choose(said: Sequence[Finding]) -> Finding:
    """One finding for several explanations that are equally good."""
    said = list(dict.fromkeys(said))
    if len(said) == 1:
        return said[0]
    texts = [finding.text.removeprefix("your loss ") for finding in said[:3]]
    more = f", or one of {len(said) - 3} others" if len(said) > 3 else ""
    if all(finding.level == "wrong" for finding in said):
        return Finding("wrong", f"your loss {', or '.join(texts)}{more}")
    choices = ", or ".join(text.partition(":")[0] for text in texts)
    text = f"your loss {choices}{more}: on this batch these are equal, so which it is cannot be decided"
    return Finding("cannot tell", f"{text}; choose more samples with mixed labels, or another temperature")


def _join_slips(reading: Reading, alone: bool) -> str:
    """All slips of a reading; if the soft term is alone, they are slips of the loss."""
    if alone:
        return " and ".join((*reading.of_both, *reading.of_soft))
    of_all = (("it", reading.of_both), ("its label term", reading.of_label), ("its soft term", reading.of_soft))
    return ", and ".join(f"{subject} {slip}" for subject, slips in of_all for slip in slips)


def name_terms(found: Explanation, weights: tuple[float, float], reading: Reading | None = None) -> str:
    """For example "0.1 x cross-entropy + 0.9 x soft term without T^2"."""
    parts = []
    for form, weight, slips in zip(
        (found.label, found.soft), weights, (reading.of_label, reading.of_soft) if reading else ((), ()), strict=True
    ):
        if form is not None:
            lacking = " without T^2" if any(slip.startswith("lacks T^2") for slip in slips) else ""
            parts.append(f"{weight:.4g} x {form.name}{lacking}")
    return " + ".join(parts)
