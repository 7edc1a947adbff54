"""Arrays and tables of arrays are treated alike."""

import numpy as np
import torch
from gymnasium import spaces

from polydistill_agents.networks.observations import count_rows, each, example, leaves, take, to_tensors

TABLE = {"b": np.arange(6.0).reshape(3, 2), "a": np.array([1, 2, 3])}


def test_a_table_is_treated_array_by_array() -> None:
    assert count_rows(TABLE) == count_rows(TABLE["a"]) == 3
    assert [value.shape for value in leaves(TABLE)] == [(3,), (3, 2)]
    rows = take(TABLE, np.array([False, True, True]))
    assert rows["a"].tolist() == [2, 3]
    assert each(len, rows) == {"b": 2, "a": 2}


def test_tensors_keep_type_and_values_of_arrays_that_lie_anyhow() -> None:
    turned = np.arange(6, dtype=np.uint8).reshape(2, 3).T
    tensors = to_tensors({"x": turned}, "cpu")
    assert isinstance(tensors, dict)
    assert tensors["x"].dtype == torch.uint8
    assert tensors["x"].tolist() == turned.tolist()


def test_an_example_lies_in_its_space() -> None:
    space = spaces.Dict(
        {
            "box": spaces.Box(2.0, 3.0, (2,), np.float32),
            "pixels": spaces.Box(0, 255, (1, 4, 4), np.uint8),
            "place": spaces.Discrete(5),
            "keys": spaces.MultiBinary(3),
        }
    )
    rows = example(space, 2)
    assert isinstance(rows, dict)
    for name, inner in space.items():
        assert all(inner.contains(row if row.shape else inner.dtype.type(row)) for row in rows[name]), name
    assert rows["place"].shape == (2,)
