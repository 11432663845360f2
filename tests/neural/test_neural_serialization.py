"""Sealed files: what is written is read, and nothing else is."""

from __future__ import annotations

import json
import os
import pickle
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from safetensors.numpy import save as save_safetensors

from ope.neural import serialization
from ope.neural.serialization import load_policy, pack_labels, read_sealed, save_policy, unpack_labels, write_sealed

ARRAYS: dict[str, Any] = {
    "floats": np.linspace(0, 1, 6, dtype=np.float32).reshape(2, 3),
    "doubles": np.array([np.pi, -np.inf]),
    "keys": np.array([0, 2**64 - 1], dtype=np.uint64),
    "bytes": np.arange(5, dtype=np.uint8),
    "empty": np.zeros((1, 0)),
}
METADATA = {"name": 'with "quotes" and é', "number": 0.1, "nested": [1, None, {"a": True}]}


@pytest.fixture
def path(tmp_path: Path) -> Path:
    file = tmp_path / "thing.safetensors"
    write_sealed(file, "thing", ARRAYS, METADATA)
    return file


def test_what_is_written_is_read(path: Path) -> None:
    arrays, metadata = read_sealed(path, "thing", "test")
    assert metadata == METADATA
    assert set(arrays) == set(ARRAYS)
    for name, array in ARRAYS.items():
        assert arrays[name].dtype == array.dtype
        np.testing.assert_array_equal(arrays[name], array)


def test_equal_contents_are_equal_files(path: Path, tmp_path: Path) -> None:
    write_sealed(tmp_path / "again", "thing", dict(reversed(ARRAYS.items())), dict(reversed(METADATA.items())))
    assert (tmp_path / "again").read_bytes() == path.read_bytes()


def test_other_programs_read_it_as_safetensors(path: Path) -> None:
    from safetensors import safe_open

    with safe_open(path, framework="numpy") as file:
        np.testing.assert_array_equal(file.get_tensor("floats"), ARRAYS["floats"])
        assert json.loads(file.metadata()["ope"])["content"] == METADATA


def test_every_flipped_byte_is_refused(path: Path, tmp_path: Path) -> None:
    content = path.read_bytes()
    broken = tmp_path / "broken"
    for position in range(len(content)):
        for flip in (0x01, 0x20):
            changed = bytearray(content)
            changed[position] ^= flip
            broken.write_bytes(changed)
            with pytest.raises(ValueError, match="test: `path` must name"):
                read_sealed(broken, "thing", "test")


def test_every_truncation_and_extension_is_refused(path: Path, tmp_path: Path) -> None:
    content = path.read_bytes()
    broken = tmp_path / "broken"
    for length in range(len(content)):
        broken.write_bytes(content[:length])
        with pytest.raises(ValueError, match="must name an intact file"):
            read_sealed(broken, "thing", "test")
    broken.write_bytes(content + b"\0")
    with pytest.raises(ValueError, match="must name an intact file"):
        read_sealed(broken, "thing", "test")


def test_foreign_files_are_refused(path: Path, tmp_path: Path) -> None:
    foreign = tmp_path / "foreign"
    foreign.write_bytes(save_safetensors({"x": np.zeros(3)}, metadata={"format": "pt"}))
    with pytest.raises(ValueError, match=r"of kind 'thing', got .* of kind 'unknown'"):
        read_sealed(foreign, "thing", "test")
    foreign.write_bytes(pickle.dumps(ARRAYS))
    with pytest.raises(ValueError, match="no safetensors file"):
        read_sealed(foreign, "thing", "test")
    foreign.write_bytes((2).to_bytes(8, "little") + b"[]")
    with pytest.raises(ValueError, match="no safetensors header"):
        read_sealed(foreign, "thing", "test")
    with pytest.raises(ValueError, match=r"of kind 'ope-policy', got .* of kind 'thing'"):
        load_policy(path)


def test_another_format_version_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(serialization, "FORMAT_VERSION", 99)
    write_sealed(tmp_path / "new", "thing", ARRAYS, METADATA)
    monkeypatch.undo()
    with pytest.raises(ValueError, match=r"of format version 1, got version 99 .* load it with that version"):
        read_sealed(tmp_path / "new", "thing", "test")


def test_a_missing_file_is_a_missing_file(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError):
        load_policy(tmp_path / "nothing")


def test_a_failed_write_leaves_the_old_file(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    before = path.read_bytes()

    def fail(_source: str, _target: Path) -> None:
        raise OSError("disk full")

    monkeypatch.setattr(os, "replace", fail)
    with pytest.raises(OSError, match="disk full"):
        write_sealed(path, "thing", {"x": np.zeros(2)}, {})
    assert path.read_bytes() == before
    assert os.listdir(path.parent) == [path.name]


# -------------------------------------------------------------------- policies and labels


class Foreign:
    """Looks like a policy, but is none of this library's."""

    def get_params(self, deep: bool = True) -> dict[str, Any]:
        return {"deep": deep}

    def _pack(self) -> tuple[dict[str, Any], dict[str, Any]]:
        return {}, {}

    def _unpack(self, arrays: dict[str, Any], attributes: dict[str, Any]) -> None:
        raise AssertionError(arrays, attributes)


def test_only_classes_of_the_table_are_saved_and_loaded(tmp_path: Path) -> None:
    with pytest.raises(TypeError, match=r"must be of a class that can be loaded again .*Foreign; use pickle"):
        save_policy(Foreign(), tmp_path / "policy")
    impostor = type("BCQ", (Foreign,), {})
    with pytest.raises(TypeError, match="must be of a class that can be loaded again"):
        save_policy(impostor(), tmp_path / "policy")
    content = {"class": "os.system", "params": {}, "attributes": {}}
    write_sealed(tmp_path / "evil", serialization.POLICY_KIND, {}, content)
    with pytest.raises(ValueError, match=r"must hold a policy of this library .*got class 'os.system'"):
        load_policy(tmp_path / "evil")


def test_unknown_parameters_are_refused(tmp_path: Path) -> None:
    content = {"class": "BCQ", "params": {"gamma": 0.9, "novelty": 1}, "attributes": {}}
    write_sealed(tmp_path / "new", serialization.POLICY_KIND, {}, content)
    with pytest.raises(ValueError, match=r"BCQ has no parameter\(s\) \['novelty'\]"):
        load_policy(tmp_path / "new")


def test_every_class_of_the_table_exists() -> None:
    import importlib

    for name, module in serialization.POLICY_CLASSES.items():
        assert getattr(importlib.import_module(module), name).__name__ == name


@pytest.mark.parametrize(
    "labels",
    [
        np.array(["a", "long"]),
        np.array([0, 5]),
        np.array([0, 5], dtype=np.int8),
        np.array([False, True]),
        np.array([0.5, 1.5]),
        np.array(["a", "b"], dtype=object),
        np.array([1, 2], dtype=object),
    ],
)
def test_labels_keep_values_and_type(labels: Any) -> None:
    back = unpack_labels(json.loads(json.dumps(pack_labels(labels))))
    assert back.dtype == labels.dtype
    assert back.tolist() == labels.tolist()
    assert [type(value) for value in back.tolist()] == [type(value) for value in labels.tolist()]


def test_labels_without_a_json_form_are_refused() -> None:
    with pytest.raises(TypeError, match="action labels must be numbers, strings or booleans"):
        pack_labels(np.array(["2020-01-01"], dtype="datetime64[D]"))
    with pytest.raises(TypeError, match="action labels must be numbers, strings or booleans"):
        pack_labels(np.array([(1, 2), None], dtype=object))
