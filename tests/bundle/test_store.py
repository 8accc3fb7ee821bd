"""Bundles: what was written is read, and a crash at any moment leaves an old or a new one."""

from __future__ import annotations

import builtins
import json
import os
import random
import shutil
import signal
import subprocess
import sys
import time

import numpy as np
import pytest
import safetensors.torch
import torch

from recstack import bundle
from recstack.bundle import Piece, store
from recstack.errors import BundleError


def example(value: int) -> dict[str, Piece]:
    return {
        "model": Piece("recstack.x:Y", {"hidden": [value, 2]}, {"w": torch.full((7, 3), float(value))}),
        "encoder": Piece("recstack.x:Z", {}, {"ids": np.full(5, value)}),
    }


def check_whole(path, allowed) -> int:
    """The bundle at path is one of `example(value)`, all of its parts of one value."""
    found = bundle.read(path)
    value = found.meta["value"]
    assert value in allowed
    assert found.pieces["model"].config == {"hidden": [value, 2]}
    assert found.pieces["model"].tensors["w"].tolist() == [[float(value)] * 3] * 7
    assert found.pieces["encoder"].tensors["ids"].tolist() == [value] * 5
    assert found.files == {"notes.txt": str(value)}
    return value


def save(path, value: int) -> None:
    bundle.write(path, example(value), {"value": value}, {"notes.txt": str(value)})


# ---- round trip


@pytest.mark.parametrize(
    "dtype", ["float64", "float32", "float16", "bfloat16", "int64", "int32", "int8", "uint8", "bool"]
)
@pytest.mark.parametrize("shape", [(), (0,), (4, 3), (2, 0, 3)])
def test_torch_tensors_come_back_bit_for_bit(tmp_path, dtype, shape):
    tensor = (torch.randn(shape) * 50).to(getattr(torch, dtype))
    bundle.write(tmp_path / "b", {"p": Piece("a:B", {}, {"t": tensor})})
    back = bundle.read(tmp_path / "b").pieces["p"].tensors["t"]
    assert back.dtype == tensor.dtype
    assert back.shape == tensor.shape
    assert torch.equal(back, tensor)


@pytest.mark.parametrize("dtype", ["float64", "float32", "int64", "int32", "uint16", "uint8", "bool", ">i4"])
def test_numpy_arrays_come_back_as_torch_tensors(tmp_path, dtype):
    array = np.arange(12).reshape(3, 4).astype(dtype)[:, ::2]
    array.flags.writeable = False
    bundle.write(tmp_path / "b", {"p": Piece("a:B", {}, {"t": array})})
    assert np.array_equal(bundle.read(tmp_path / "b").pieces["p"].tensors["t"].numpy(), array)


def test_views_of_one_storage_and_not_a_number_are_saved_as_they_are(tmp_path):
    arena = torch.randn(10, 4)
    arena[3, 2], arena[4, 1] = float("nan"), float("-inf")
    tensors = {"all": arena, "tied": arena, "part": arena[2:5], "turned": arena.T}
    bundle.write(tmp_path / "b", {"p": Piece("a:B", {}, tensors)})
    back = bundle.read(tmp_path / "b").pieces["p"].tensors
    for name, tensor in tensors.items():
        torch.testing.assert_close(back[name], tensor, rtol=0, atol=0, equal_nan=True)


def test_the_tensor_file_is_what_the_safetensors_library_writes(tmp_path):
    tensors = {"b": torch.randn(3, 2), "a": torch.arange(5, dtype=torch.int8), "c": torch.randn(4, dtype=torch.float64)}
    bundle.write(tmp_path / "b", {"p": Piece("a:B", {}, tensors)})
    ours = next((tmp_path / "b").glob("files-*/p.safetensors")).read_bytes()
    assert ours == safetensors.torch.save(tensors)


def test_meta_and_text_files(tmp_path):
    bundle.write(
        tmp_path / "b", {}, {"auc": np.float64(0.5), "bad": float("nan"), "n": (1, 2)}, {"schema.json": "{é}\r\n"}
    )
    found = bundle.read(tmp_path / "b")
    assert found.meta == {"auc": 0.5, "bad": None, "n": [1, 2]}
    assert found.files == {"schema.json": "{é}\r\n"}


def test_a_missing_piece_is_named_with_what_there_is(tmp_path):
    save(tmp_path / "b", 1)
    with pytest.raises(BundleError, match="no piece 'ranker'; it has encoder, model"):
        bundle.read(tmp_path / "b").piece("ranker")


def test_changing_what_was_read_does_not_change_the_file(tmp_path):
    save(tmp_path / "b", 1)
    bundle.read(tmp_path / "b").pieces["model"].tensors["w"].fill_(9)
    check_whole(tmp_path / "b", {1})


def test_a_bundle_can_be_saved_over_the_one_it_was_read_from(tmp_path):
    save(tmp_path / "b", 1)
    found = bundle.read(tmp_path / "b")
    bundle.write(tmp_path / "b", found.pieces, found.meta, found.files)
    check_whole(tmp_path / "b", {1})


def test_foreign_files_stay_and_own_leftovers_go(tmp_path):
    path = tmp_path / "b"
    save(path, 1)
    (path / "events.jsonl").write_text("mine")
    (path / "files-000000000000").mkdir()
    (path / "files-000000000000" / "half").write_text("x")
    (path / ".manifest-000000000000.tmp").write_text("{")
    check_whole(path, {1})
    save(path, 2)
    check_whole(path, {2})
    folder = json.loads((path / "manifest.json").read_text())["folder"]
    assert sorted(p.name for p in path.iterdir()) == sorted(["events.jsonl", "manifest.json", folder])


@pytest.mark.parametrize(
    ("pieces", "files", "message"),
    [
        ({"../x": Piece("a:B")}, {}, "not a name"),
        ({"": Piece("a:B")}, {}, "not a name"),
        ({"p": Piece("a:B", {"x": float("inf")})}, {}, "finite"),
        ({"p": Piece("a:B", {"x": object()})}, {}, "not JSON"),
        ({"p": Piece("a:B", {"x": {1: 2}})}, {}, "not JSON"),
        ({"p": Piece("a:B", {}, {"t": [1, 2]})}, {}, "'t' is a list"),
        ({"p": Piece("a:B", {}, {"t": np.array(["a"])})}, {}, "'t' has type str"),
        ({"p": Piece("a:B", {}, {"t": torch.eye(3).to_sparse()})}, {}, "cannot be saved"),
        ({}, {"a/b": ""}, "not a name"),
        ({}, {".hidden": ""}, "not a name"),
        ({}, {"p.safetensors": ""}, "bundle itself"),
    ],
)
def test_what_cannot_be_saved_is_named_and_the_old_bundle_stays(tmp_path, pieces, files, message):
    save(tmp_path / "b", 1)
    before = sorted(p.name for p in (tmp_path / "b").iterdir())
    with pytest.raises(BundleError, match=message):
        bundle.write(tmp_path / "b", pieces, files=files)
    check_whole(tmp_path / "b", {1})
    assert sorted(p.name for p in (tmp_path / "b").iterdir()) == before


def test_a_path_that_is_a_file_is_refused(tmp_path):
    (tmp_path / "b").write_text("x")
    with pytest.raises(BundleError, match="is a file"):
        save(tmp_path / "b", 1)
    with pytest.raises(BundleError):
        bundle.read(tmp_path / "b")


# ---- altered bundles


def parts(path):
    return sorted(p for p in path.rglob("*") if p.is_file())


@pytest.mark.parametrize("which", range(4))
def test_any_truncated_or_missing_file_is_refused(tmp_path, which):
    path = tmp_path / "b"
    save(path, 1)
    file = parts(path)[which]
    content = file.read_bytes()
    for size in {0, len(content) // 2, len(content) - 1}:
        file.write_bytes(content[:size])
        for verify in (True, False):
            with pytest.raises(BundleError):
                bundle.read(path, verify=verify)
    file.unlink()
    with pytest.raises(BundleError):
        bundle.read(path)
    file.mkdir()
    with pytest.raises(BundleError):
        bundle.read(path)


def test_any_flipped_bit_is_found(tmp_path):
    path = tmp_path / "b"
    save(path, 1)
    chance = random.Random(0)
    for file in parts(path):
        content = file.read_bytes()
        for place in chance.sample(range(len(content)), 40 if len(content) > 40 else len(content)):
            changed = bytearray(content)
            changed[place] ^= 1 << chance.randrange(8)
            file.write_bytes(changed)
            try:
                found = bundle.read(path)
            except BundleError:
                pass
            else:  # a flip in the white space of the manifest changes nothing that is read
                assert file.name == "manifest.json"
                assert found.pieces["model"].config == {"hidden": [1, 2]}
        file.write_bytes(content)
    check_whole(path, {1})


def forge(path, change):
    """Rewrite the manifest as an attacker would: with its checksum made right again."""
    manifest = json.loads((path / "manifest.json").read_text())
    manifest.pop("sha256")
    change(manifest)
    manifest["sha256"] = store._fingerprint(manifest)
    (path / "manifest.json").write_text(json.dumps(manifest))


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda m: m.update(format=2), "format 2, and RecStack .* reads format 1"),
        (lambda m: m.pop("format"), "does not say its format"),
        (lambda m: m.update(format="1"), "does not say its format"),
        (lambda m: m.pop("pieces"), "malformed.*pieces"),
        (lambda m: m.update(files=[]), "malformed.*object"),
        (lambda m: m["files"]["notes.txt"].update(size="1"), "malformed.*size"),
        (lambda m: m["pieces"]["model"].pop("class"), "malformed.*class"),
        (lambda m: m.update(folder=".."), "folder '..'"),
        (lambda m: m.update(folder="files-000000000000/../.."), "folder"),
        (lambda m: m["files"].update({"../../secret": {"sha256": "", "size": 1}}), "not a name"),
        (lambda m: m["files"].update({"/etc/passwd": {"sha256": "", "size": 1}}), "not a name"),
        (lambda m: m["pieces"].update({"../x": {"class": "a:B", "config": {}}}), "not a name"),
        (lambda m: m["files"].update({"more": {"sha256": "", "size": 1}}), "missing"),
        (lambda m: m["files"]["notes.txt"].update(sha256="0" * 64), "checksum"),
    ],
)
def test_a_forged_manifest_is_refused_with_one_sentence(tmp_path, change, message):
    save(tmp_path / "b", 1)
    forge(tmp_path / "b", change)
    with pytest.raises(BundleError, match=message) as error:
        bundle.read(tmp_path / "b")
    assert "\n" not in str(error.value)


@pytest.mark.parametrize("text", [b"", b"{", b"[]", b"null", b"\xff\xfe", b"[" * 100_000, b'{"format": 1}'])
def test_a_manifest_that_is_not_ours_is_refused(tmp_path, text):
    save(tmp_path / "b", 1)
    (tmp_path / "b" / "manifest.json").write_bytes(text)
    with pytest.raises(BundleError):
        bundle.read(tmp_path / "b")


def test_no_bundle_is_said_so(tmp_path):
    for path in (tmp_path, tmp_path / "nothing"):
        with pytest.raises(BundleError, match=r"no manifest\.json"):
            bundle.read(path)


def test_a_file_that_is_no_safetensors_is_refused(tmp_path):
    save(tmp_path / "b", 1)
    file = next((tmp_path / "b").glob("files-*/model.safetensors"))
    file.write_bytes(b"\xff" * 64)
    sums = {"sha256": store._sha256(file), "size": 64}
    forge(tmp_path / "b", lambda m: m["files"].update({"model.safetensors": sums}))
    with pytest.raises(BundleError, match="not a readable safetensors"):
        bundle.read(tmp_path / "b")


# ---- crashes


class Killed(BaseException):
    pass


class Faults:
    """Counts the calls that touch the disk; call number `n` fails, in one of several ways."""

    def __init__(self, monkeypatch, n: int, way: str):
        self.calls, self.n, self.way, self.dead = 0, n, way, False
        for module, name in (
            (os, "mkdir"),
            (os, "open"),
            (os, "fsync"),
            (os, "replace"),
            (shutil, "rmtree"),
            (os, "unlink"),
        ):
            monkeypatch.setattr(module, name, self.faulty(getattr(module, name)))
        monkeypatch.setattr(store, "open", self.open, raising=False)

    def faulty(self, real):
        def call(*args, **kwargs):
            if self.now():
                if self.way == "after":
                    real(*args, **kwargs)
                self.fail()
            return real(*args, **kwargs)

        return call

    def now(self) -> bool:
        self.calls += 1
        return self.dead or self.calls == self.n

    def fail(self):
        if self.way == "error":
            raise OSError(28, "No space left on device")
        self.dead = True  # a killed process runs no clean-up either: from here on, everything fails
        raise Killed

    def open(self, file, mode):
        if self.now():
            self.fail()
        stream = builtins.open(file, mode)  # noqa: SIM115 (handed to the caller)
        real = stream.write if "w" in mode else None
        if real is None:
            return stream
        faults = self

        class Stream:
            def __enter__(self):
                return self

            def __exit__(self, *_):
                stream.close()

            def write(self, block):
                if faults.now():
                    real(block[: len(block) // 2])
                    faults.fail()
                return real(block)

            def __getattr__(self, name):
                return getattr(stream, name)

        return Stream()


@pytest.mark.parametrize("way", ["error", "before", "after"])
@pytest.mark.parametrize("first", [True, False])
def test_a_failure_at_every_step_leaves_the_old_or_the_new_bundle(tmp_path, monkeypatch, way, first):
    seen = set()
    for n in range(1, 1000):
        path = tmp_path / str(n)
        if not first:
            save(path, 1)
        with monkeypatch.context() as patch:
            faults = Faults(patch, n, way)
            try:
                save(path, 2)
                finished = True
            except (OSError, Killed):
                finished = False
        if faults.calls < n:
            break
        if first and not (path / "manifest.json").exists():
            with pytest.raises(BundleError, match="no manifest"):
                bundle.read(path)
            seen.add(None)
        else:
            seen.add(check_whole(path, {2} if first or finished else {1, 2}))
        save(path, 3)  # the next writer is not disturbed, and cleans up
        check_whole(path, {3})
        assert len(list(path.iterdir())) == 2
    assert n > 12
    assert seen == {None if first else 1, 2}


def test_a_full_disk_leaves_nothing_behind(tmp_path, monkeypatch):
    save(tmp_path / "b", 1)
    with monkeypatch.context() as patch:
        Faults(patch, 6, "error")
        with pytest.raises(OSError, match="No space"):
            save(tmp_path / "b", 2)
    assert len(list((tmp_path / "b").iterdir())) == 2
    check_whole(tmp_path / "b", {1})


def test_a_reader_whose_bundle_is_replaced_reads_the_new_one(tmp_path, monkeypatch):
    path = tmp_path / "b"
    save(path, 1)
    real, times = store._read, []

    def replaced(path, manifest, verify):
        if not times:
            times.append(1)
            save(path, 2)
        return real(path, manifest, verify)

    monkeypatch.setattr(store, "_read", replaced)
    check_whole(path, {2})


WRITER = """
import sys, itertools, torch
from recstack import bundle
from recstack.bundle import Piece
path = sys.argv[1]
print("ready", flush=True)
for i in itertools.count():
    tensors = {str(k): torch.full((20_000,), float(i)) for k in range(4)}
    bundle.write(path, {"model": Piece("a:B", {"i": i}, tensors), "other": Piece("a:B", {}, tensors)}, {"i": i})
"""


@pytest.mark.slow
def test_kill_9_at_random_moments_never_leaves_half_a_bundle(tmp_path):
    path, chance = tmp_path / "b", random.Random(5)
    for _ in range(8):
        writer = subprocess.Popen([sys.executable, "-c", WRITER, str(path)], stdout=subprocess.PIPE)
        writer.stdout.readline()
        while not (path / "manifest.json").exists():
            time.sleep(0.01)
        time.sleep(chance.random() * 0.2)
        writer.send_signal(signal.SIGKILL)
        writer.communicate()
        found = bundle.read(path)
        last = found.meta["i"]
        assert found.pieces["model"].config == {"i": last}
        for piece in found.pieces.values():
            assert all(tensor.eq(last).all() for tensor in piece.tensors.values())
    save(path, 1)
    assert len(list(path.iterdir())) == 2


@pytest.mark.slow
def test_two_writers_and_a_reader_do_not_disturb_each_other(tmp_path):
    path = tmp_path / "b"
    writers = [subprocess.Popen([sys.executable, "-c", WRITER, str(path)], stdout=subprocess.PIPE) for _ in range(2)]
    try:
        for writer in writers:
            writer.stdout.readline()
        while not (path / "manifest.json").exists():
            time.sleep(0.01)
        for _ in range(50):
            found = bundle.read(path)
            for piece in found.pieces.values():
                assert all(tensor.eq(found.meta["i"]).all() for tensor in piece.tensors.values())
        assert all(writer.poll() is None for writer in writers)
    finally:
        for writer in writers:
            writer.kill()
            writer.communicate()
