"""Weights of others that are damaged, or more than weights: refused in one line, never run."""

import os
import random

import pytest
import torch
from mim_core.errors import MimError
from mim_core.interop.weights import import_checkpoint, read_state
from safetensors.torch import save_file


class Evil:
    def __reduce__(self):
        return os.system, ("touch evil-was-here",)


def files(folder):
    tensors = {"a.weight": torch.arange(12.0).reshape(3, 4), "b": torch.ones(5, dtype=torch.int64)}
    torch.save({"model": tensors}, folder / "new.pth")
    torch.save({"model": tensors}, folder / "old.pth", _use_new_zipfile_serialization=False)
    save_file(tensors, folder / "own.safetensors")
    return [folder / name for name in ("new.pth", "old.pth", "own.safetensors")]


def test_whole_files_are_read(tmp_path):
    for path in files(tmp_path):
        assert read_state(path)[0]


def test_damage_is_one_line(tmp_path):
    draw = random.Random(0)
    for path in files(tmp_path):
        whole, damaged = path.read_bytes(), tmp_path / f"damaged{path.suffix}"
        contents = [whole[: draw.randrange(len(whole))] for _ in range(40)] + [b"", b"[" * 1000, bytes(2000)]
        for _ in range(150):
            content = bytearray(whole)
            for _ in range(draw.randint(1, 4)):
                content[draw.randrange(len(content))] ^= 1 << draw.randrange(8)
            contents.append(bytes(content))
        for content in contents:
            damaged.write_bytes(content)
            with pytest.raises(MimError) as refusal:  # whole ones are no weights of MAE's either
                import_checkpoint(damaged, format="mae")
            assert "Re-running" not in str(refusal.value)


@pytest.mark.parametrize("new", [True, False])
def test_code_in_a_pickle_is_not_run(tmp_path, monkeypatch, new):
    monkeypatch.chdir(tmp_path)
    torch.save({"x": Evil()}, "evil.pth", _use_new_zipfile_serialization=new)
    with pytest.raises(MimError, match=r"code in it is not run.*state_dict") as refusal:
        read_state(tmp_path / "evil.pth")
    assert "False" not in str(refusal.value)
    assert not (tmp_path / "evil-was-here").exists()


def test_pipes_and_broken_folders(tmp_path):
    os.mkfifo(tmp_path / "pipe.pth")
    with pytest.raises(MimError, match="no regular file"):
        read_state(tmp_path / "pipe.pth")
    for content in (b"{", b"[1]", b"\xff", b"[" * 100_000):
        (tmp_path / "config.json").write_bytes(content)
        with pytest.raises(MimError, match=r"config\.json is damaged"):
            read_state(tmp_path)
    (tmp_path / "config.json").unlink()
    (tmp_path / "model.safetensors.index.json").write_text("{")
    with pytest.raises(MimError, match="in several files"):
        read_state(tmp_path)
