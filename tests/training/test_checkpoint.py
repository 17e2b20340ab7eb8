import pytest
import torch

from anyvit.errors import AnyViTError, BundleError, SettingError
from anyvit.training.checkpoint import LAST, PREVIOUS, read_checkpoint, recall, remove_checkpoints, write_checkpoint


def test_last_and_previous_are_kept(tmp_path):
    assert read_checkpoint(tmp_path) is None
    for step in (1, 2, 3):
        write_checkpoint(tmp_path, {"step": step, "weights": torch.full((4,), step)})
    assert read_checkpoint(tmp_path)["step"] == 3
    assert sorted(path.name for path in tmp_path.iterdir()) == [LAST, PREVIOUS]


def test_damaged_last_falls_back_to_previous(tmp_path):
    for step in (1, 2):
        write_checkpoint(tmp_path, {"step": step, "weights": torch.ones(1000)})
    whole = (tmp_path / LAST).read_bytes()
    for size in (0, 1, len(whole) // 2, len(whole) - 1):
        (tmp_path / LAST).write_bytes(whole[:size])
        assert read_checkpoint(tmp_path)["step"] == 1
    (tmp_path / LAST).unlink()  # killed between the two renames
    assert read_checkpoint(tmp_path)["step"] == 1
    (tmp_path / PREVIOUS).write_bytes(b"")
    with pytest.raises(BundleError, match=r"previous.ckpt in .* cannot be read: remove the folder"):
        read_checkpoint(tmp_path)


def test_code_in_a_checkpoint_is_not_run(tmp_path):
    torch.save({"step": print}, tmp_path / LAST)
    with pytest.raises(BundleError):
        read_checkpoint(tmp_path)


def test_full_disk_leaves_the_last_checkpoint(tmp_path):
    write_checkpoint(tmp_path, {"step": 1})
    (tmp_path / f".partial-{LAST}").symlink_to("/dev/full")
    with pytest.raises(AnyViTError, match=f"{tmp_path} cannot be written to: No space left.* the same command"):
        write_checkpoint(tmp_path, {"step": 2, "weights": torch.zeros(100_000)})
    assert read_checkpoint(tmp_path)["step"] == 1
    assert [path.name for path in tmp_path.iterdir()] == [LAST]


def test_decisions_are_made_once_and_settings_are_guarded(tmp_path):
    settings = {"lr": 0.1, "crop_scale": (0.5, 1.0)}
    assert recall(tmp_path, settings, lambda: {"threads": 1}) == {"threads": 1}
    assert recall(tmp_path, settings, lambda: {"threads": 2}) == {"threads": 1}
    with pytest.raises(SettingError, match=r"holds a training with lr 0.1, not 0.2"):
        recall(tmp_path, {**settings, "lr": 0.2}, lambda: {})


def test_all_is_removed(tmp_path):
    recall(tmp_path, {}, dict)
    write_checkpoint(tmp_path, {})
    write_checkpoint(tmp_path, {})
    remove_checkpoints(tmp_path)
    assert not list(tmp_path.iterdir())
