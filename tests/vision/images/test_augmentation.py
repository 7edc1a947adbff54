"""polydistill.vision.augmentation: the recipe of Wide-ResNet, drawn beforehand, done on whole batches."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from polydistill.vision.images.augmentation import Normalizer, draw_plan, take_batch
from polydistill.vision.images.data import ImageSet, Normalization


def image_set(n: int = 8) -> ImageSet:
    generator = torch.Generator().manual_seed(0)
    images = torch.randint(0, 256, (n, 32, 32, 3), dtype=torch.uint8, generator=generator)
    return ImageSet(images, torch.arange(n))


def test_a_batch_is_numpys_reflection_padding_crop_and_flip() -> None:
    data = image_set()
    plan = torch.tensor([[3, 0, 0, 0], [1, 1, 8, 8], [5, 1, 0, 7], [0, 0, 4, 4], [7, 1, 4, 4], [2, 0, 2, 6]])
    images, labels = take_batch(data, plan)
    assert labels.tolist() == [3, 1, 5, 0, 7, 2]
    for result, (index, flip, row, column) in zip(images.numpy(), plan.tolist(), strict=True):
        padded = np.pad(data.images[index].numpy(), ((4, 4), (4, 4), (0, 0)), mode="reflect")
        crop = padded[row : row + 32, column : column + 32]
        assert np.array_equal(result, crop[:, ::-1] if flip else crop)


def test_the_middle_without_flip_is_the_image_itself() -> None:
    data = image_set()
    plan = draw_plan(8, seed=0, generation=0, epoch=0, augment=False)
    images, labels = take_batch(data, plan)
    assert torch.equal(images, data.images[labels])


def test_a_plan_visits_every_image_once_and_uses_every_flip_and_offset() -> None:
    plan = draw_plan(5000, seed=1, generation=2, epoch=3)
    assert plan[:, 0].sort().values.tolist() == list(range(5000))
    assert plan[:, 1].float().mean() == pytest.approx(0.5, abs=0.03)
    for column in (2, 3):
        shares = plan[:, column].bincount(minlength=9) / 5000
        assert len(shares) == 9
        assert shares.tolist() == pytest.approx([1 / 9] * 9, abs=0.02)


def test_flips_and_offsets_do_not_follow_the_image_or_each_other() -> None:
    plan = draw_plan(20_000, seed=1, generation=0, epoch=0).double()
    correlations = torch.corrcoef(plan.T) - torch.eye(4)
    assert correlations.abs().max() < 0.03


def test_epochs_generations_and_seeds_have_plans_of_their_own_and_equal_ones_agree() -> None:
    plans = [draw_plan(500, *key) for key in ((0, 0, 0), (1, 0, 0), (0, 1, 0), (0, 0, 1))]
    for index, plan in enumerate(plans):
        for other in plans[index + 1 :]:
            assert (plan[:, 0] == other[:, 0]).float().mean() < 0.05
            assert not torch.equal(plan[:, 2], other[:, 2])
    assert torch.equal(plans[3], draw_plan(500, 0, 0, 1))


def test_flips_alone_are_those_of_the_whole_augmentation() -> None:
    whole, flips = draw_plan(50, 0, 1, 2), draw_plan(50, 0, 1, 2, augment="flip")
    assert torch.equal(flips[:, :2], whole[:, :2])
    assert flips[:, 2:].unique().tolist() == [4], "the middle of the padded image"
    assert whole[:, 2:].unique().tolist() == list(range(9))


def test_the_order_is_the_same_with_and_without_augmentation() -> None:
    assert torch.equal(draw_plan(50, 0, 0, 0)[:, 0], draw_plan(50, 0, 0, 0, augment=False)[:, 0])


def test_drawing_leaves_the_global_generator_alone() -> None:
    before = torch.random.get_rng_state()
    draw_plan(50, 0, 0, 0)
    assert torch.equal(torch.random.get_rng_state(), before)


def test_normalised_pixels_have_the_sets_mean_and_deviation_taken_off() -> None:
    normalizer = Normalizer.of(Normalization((0.5, 0.25, 0.1), (0.5, 0.25, 0.2)))
    images = torch.zeros(1, 32, 32, 3, dtype=torch.uint8)
    images[0, 0, 0] = torch.tensor([255, 0, 51], dtype=torch.uint8)
    floats = normalizer(images)
    assert floats.shape == (1, 3, 32, 32)
    assert floats.is_contiguous(memory_format=torch.channels_last)
    assert floats[0, :, 0, 0].tolist() == pytest.approx([1.0, -1.0, 0.5], abs=1e-6)
    assert floats[0, :, 5, 5].tolist() == pytest.approx([-1.0, -1.0, -0.5], abs=1e-6)
