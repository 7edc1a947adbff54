"""The replay gives back exactly the stacks that were put in, and stores each frame once."""

from __future__ import annotations

import time

import numpy as np
import pytest
import torch
from gymnasium import spaces
from hypothesis import given, settings
from hypothesis import strategies as st

from polydistill_agents.distillation.frame_replay import FrameReplay, open_replay
from polydistill_agents.networks.observations import leaves


class FakeGames:
    """Games of frames that are told apart by their pixels; each ends when ``ends`` says so."""

    def __init__(self, n_envs: int, stack: int = 4, shape: tuple[int, int] = (3, 2), seed: int = 0) -> None:
        self.generator = np.random.default_rng(seed)
        self.stacks = np.zeros((n_envs, stack, *shape), dtype=np.uint8)
        self.frames_shown = 0

    def step(self, starts: np.ndarray) -> np.ndarray:
        """The next observations; where ``starts``, the first of a game: one new frame behind black ones."""
        self.stacks = self.stacks.copy()
        self.stacks[starts] = 0
        self.stacks[:, :-1] = self.stacks[:, 1:]
        self.stacks[:, -1] = self.generator.integers(1, 256, self.stacks[:, -1].shape)
        self.frames_shown += len(starts)
        return self.stacks


def fill(replay: FrameReplay, starts: np.ndarray, seed: int = 0) -> tuple[np.ndarray, np.ndarray]:
    """Put in ``len(starts)`` steps; all observations and scores, (steps * n_envs, ...), oldest first."""
    games = FakeGames(replay.n_envs, replay.stack, replay.frame_shape, seed)
    observations, scores = [], []
    for row in starts:
        observations.append(games.step(row))
        scores.append(games.generator.normal(size=(replay.n_envs, 3)).astype(np.float32))
        replay.add(observations[-1], torch.from_numpy(scores[-1]), row)
    return np.concatenate(observations), np.concatenate(scores)


def random_starts(steps: int, n_envs: int, probability: float, seed: int = 0) -> np.ndarray:
    starts = np.random.default_rng(seed).random((steps, n_envs)) < probability
    starts[0] = True
    return starts


def assert_holds_the_newest(replay: FrameReplay, observations: np.ndarray, scores: np.ndarray) -> None:
    kept = len(replay)
    stacks, labels = replay.gather(torch.arange(kept))
    np.testing.assert_array_equal(stacks.numpy(), observations[len(observations) - kept :])
    np.testing.assert_array_equal(labels.numpy(), scores[len(scores) - kept :])


def test_every_stack_comes_back_as_it_went_in_across_the_borders_of_games():
    replay = FrameReplay(400, 4, 4, (3, 2), 3)
    starts = random_starts(100, 4, 0.05)
    assert starts[1:].sum() > 5
    observations, scores = fill(replay, starts)
    assert len(replay) == 400
    assert_holds_the_newest(replay, observations, scores)


def test_a_full_ring_holds_the_newest_samples():
    replay = FrameReplay(64 * 4, 4, 4, (3, 2), 3)
    observations, scores = fill(replay, random_starts(500, 4, 0.002))
    assert len(replay) == 256
    assert_holds_the_newest(replay, observations, scores)


@settings(max_examples=150, deadline=None)
@given(
    n_envs=st.integers(1, 4),
    n_rows=st.integers(1, 12),
    stack=st.integers(1, 4),
    steps=st.integers(1, 60),
    probability=st.sampled_from([0.0, 0.02, 0.3, 0.9, 1.0]),
    seed=st.integers(0, 2**16),
)
def test_whatever_games_do_the_newest_samples_come_back_as_they_went_in(
    n_envs, n_rows, stack, steps, probability, seed
):
    replay = FrameReplay(n_rows * n_envs, n_envs, stack, (2, 2), 3)
    observations, scores = fill(replay, random_starts(steps, n_envs, probability, seed), seed)
    assert 7 / 8 * min(steps, n_rows) <= len(replay) // n_envs <= min(steps, n_rows)
    assert_holds_the_newest(replay, observations, scores)


def observe(kind: str, steps: int = 60, n_envs: int = 2, stack: int = 4) -> np.ndarray:
    """Observations that no one-frame slide explains, ``(steps, n_envs, stack, 3, 2)``, but for half of "changes"."""
    generator = np.random.default_rng(0)
    frames = generator.integers(0, 256, (steps + 4 * stack, n_envs, 3, 2), dtype=np.uint8)
    sliding = np.stack([frames[i : i + stack].swapaxes(0, 1) for i in range(steps)])
    if kind == "newest first":
        return sliding[:, :, ::-1]
    if kind == "colours":  # planes of one frame, new in each step
        return np.stack([frames[stack * i % steps :][:stack].swapaxes(0, 1) for i in range(steps)])
    if kind == "stacked colours":
        return np.stack([frames[2 * i % steps : 2 * i % steps + stack].swapaxes(0, 1) for i in range(steps)])
    if kind == "changes":  # slides, then does not, then does again
        return np.concatenate([sliding[:20], sliding[20:40, :, ::-1], sliding[40:]])
    return np.where(generator.random((steps, n_envs, 1, 1, 1)) < 0.1, 7, sliding).astype(np.uint8)  # "now and then"


@pytest.mark.parametrize("kind", ["newest first", "colours", "stacked colours", "changes", "now and then"])
@pytest.mark.parametrize("n_rows", [7, 50, 64])
def test_observations_that_do_not_slide_come_back_as_they_went_in_and_all_that_fit(kind, n_rows):
    observations = observe(kind)
    replay = FrameReplay(2 * n_rows, 2, 4, (3, 2), 3)
    scores = np.arange(60 * 2 * 3, dtype=np.float32).reshape(60, 2, 3)
    starts = np.zeros((60, 2), dtype=bool)
    for i in range(60):
        replay.add(observations[i], torch.from_numpy(scores[i]), starts[i])
        assert len(replay) >= 7 / 8 * min(2 * (i + 1), 2 * n_rows)
        assert_holds_the_newest(
            replay, *(values[: i + 1].reshape(-1, *values.shape[2:]) for values in (observations, scores))
        )
    assert replay.full == (n_rows < 60)


def test_a_stack_of_one_frame_is_stored_once():
    replay = FrameReplay(40, 2, 1, (3, 2), 3)
    observations, scores = fill(replay, random_starts(30, 2, 0.1))
    assert_holds_the_newest(replay, observations, scores)
    assert replay._frames_added == 60


def test_looking_whether_stacks_slide_takes_little_of_a_step_of_play():
    """16 games take 5 ms and more in the emulator, and as much again in the teacher."""
    replay = FrameReplay(16, 16, 4, (84, 84), 6)
    observations = np.random.default_rng(0).integers(0, 256, (16, 4, 84, 84), dtype=np.uint8)
    replay.add(observations, torch.zeros(16, 6), np.ones(16, dtype=bool))
    moved = np.concatenate([observations[:, 1:], observations[:, :1]], axis=1)
    seconds = []
    for _ in range(20):
        started = time.process_time()
        assert replay._slides(moved).all()
        seconds.append(time.process_time() - started)
    assert min(seconds) < 0.002


def test_one_long_game_beside_games_of_one_step_keeps_its_stack():
    replay = FrameReplay(8, 8, 4, (2, 2), 3)
    starts = np.ones((40, 8), dtype=bool)
    starts[1:, 0] = False
    observations, scores = fill(replay, starts)
    assert len(replay) == 8
    assert_holds_the_newest(replay, observations, scores)


def test_a_game_of_n_steps_takes_n_frames_and_those_of_its_first_stack():
    replay = FrameReplay(400, 4, 4, (3, 2), 3)
    starts = random_starts(100, 4, 0.05)
    fill(replay, starts)
    assert replay._frames_added == 400 + 3 * starts.sum()


def test_the_first_stack_is_whole_even_if_nobody_says_that_a_game_starts():
    replay = FrameReplay(8, 2, 4, (3, 2), 3)
    observations = np.random.default_rng(0).integers(0, 256, (2, 4, 3, 2), dtype=np.uint8)
    replay.add(observations, torch.zeros(2, 3), np.zeros(2, dtype=bool))
    np.testing.assert_array_equal(replay.gather(torch.arange(2))[0].numpy(), observations)


def test_what_was_put_in_is_copied():
    replay = FrameReplay(2, 2, 4, (3, 2), 3)
    observations, scores, starts = np.ones((2, 4, 3, 2), dtype=np.uint8), torch.ones(2, 3), np.zeros(2, dtype=bool)
    replay.add(observations, scores, starts)
    observations[:], scores[:] = 7, 7.0
    stacks, labels = replay.gather(torch.arange(2))
    assert (stacks == 1).all()
    assert (labels == 1).all()
    assert not starts.any(), "the caller's array stays as it was"


def test_batches_draw_every_sample_equally_often_and_only_from_the_given_generator():
    replay = FrameReplay(40, 4, 4, (3, 2), 3)
    observations, _ = fill(replay, random_starts(10, 4, 0.1))
    state = torch.get_rng_state()
    first, second = (list(replay.batches(100, 40, torch.Generator().manual_seed(seed))) for seed in (1, 1))
    assert torch.equal(torch.get_rng_state(), state)
    assert all(torch.equal(a, b) for one, two in zip(first, second, strict=True) for a, b in zip(one, two, strict=True))
    assert first[0][0].shape == (40, 4, 3, 2)
    assert not torch.equal(first[0][0], first[1][0])
    newest = [tuple(stack[-1].ravel()) for stack in observations]
    drawn = [tuple(stack[-1].flatten().tolist()) for stacks, _ in first for stack in stacks]
    counts = np.array([drawn.count(frame) for frame in newest])
    assert counts.sum() == 4000
    assert ((counts > 60) & (counts < 140)).all(), "100 each, give or take four standard deviations"


TABLE = spaces.Dict({"near": spaces.Box(-1, 1, (3,)), "far": spaces.Box(0, 255, (2, 2), np.uint8)})


@pytest.mark.parametrize("at_once", [1, 500, 2**18])
@pytest.mark.parametrize("space", [spaces.Box(-1, 1, (3,)), TABLE, spaces.Box(0, 255, (4, 40, 40), np.uint8)])
def test_batches_that_are_gathered_at_once_are_those_gathered_one_by_one(monkeypatch, space, at_once):
    replay = open_replay(space, 24, 2, 3)
    for _ in range(12):
        observations = [space.sample() for _ in range(2)]
        if isinstance(space, spaces.Dict):
            rows = {name: np.stack([each[name] for each in observations]) for name in space}
        else:
            rows = np.stack(observations)
        replay.add(rows, torch.randn(2, 3), np.zeros(2, dtype=bool))
    drawn = torch.randint(24, (5, 7), generator=torch.Generator().manual_seed(3))
    monkeypatch.setattr("polydistill_agents.distillation.replay.GATHERED_AT_ONCE", at_once)
    found = list(replay.batches(5, 7, torch.Generator().manual_seed(3)))
    assert len(found) == 5
    for (seen, scores), samples in zip(found, drawn, strict=True):
        expected, their_scores = replay.gather(samples)
        assert torch.equal(scores, their_scores)
        assert all(torch.equal(one, other) for one, other in zip(leaves(seen), leaves(expected), strict=True))


def test_an_empty_replay_says_so():
    with pytest.raises(ValueError, match="empty"):
        next(iter(FrameReplay(8, 2, 4, (3, 2), 3).batches(1, 4, torch.Generator())))


@pytest.mark.parametrize(("capacity", "n_envs"), [(0, 2), (1, 2), (7, 2)])
def test_a_capacity_of_no_whole_step_is_refused(capacity, n_envs):
    with pytest.raises(ValueError, match="multiple of 2 games"):
        FrameReplay(capacity, n_envs, 4, (3, 2), 3)


def test_ten_hours_of_play_fit_in_six_gibibytes():
    """540,000 steps, all 18 actions: the tensors on the meta device have every size, and take no memory."""
    replay = FrameReplay(540_000, 16, 4, (84, 84), 18, device="meta")
    assert replay.n_bytes < 6 * 2**30
    assert replay.n_bytes > 540_000 * 84 * 84, "each sample has a frame of its own"
    frames_as_stacks = 4 * 540_000 * 84 * 84
    assert replay.n_bytes < frames_as_stacks / 3.8


def test_n_bytes_is_the_memory_of_every_tensor():
    replay = FrameReplay(320, 16, 4, (84, 84), 18)
    tensors = [value for value in vars(replay).values() if isinstance(value, torch.Tensor)]
    assert replay.n_bytes == sum(tensor.untyped_storage().nbytes() for tensor in tensors)
    assert len(tensors) == 3


def test_gathering_costs_little_beside_an_update():
    """A batch of 128 is 3.6 MB; an update of a Nature-CNN with it takes 50 ms and more on such a core."""
    replay = FrameReplay(4_000, 8, 4, (84, 84), 6)
    generator = np.random.default_rng(0)
    observations = generator.integers(0, 256, (8, 4, 84, 84), dtype=np.uint8)
    for _ in range(500):
        replay.add(observations, torch.zeros(8, 6), np.zeros(8, dtype=bool))
    draws = torch.Generator().manual_seed(0)
    seconds = []
    for _ in range(20):
        started = time.process_time()
        list(replay.batches(1, 128, draws))
        seconds.append(time.process_time() - started)
    assert min(seconds) < 0.02
