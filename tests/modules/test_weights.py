"""Files of weights for one's own module: what fits is loaded, what does not is told by name in one line."""

from __future__ import annotations

import argparse
import pickle
import sys
from pathlib import Path

import pytest
import torch
from torch import nn

from polydistill.errors import UserError
from polydistill.modules.weights import find_weights, fit_weights, load_weights


def net(classes: int = 3) -> nn.Sequential:
    return nn.Sequential(nn.Linear(2, 4), nn.Linear(4, classes))


@pytest.mark.parametrize(
    "wrap",
    [
        lambda w: w,
        lambda w: {"epoch": 3, "state_dict": w},
        lambda w: {"model": w},
        lambda w: {"net": w, "acc": 91.2},
        lambda w: {"model": {"state_dict": w}},
        # as timm stores it
        lambda w: {"state_dict": w, "args": argparse.Namespace(model="resnet18", lr=0.1), "optimizer": {"state": {}}},
    ],
)
@pytest.mark.parametrize("prefix", ["", "module.", "_orig_mod.", "_orig_mod.module.", "module._orig_mod.", "net."])
def test_weights_are_found_where_training_scripts_put_them(tmp_path: Path, wrap, prefix: str) -> None:
    trained, fresh, path = net(), net(), tmp_path / "teacher.pt"
    torch.save(wrap({prefix + name: tensor for name, tensor in trained.state_dict().items()}), path)
    fit_weights(fresh, load_weights(path), path)
    assert all(map(torch.equal, fresh.parameters(), trained.parameters()))


@pytest.mark.parametrize("entry", ["state_dict_ema", "model_ema", "ema"])
def test_averaged_weights_go_before_the_last_ones(tmp_path: Path, entry: str) -> None:
    last, averaged, fresh, path = net(), torch.optim.swa_utils.AveragedModel(net()), net(), tmp_path / "teacher.pt"
    torch.save({"model": last.state_dict(), entry: averaged.state_dict()}, path)  # names: n_averaged, module.0.weight
    found = find_weights(path)
    assert found.averages == entry
    fit_weights(fresh, found.weights, path)
    assert all(map(torch.equal, fresh.parameters(), averaged.module.parameters()))
    # averages that are no weights by name
    torch.save({"model": last.state_dict(), entry: {"decay": 0.9, "shadow_params": [torch.zeros(1)]}}, path)
    assert find_weights(path).averages == ""
    fit_weights(fresh, load_weights(path), path)
    assert all(map(torch.equal, fresh.parameters(), last.parameters()))


def test_a_module_that_averages_keeps_its_own_names(tmp_path: Path) -> None:
    averaged, path = torch.optim.swa_utils.AveragedModel(net()), tmp_path / "teacher.pt"
    torch.save(averaged.state_dict(), path)
    fresh = torch.optim.swa_utils.AveragedModel(net())
    assert not all(map(torch.equal, fresh.parameters(), averaged.parameters()))
    fit_weights(fresh, load_weights(path), path)
    assert all(map(torch.equal, fresh.parameters(), averaged.parameters()))


def test_a_file_that_holds_itself_is_refused(tmp_path: Path) -> None:
    circle: dict[str, object] = {}
    circle["model"] = circle
    torch.save(circle, tmp_path / "teacher.pt")
    with pytest.raises(UserError, match="holds no weights by name"):
        load_weights(tmp_path / "teacher.pt")


def test_short_floats_are_cast_up_and_quantised_weights_refused(tmp_path: Path) -> None:
    trained, fresh, path = net(), net(), tmp_path / "teacher.pt"
    for dtype in (torch.float16, torch.bfloat16):
        torch.save({name: tensor.to(dtype) for name, tensor in trained.state_dict().items()}, path)
        fit_weights(fresh, load_weights(path), path)
        assert fresh[0].weight.dtype == torch.float32
        assert torch.equal(fresh[0].weight, trained[0].weight.to(dtype).float())
    before = fresh[0].weight.clone()
    weights = trained[0].weight.detach()
    for weight in ((weights / 0.01).to(torch.int8), weights.to(torch.float8_e4m3fn)):
        torch.save({**trained.state_dict(), "0.weight": weight}, path)
        with pytest.raises(UserError, match=r"teacher\.pt is quantised \(0\.weight\): store the weights as floats"):
            fit_weights(fresh, load_weights(path), path)
    assert torch.equal(fresh[0].weight, before)


def test_a_compiled_module_takes_the_weights_of_a_plain_one() -> None:
    trained, fresh = net(), torch.compile(net(), backend="eager")
    fit_weights(fresh, trained.state_dict(), "teacher.pt")
    assert all(map(torch.equal, fresh.parameters(), trained.parameters()))


def test_safetensors_are_read(tmp_path: Path) -> None:
    safetensors = pytest.importorskip("safetensors.torch")
    trained, fresh, path = net(), net(), tmp_path / "teacher.safetensors"
    safetensors.save_file(trained.state_dict(), path)
    fit_weights(fresh, load_weights(str(path)), path)
    assert all(map(torch.equal, fresh.parameters(), trained.parameters()))
    path.write_bytes(b"no")
    with pytest.raises(UserError, match="is no safetensors file, or damaged"):
        load_weights(path)


def test_without_safetensors_one_line_says_how_to_get_it(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "teacher.safetensors"
    path.write_bytes(b"")
    monkeypatch.setitem(sys.modules, "safetensors", None)
    with pytest.raises(UserError, match="which is not installed: pip install safetensors"):
        load_weights(path)


def test_weights_that_share_memory_need_not_be_stored_twice(tmp_path: Path) -> None:
    tied = nn.Sequential(nn.Linear(3, 3), nn.Linear(3, 3))
    tied[1].weight = tied[0].weight
    weights = {name: tensor + 1 for name, tensor in tied.state_dict().items() if name != "1.weight"}
    fit_weights(tied, weights, "tied.pt")
    assert torch.equal(tied[1].weight, weights["0.weight"])


def test_a_foreign_file_is_told_by_its_names_in_one_line() -> None:
    foreign = {"0.weight": torch.zeros(4, 2), "1.weight": torch.zeros(5, 4)} | {
        f"head.{i}": torch.zeros(1) for i in range(5)
    }
    one = net()
    before = [parameter.clone() for parameter in one.parameters()]
    with pytest.raises(UserError) as caught:
        fit_weights(one, foreign, "foreign.pt")
    assert str(caught.value) == (
        "foreign.pt does not fit the module that build() makes: missing 0.bias, 1.bias; unexpected head.0, head.1, "
        "head.2 and 2 more; shapes 1.weight (5, 4) for (3, 4)"
    )
    assert all(map(torch.equal, one.parameters(), before))


@pytest.mark.parametrize(
    "content", [b"", b"not a file of torch", pickle.dumps(Path("x"))], ids=["empty", "text", "pickle"]
)
def test_a_file_that_is_none_of_torchs_is_refused(tmp_path: Path, content: bytes) -> None:
    path = tmp_path / "teacher.pt"
    path.write_bytes(content)
    with pytest.raises(UserError, match="is damaged, or holds more than weights"):
        load_weights(path)


def test_what_is_no_mapping_of_weights_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "teacher.pt"
    for found in ([torch.zeros(1)], {}, {"epoch": 3}):
        torch.save(found, path)
        with pytest.raises(UserError, match="holds no weights by name"):
            load_weights(path)
    with pytest.raises(UserError, match=r"there is no file .*missing\.pt"):
        load_weights(tmp_path / "missing.pt")
