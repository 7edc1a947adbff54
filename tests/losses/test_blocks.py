"""Large batches are computed in blocks of rows: the same values and gradients."""

from __future__ import annotations

import pytest
import torch

from polydistill.losses import OBJECTIVES, blocks

ROWS, CLASSES = 11, 6
IN_BLOCKS = (
    "ban",
    "ban_l",
    "hinton_kd",
    "dkd",
    "logit_standardized_kd",
    "policy_kl",
    "policy_kl_q",
    "reverse_kl",
    "jsd",
)
OF_ENSEMBLES = tuple(name for name in IN_BLOCKS if name not in ("logit_standardized_kd", "policy_kl_q"))
MASKED = ("policy_kl", "policy_kl_q", "reverse_kl", "jsd")


@pytest.fixture
def small_blocks(monkeypatch):
    """From its call on, blocks of four rows; the list fills with the number of rows of each block."""
    seen: list[int] = []
    cut = blocks.cut

    def counting(*given):
        for block in cut(*given):
            seen.append(block[0].shape[-2])
            yield block

    def use():
        monkeypatch.setattr(blocks, "cut", counting)
        monkeypatch.setattr(blocks, "BLOCK", 4 * CLASSES)
        return seen

    return use


def compute(name, student, teacher, labels, **options):
    leaf = student.clone().requires_grad_()
    loss = OBJECTIVES[name](leaf, teacher, labels, **options)
    weights = torch.linspace(1, 2, loss.numel()).view_as(loss)
    return loss.detach(), *torch.autograd.grad((loss * weights).sum(), leaf)


def draw(*shape, seed=0):
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed)) * 2


@pytest.mark.parametrize("students", [(), (2,)])
@pytest.mark.parametrize("name", IN_BLOCKS)
def test_blocks_change_nothing(name, students, small_blocks):
    student, teacher = draw(*students, ROWS, CLASSES), draw(*students, ROWS, CLASSES, seed=1)
    labels = torch.randint(CLASSES, (*students, ROWS), generator=torch.Generator().manual_seed(2))
    expected = compute(name, student, teacher, labels)
    rows = small_blocks()
    found = compute(name, student, teacher, labels)
    assert rows == ([2, 2, 2, 2, 2, 1] if students else [4, 4, 3])
    torch.testing.assert_close(found, expected, rtol=1e-6, atol=1e-6)


@pytest.mark.parametrize("name", OF_ENSEMBLES)
def test_an_ensemble_is_cut_along_its_rows(name, small_blocks):
    student, teacher = draw(ROWS, CLASSES), draw(3, ROWS, CLASSES, seed=1)
    labels = torch.arange(ROWS) % CLASSES
    expected = compute(name, student, teacher, labels)
    rows = small_blocks()
    found = compute(name, student, teacher, labels)
    assert len(rows) == 3
    torch.testing.assert_close(found, expected, rtol=1e-6, atol=1e-6)


@pytest.mark.parametrize("shape", [(CLASSES,), (ROWS, CLASSES)])
@pytest.mark.parametrize("name", MASKED)
def test_a_mask_goes_along(name, shape, small_blocks):
    student, teacher = draw(ROWS, CLASSES), draw(ROWS, CLASSES, seed=1)
    mask = draw(*shape, seed=4) > 2
    expected = compute(name, student, teacher, None, mask=mask)
    rows = small_blocks()
    found = compute(name, student, teacher, None, mask=mask)
    assert len(rows) == 3
    assert mask.any()
    torch.testing.assert_close(found, expected, rtol=1e-6, atol=1e-6)


def test_a_row_longer_than_a_block_is_a_block(small_blocks):
    student, teacher = draw(3, 5 * CLASSES), draw(3, 5 * CLASSES, seed=1)
    rows = small_blocks()
    compute("ban", student, teacher, None)
    assert rows == [1, 1, 1]


def test_blocks_can_be_mapped_and_differentiated_twice(small_blocks):
    student, teacher = draw(2, ROWS, CLASSES), draw(2, ROWS, CLASSES, seed=1)
    kl = OBJECTIVES["policy_kl"]
    expected = kl(student, teacher, None, temperature=1.0)
    rows = small_blocks()
    assert torch.equal(torch.vmap(lambda z, t: kl(z, t, None, temperature=1.0))(student, teacher), expected)
    gradient = torch.func.grad(lambda z: kl(z, teacher[0], None, temperature=1.0).sum())(student[0])
    torch.testing.assert_close(gradient, student[0].softmax(1) - teacher[0].softmax(1), atol=1e-6, rtol=0)
    twice = student[0].double().requires_grad_()
    assert torch.autograd.gradgradcheck(lambda z: kl(z, teacher[0].double(), None, temperature=1.0).sum(), (twice,))
    assert max(rows) == 4
