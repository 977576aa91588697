"""Pools of pictures: every form and mode, hostile archives, copies, splits, depth maps, sequences, messages."""

from __future__ import annotations

import bz2
import gzip
import io
import json
import lzma
import pickle
import shutil
import subprocess
import sys
import tarfile
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image, ImageOps

from fovea.tasks import archives, near_duplicates, photographs, pool_pictures, pool_sources
from fovea.tasks.near_duplicates import fingerprint, groups, pairs
from fovea.tasks.pool import BuiltIn
from fovea.tasks.pool_sources import FilePool, open_pool
from fovea.tasks.scenes import SPLITS, Split
from fovea.types import UserError

NAMES = [name for split in SPLITS for name in photographs.names(split)]
"""60 different photographs."""


def photo(i: int, size: tuple[int, int] | None = None) -> Image.Image:
    picture = photographs.load(NAMES[i])
    return picture.resize(size, Image.Resampling.BICUBIC) if size else picture.copy()


def smooth(seed: int, size: tuple[int, int] = (64, 48)) -> Image.Image:
    """A picture of random blobs, different for every seed, cheap to make."""
    cells = np.random.default_rng(seed).integers(0, 256, (6, 8, 3), np.uint8)
    return Image.fromarray(cells).resize(size, Image.Resampling.BICUBIC)


def fill(folder: Path, n: int, first: int = 1000) -> Path:
    """A folder with `n` different pictures."""
    folder.mkdir(parents=True, exist_ok=True)
    for i in range(n):
        smooth(first + i).save(folder / f"blob{i:03d}.png", compress_level=1)
    return folder


def everything(source: Any, **options: Any) -> FilePool:
    """All pictures of a source as one pool."""
    pool = open_pool(source, "train", transductive=True, **options)
    assert isinstance(pool, FilePool)
    return pool


def names(pool: Any) -> list[str]:
    return [pool.name(i) for i in range(len(pool))]


def levels(picture: Image.Image) -> np.ndarray:
    return np.asarray(picture, np.int16)


# --- formats and modes ------------------------------------------------------------------------------------


def _sixteen() -> Image.Image:
    grey = np.asarray(smooth(1).convert("L"), np.uint16) * 257
    return Image.fromarray(grey)


FORMS: dict[str, Callable[[], tuple[Image.Image, dict[str, Any]]]] = {
    "grey.png": lambda: (smooth(1).convert("L"), {}),
    "one_bit.png": lambda: (smooth(1).convert("1"), {}),
    "sixteen.png": lambda: (_sixteen(), {}),
    "sixteen.tif": lambda: (_sixteen(), {}),
    "float.tif": lambda: (Image.fromarray(np.asarray(smooth(1).convert("L"), np.float32) / 255), {}),
    "palette.png": lambda: (smooth(1).convert("P", palette=Image.Palette.ADAPTIVE), {}),
    "alpha.png": lambda: (smooth(1).convert("RGBA"), {}),
    "grey_alpha.png": lambda: (smooth(1).convert("LA"), {}),
    "cmyk.jpg": lambda: (smooth(1).convert("CMYK"), {"quality": 95}),
    "grey.jpeg": lambda: (smooth(1).convert("L"), {"quality": 95}),
    "color.JPG": lambda: (smooth(1), {"quality": 95}),
    "still.webp": lambda: (smooth(1), {"quality": 95}),
    "still.gif": lambda: (smooth(1), {}),
    "plain.bmp": lambda: (smooth(1), {}),
    "plain.ppm": lambda: (smooth(1), {}),
    "new.jp2": lambda: (smooth(1), {}),
    "two_frames.gif": lambda: (smooth(1), {"save_all": True, "append_images": [smooth(2)]}),
    "two_pages.tif": lambda: (smooth(1), {"save_all": True, "append_images": [smooth(2)]}),
}


@pytest.mark.parametrize("name", FORMS)
def test_every_form_and_mode_shows_the_picture_that_was_written(tmp_path: Path, name: str) -> None:
    picture, options = FORMS[name]()
    picture.save(tmp_path / name, **options)
    pool = everything(tmp_path)
    assert names(pool) == [name]
    shown = pool.picture(0)
    assert shown.mode == "RGB"
    assert shown.size == (64, 48)
    truth = smooth(1)
    if name.startswith(("grey", "sixteen", "float", "one_bit")):
        shown, truth = shown.convert("L"), truth.convert("L")
    # Dithering of one bit and of palettes is averaged out; JPEG at 95 is off by a few levels.
    cell = (16, 12)
    off = np.abs(
        levels(shown.resize(cell, Image.Resampling.BOX)) - levels(truth.resize(cell, Image.Resampling.BOX))
    )
    assert off.mean() < (25 if name.startswith("one_bit") else 8)


def test_transparency_is_laid_on_white(tmp_path: Path) -> None:
    picture = smooth(1).convert("RGBA")
    picture.putalpha(Image.new("L", (64, 48), 0))
    picture.save(tmp_path / "clear.png")
    assert levels(everything(tmp_path).picture(0)).min() == 255


@pytest.mark.parametrize("form", ["jpg", "png", "webp"])
@pytest.mark.parametrize("orientation", range(1, 9))
def test_a_pool_turns_pictures_as_their_exif_says(tmp_path: Path, form: str, orientation: int) -> None:
    upright = photo(0, (96, 64))
    # What a camera stores so that the turn of EXIF 2.32, table 6 gives the upright picture back.
    undo = {
        2: Image.Transpose.FLIP_LEFT_RIGHT, 3: Image.Transpose.ROTATE_180, 4: Image.Transpose.FLIP_TOP_BOTTOM,
        5: Image.Transpose.TRANSPOSE, 6: Image.Transpose.ROTATE_90, 7: Image.Transpose.TRANSVERSE,
        8: Image.Transpose.ROTATE_270,
    }  # fmt: skip
    stored = upright.transpose(undo[orientation]) if orientation > 1 else upright
    exif = Image.Exif()
    exif[0x0112] = orientation
    stored.save(tmp_path / f"turned.{form}", exif=exif, quality=95)
    pool = everything(tmp_path)
    assert pool.picture(0).size == (96, 64)
    assert np.abs(levels(pool.picture(0)) - levels(upright)).mean() < 6
    # Capped ones too: the turn comes after the draft.
    small = everything(tmp_path, max_pixels=1536).picture(0)
    assert small.size == (48, 32)
    assert np.abs(levels(small) - levels(upright.resize((48, 32), Image.Resampling.BICUBIC))).mean() < 8


def test_turned_by_exif_and_stored_upright_are_one_photograph(tmp_path: Path) -> None:
    upright = photo(0, (96, 64))
    upright.save(tmp_path / "a.png")
    exif = Image.Exif()
    exif[0x0112] = 6
    upright.transpose(Image.Transpose.ROTATE_90).save(tmp_path / "b.jpg", exif=exif, quality=95)
    assert everything(tmp_path).removed == (("b.jpg", "a.png"),)


# --- the cap and the cache --------------------------------------------------------------------------------


@pytest.mark.parametrize("form", ["jpg", "png"])
def test_large_pictures_are_scaled_down_and_stay(tmp_path: Path, form: str) -> None:
    photo(3, (1600, 1200)).save(tmp_path / f"large.{form}", compress_level=1)
    photo(4, (80, 60)).save(tmp_path / f"small.{form}")
    pool = everything(tmp_path, max_pixels=100_000)
    # sqrt(100,000 / 1,920,000) = 0.22822: 365.1 x 273.9.
    assert pool.picture(0).size == (365, 273)
    assert pool.picture(1).size == (80, 60)
    assert np.abs(levels(pool.picture(0)) - levels(photo(3, (365, 273)))).mean() < 6


def test_what_is_decoded_is_counted_and_kept(tmp_path: Path) -> None:
    pool = everything(fill(tmp_path, 5))
    assert (pool.decoded, pool.decode_seconds) == (0, 0.0)
    first = [pool.picture(i) for i in range(5)]
    assert pool.decoded == 5
    spent = pool.decode_seconds
    assert spent > 0
    assert all(pool.picture(i) is first[i] for i in range(5))
    assert (pool.decoded, pool.decode_seconds) == (5, spent)


def test_the_cache_is_bounded(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    # 64 x 48 x 4 = 12,288 bytes a picture: two fit into 25,000.
    cache = pool_sources.PictureCache(25_000)
    monkeypatch.setattr(pool_sources, "CACHE", cache)
    pool = everything(fill(tmp_path, 5))
    for i in (0, 1, 2, 3, 4):
        pool.picture(i)
    assert cache.bytes == 24_576
    pool.picture(4)
    assert pool.decoded == 5
    pool.picture(0)
    assert pool.decoded == 6


def test_every_file_is_read_once_for_all_splits(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    fill(tmp_path, 120)
    read: list[str] = []
    real = pool_pictures._read
    monkeypatch.setattr(pool_pictures, "_read", lambda ref, most: read.append(str(ref)) or real(ref, most))
    for split in ("train", "test"):
        open_pool(tmp_path, split)
    assert len(read) == len(set(read)) == 120
    smooth(5).save(tmp_path / "blob000.png")  # written anew: read anew
    open_pool(tmp_path, "train")
    assert len(read) == 121


def test_a_picture_that_changes_under_a_pool_is_noticed(tmp_path: Path) -> None:
    pool = everything(fill(tmp_path, 2))
    smooth(5, (50, 50)).save(tmp_path / "blob001.png")
    with pytest.raises(UserError, match=r"blob001\.png has changed since the pool was opened"):
        pool.picture(1)
    (tmp_path / "blob000.png").unlink()
    with pytest.raises(UserError, match=r"blob000\.png does not exist"):
        pool.picture(0)


# --- what is refused, what is left out --------------------------------------------------------------------


def test_bad_pictures_are_named_and_counted(tmp_path: Path) -> None:
    fill(tmp_path, 3)
    (tmp_path / "a_text.png").write_text("no picture")
    (tmp_path / "b_empty.jpg").touch()
    held = io.BytesIO()
    photo(0).save(held, "JPEG")
    (tmp_path / "c_cut.jpg").write_bytes(held.getvalue()[:-400])
    with pytest.raises(UserError) as error:
        everything(tmp_path)
    said = str(error.value)
    assert "a_text.png is not a picture that can be read" in said
    assert "(2 more bad pictures)" in said
    (tmp_path / "a_text.png").unlink()
    with pytest.raises(UserError, match=r"b_empty\.jpg holds no bytes.*\(1 more bad pictures\)"):
        everything(tmp_path)
    (tmp_path / "b_empty.jpg").unlink()
    with pytest.raises(UserError, match=r"c_cut\.jpg cannot be read \(.*truncated"):
        everything(tmp_path)


def test_a_bomb_is_refused_by_its_header(tmp_path: Path) -> None:
    fill(tmp_path, 2)
    # A PNG that says 30,000 x 30,000 and holds nothing: decoding it would take 2.7 GB.
    import struct
    import zlib

    def chunk(kind: bytes, data: bytes) -> bytes:
        return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))

    head = struct.pack(">IIBBBBB", 30_000, 30_000, 8, 2, 0, 0, 0)
    bomb = b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", head) + chunk(b"IDAT", b"") + chunk(b"IEND", b"")
    (tmp_path / "bomb.png").write_bytes(bomb)
    with pytest.raises(UserError, match=r"bomb\.png has .*more than 100 megapixels"):
        everything(tmp_path)
    with pytest.raises(UserError, match=r"blob000\.png has 64 x 48 pixels, more than 0\.001 megapixels"):
        everything(fill(tmp_path / "b", 2), megapixels=0.001)


def test_megapixels_hold_for_a_picture_that_a_wider_pool_has_read(tmp_path: Path) -> None:
    everything(fill(tmp_path, 2))
    with pytest.raises(UserError, match=r"more than 0\.001 megapixels"):
        everything(tmp_path, megapixels=0.001)


def test_raw_and_heic_are_refused_by_name(tmp_path: Path) -> None:
    fill(tmp_path, 2)
    (tmp_path / "IMG_1.HEIC").write_bytes(b"....ftypheic")
    with pytest.raises(UserError, match=r"IMG_1\.HEIC is HEIC, which is not read; export it as JPEG"):
        everything(tmp_path)


def test_what_is_left_out_is_said(tmp_path: Path) -> None:
    fill(tmp_path / "pictures", 2)
    (tmp_path / "README.txt").write_text("x")
    (tmp_path / "labels.json").write_text("{}")
    (tmp_path / "more.txt").write_text("x")
    (tmp_path / ".thumbs").mkdir()
    smooth(9).save(tmp_path / ".thumbs" / "t.png")
    smooth(10, (200, 31)).save(tmp_path / "icon.png")
    (tmp_path / "loop").symlink_to(tmp_path, target_is_directory=True)
    pool = everything(tmp_path)
    assert names(pool) == ["pictures/blob000.png", "pictures/blob001.png"]
    assert pool.notes == (
        "1 hidden files",
        "1 links to folders",
        "3 files that are no pictures by their endings (.txt 2, .json 1)",
        "1 pictures have a side under 32 pixels, too small to cut a view from (icon.png)",
    )


@pytest.mark.parametrize(
    ("make", "said"),
    [
        (lambda at: at, "does not exist"),
        (lambda at: at.mkdir() or at, "holds no pictures; known endings"),
        (
            lambda at: (at.write_text("x"), at)[1],
            "holds no pictures that can be read; give a folder, an archive",
        ),
        (lambda at: [], "The list of picture sources is empty"),
        (
            lambda at: "hub:me/photos",
            "would be fetched from the Hugging Face hub; allow it with download=true",
        ),
    ],
)
def test_sources_that_are_none(tmp_path: Path, make: Callable[[Path], Any], said: str) -> None:
    with pytest.raises(UserError) as error:
        everything(make(tmp_path / "there"))
    assert said in str(error.value)


# --- archives ---------------------------------------------------------------------------------------------


def _packed(folder: Path, form: str) -> Path:
    """The pictures of a folder in an archive beside it."""
    target = folder.parent / f"packed.{form}"
    if form == "zip":
        with zipfile.ZipFile(target, "w", zipfile.ZIP_DEFLATED) as archive:
            for path in sorted(folder.rglob("*.*")):
                archive.write(path, path.relative_to(folder).as_posix())
        return target
    held = io.BytesIO()
    with tarfile.open(fileobj=held, mode="w") as archive:
        archive.add(folder, ".")
    pack = {"tar": bytes, "tar.gz": gzip.compress, "tar.xz": lzma.compress, "tar.bz2": bz2.compress}[form]
    target.write_bytes(pack(held.getvalue()))
    return target


@pytest.mark.parametrize("form", ["zip", "tar", "tar.gz", "tar.xz", "tar.bz2"])
def test_an_archive_holds_what_its_folder_holds(tmp_path: Path, form: str) -> None:
    folder = fill(tmp_path / "photos", 4)
    fill(folder / "sub", 2, first=1)
    plain, packed = everything(folder), everything(_packed(folder, form))
    assert names(packed) == names(plain)
    for i in range(6):
        assert packed.picture(i).tobytes() == plain.picture(i).tobytes()
    assert pickle.loads(pickle.dumps(packed)).picture(3).tobytes() == plain.picture(3).tobytes()
    assert sorted(path.name for path in tmp_path.iterdir()) == [f"packed.{form}", "photos"]


def _png(picture: Image.Image) -> bytes:
    held = io.BytesIO()
    picture.save(held, "PNG")
    return held.getvalue()


HOSTILE = ["../../escaped.png", "/etc/absolute.png", "..\\windows.png", "a/../../b.png", "ok/fine.png"]


@pytest.mark.parametrize("form", ["zip", "tar"])
def test_hostile_names_are_labels(tmp_path: Path, form: str) -> None:
    target = tmp_path / "inner" / f"hostile.{form}"
    target.parent.mkdir()
    if form == "zip":
        with zipfile.ZipFile(target, "w") as archive:
            for i, name in enumerate(HOSTILE):
                archive.writestr(name, _png(smooth(i)))
    else:
        with tarfile.open(target, "w") as archive:
            for i, name in enumerate(HOSTILE):
                entry = tarfile.TarInfo(name)
                entry.size = len(_png(smooth(i)))
                archive.addfile(entry, io.BytesIO(_png(smooth(i))))
            link = tarfile.TarInfo("link.png")
            link.type, link.linkname = tarfile.SYMTYPE, "/etc/passwd"
            archive.addfile(link)
            pipe = tarfile.TarInfo("pipe.png")
            pipe.type = tarfile.FIFOTYPE
            archive.addfile(pipe)
    pool = everything(target)
    assert names(pool) == ["a/b.png", "escaped.png", "etc/absolute.png", "ok/fine.png", "windows.png"]
    assert [pool.picture(i).size for i in range(5)] == [(64, 48)] * 5
    assert pool.notes == (("2 links and devices",) if form == "tar" else ())
    assert [path.name for path in tmp_path.rglob("*")] == ["inner", f"hostile.{form}"]


def test_one_name_twice_in_an_archive_is_two_pictures(tmp_path: Path) -> None:
    with tarfile.open(tmp_path / "twice.tar", "w") as archive:
        for i in (1, 2):
            entry = tarfile.TarInfo("same.png")
            entry.size = len(_png(smooth(i)))
            archive.addfile(entry, io.BytesIO(_png(smooth(i))))
    pool = everything(tmp_path / "twice.tar")
    assert names(pool) == ["same.png", "same.png (2)"]
    assert [pool.picture(i).tobytes() for i in (0, 1)] == [smooth(1).tobytes(), smooth(2).tobytes()]


def test_a_member_that_says_it_is_huge_is_not_read(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(archives, "MEMBER_BYTES", 5_000_000)
    entry = tarfile.TarInfo("huge.png")
    entry.size = 10**12
    (tmp_path / "bomb.tar").write_bytes(entry.tobuf() + _png(smooth(1)).ljust(1024, b"\0") + bytes(1024))
    with pytest.raises(
        UserError, match=r"huge\.png in .* 1,000,000,000,000 bytes|cannot be read as an archive"
    ):
        everything(tmp_path / "bomb.tar")
    with zipfile.ZipFile(tmp_path / "bomb.zip", "w", zipfile.ZIP_DEFLATED) as archive:
        archive.writestr("zeros.png", bytes(6_000_000))  # 6 kB packed
    with pytest.raises(UserError, match=r"zeros\.png in .* says it has 6,000,000 bytes, more than 5,000,000"):
        everything(tmp_path / "bomb.zip")


def test_a_tar_that_grows_without_end_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(archives, "FREE", 3_000_000)
    (tmp_path / "bomb.tar.gz").write_bytes(gzip.compress(bytes(20_000_000)))
    with pytest.raises(UserError, match="becomes more than 3,000,000 bytes when it is unpacked"):
        everything(tmp_path / "bomb.tar.gz")


def test_broken_archives_are_named(tmp_path: Path) -> None:
    packed = _packed(fill(tmp_path / "photos", 3), "zip")
    data = packed.read_bytes()
    for name, content in {
        "cut.zip": data[: len(data) // 2],
        "text.zip": b"no archive at all",
        "text.tar": b"no archive at all" * 100,
        "cut.tar.gz": gzip.compress(b"x" * 10_000)[:-20],
        "empty.tar": b"",
    }.items():
        (tmp_path / name).write_bytes(content)
        with pytest.raises(UserError, match=rf"{name} (cannot be read as an archive|holds no pictures)"):
            everything(tmp_path / name)
    flipped = bytearray(data)
    at = data.index(b"IDAT") + 40
    flipped[at : at + 20] = bytes(20)
    (tmp_path / "flipped.zip").write_bytes(bytes(flipped))
    with pytest.raises(UserError, match=r"blob000\.png in .*flipped\.zip cannot be read"):
        everything(tmp_path / "flipped.zip")


def test_an_encrypted_member_is_named(tmp_path: Path) -> None:
    with zipfile.ZipFile(tmp_path / "a.zip", "w") as archive:
        archive.writestr("x.png", _png(smooth(1)))
    data = bytearray((tmp_path / "a.zip").read_bytes())
    data[6] |= 1  # general purpose flags of the local header, and of the directory's entry
    data[data.index(b"PK\x01\x02") + 8] |= 1
    (tmp_path / "a.zip").write_bytes(bytes(data))
    with pytest.raises(UserError, match=r"x\.png in .*a\.zip is encrypted"):
        everything(tmp_path / "a.zip")


# --- tables -----------------------------------------------------------------------------------------------


def test_parquet_and_saved_datasets(tmp_path: Path) -> None:
    datasets = pytest.importorskip("datasets")
    cells = [{"bytes": _png(smooth(i)), "path": None} for i in range(4)]
    raw = datasets.Dataset.from_dict({"image": cells, "caption": list("abcd")})
    raw.to_parquet(tmp_path / "structs.parquet")
    datasets.Dataset.from_dict({"jpg": [cell["bytes"] for cell in cells]}).to_parquet(
        tmp_path / "bytes.parquet"
    )
    typed = raw.cast_column("image", datasets.Image())
    typed.save_to_disk(tmp_path / "saved")
    datasets.DatasetDict({"a": typed, "b": typed.select([0, 1])}).save_to_disk(tmp_path / "parts")
    for name in ("structs.parquet", "bytes.parquet", "saved", "parts@a"):
        pool = everything(tmp_path / name)
        assert names(pool) == [f"row 00000{i}" for i in (1, 2, 3, 4)]
        assert [pool.picture(i).tobytes() for i in range(4)] == [smooth(i).tobytes() for i in range(4)]
    assert len(everything(tmp_path / "parts@b")) == 2
    with pytest.raises(UserError, match=r"holds several parts \(a, b\)"):
        everything(tmp_path / "parts")
    datasets.Dataset.from_dict({"caption": ["x"]}).to_parquet(tmp_path / "none.parquet")
    with pytest.raises(UserError, match="no column of pictures"):
        everything(tmp_path / "none.parquet")
    lists = datasets.Dataset.from_dict({"images": [[_png(smooth(1)), _png(smooth(2))]], "x": [b"no"]})
    lists.to_parquet(tmp_path / "lists.parquet")
    assert names(everything(tmp_path / "lists.parquet")) == ["row 000001", "row 000001#2"]
    broken = datasets.Dataset.from_dict({"image": [_png(smooth(1)), b"no picture"]})
    broken.to_parquet(tmp_path / "broken.parquet")
    with pytest.raises(UserError, match=r"broken\.parquet.*in column 'image'.* is not a picture"):
        everything(tmp_path / "broken.parquet")


def test_several_sources_are_one_pool(tmp_path: Path) -> None:
    fill(tmp_path / "x" / "photos", 2)
    fill(tmp_path / "y" / "photos", 2, first=1)
    packed = _packed(fill(tmp_path / "z", 1, first=50), "zip")
    pool = everything([tmp_path / "x" / "photos", tmp_path / "y" / "photos", packed])
    assert names(pool) == [
        "packed.zip/blob000.png",
        "photos#1/blob000.png",
        "photos#1/blob001.png",
        "photos#2/blob000.png",
        "photos#2/blob001.png",
    ]


# --- near-duplicates --------------------------------------------------------------------------------------

COPIES: dict[str, Callable[[Image.Image], Image.Image]] = {
    "half": lambda one: one.resize((one.width // 2, one.height // 2), Image.Resampling.LANCZOS),
    "quarter": lambda one: one.resize((one.width // 4, one.height // 4), Image.Resampling.BILINEAR),
    "double": lambda one: one.resize((one.width * 2, one.height * 2), Image.Resampling.BICUBIC),
    "cut": lambda one: one.crop((4, 3, one.width - 3, one.height - 2)),
    "bright": lambda one: one.point(lambda v: min(255, int(v * 1.1))),
}
OTHERS: dict[str, Callable[[Image.Image], Image.Image]] = {
    "mirrored": ImageOps.mirror,
    "upside down": ImageOps.flip,
    "turned": lambda one: one.transpose(Image.Transpose.ROTATE_180),
    "another part": lambda one: one.crop((one.width // 2, 0, one.width, one.height // 2)),
}


def _found(change: Callable[[Image.Image], Image.Image]) -> float:
    """The share of sixty photographs whose changed copy counts as the same."""
    same = 0
    for i in range(len(NAMES)):
        same += bool(pairs([fingerprint(photo(i)), fingerprint(change(photo(i)))]))
    return same / len(NAMES)


@pytest.mark.parametrize("change", COPIES)
def test_copies_are_found(change: str) -> None:
    assert _found(COPIES[change]) >= 0.95


@pytest.mark.parametrize("quality", [40, 75])
def test_compressed_copies_are_found(quality: int) -> None:
    def compressed(one: Image.Image) -> Image.Image:
        held = io.BytesIO()
        one.save(held, "JPEG", quality=quality)
        return Image.open(io.BytesIO(held.getvalue())).convert("RGB")

    assert _found(compressed) == 1


@pytest.mark.parametrize("change", OTHERS)
def test_other_views_are_no_copies(change: str) -> None:
    assert _found(OTHERS[change]) <= 0.05


def test_different_photographs_are_no_copies() -> None:
    assert pairs([fingerprint(photo(i)) for i in range(len(NAMES))]) == []


def test_blocks_find_the_same_pairs(monkeypatch: pytest.MonkeyPatch) -> None:
    prints = [fingerprint(photo(i % 20)) for i in range(50)]
    # Picture i is i mod 20: (0, 20), (0, 40), (20, 40), … of 10 photographs three times and of 10 twice.
    whole = pairs(prints)
    assert len(whole) == 10 * 3 + 10
    monkeypatch.setattr(near_duplicates, "_BLOCK", 7)
    assert pairs(prints) == whole
    assert pairs(prints[:20], prints[20:40]) == [(i, i) for i in range(20)]


def test_plain_pictures_are_compared_by_their_color() -> None:
    red, also, blue = (Image.new("RGB", (64, 64), color) for color in ("#c02020", "#c12121", "#2020c0"))
    assert pairs([fingerprint(one) for one in (red, also, blue)]) == [(0, 1)]


def test_groups_are_linked_through_others() -> None:
    assert groups(5, [(1, 3), (3, 2)]) == [0, 1, 1, 1, 4]
    assert groups(4, [(2, 3), (0, 1), (1, 2)]) == [0, 0, 0, 0]


def test_copies_are_removed_or_kept_in_one_split(tmp_path: Path) -> None:
    for i in range(40):
        photo(i).save(tmp_path / f"{i:02d}.png", compress_level=1)
        if i % 4 == 0:
            photo(i).resize((100, 75)).save(tmp_path / f"{i:02d}_copy.jpg", quality=60)
    removed = everything(tmp_path)
    assert len(removed) == 40
    assert removed.removed == tuple((f"{i:02d}_copy.jpg", f"{i:02d}.png") for i in range(0, 40, 4))
    assert removed.notes[-1].startswith("10 near-duplicates (00_copy.jpg is 00.png again, ")
    assert len(everything(tmp_path, duplicates="keep")) == 50
    train = open_pool(tmp_path, "train", duplicates="keep")
    inside = set(names(train))
    assert 0 < sum(name.endswith("copy.jpg") for name in inside) < 10
    for i in range(0, 40, 4):
        assert (f"{i:02d}.png" in inside) == (f"{i:02d}_copy.jpg" in inside)


# --- splits -----------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def many(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return fill(tmp_path_factory.mktemp("many") / "photos", 200)


def _contents(pool: Any) -> set[bytes]:
    return {pool.picture(i).tobytes() for i in range(len(pool))}


def test_a_picture_is_in_exactly_one_split(many: Path) -> None:
    parts = {split: open_pool(many, split) for split in SPLITS}
    shown = {split: _contents(pool) for split, pool in parts.items()}
    assert sum(len(pool) for pool in parts.values()) == 200
    assert len(set().union(*shown.values())) == 200
    # 70, 10 and 20 % of 200 within four standard deviations, sqrt(n p (1 - p)).
    for split, (most, deviation) in {"train": (140, 6.5), "validation": (20, 4.2), "test": (40, 5.7)}.items():
        assert abs(len(parts[split]) - most) < 4 * deviation


def test_a_name_has_no_say_in_the_split(many: Path, tmp_path: Path) -> None:
    renamed = tmp_path / "elsewhere"
    (renamed / "deep").mkdir(parents=True)
    for i, path in enumerate(sorted(many.iterdir())):
        shutil.copy(path, renamed / "deep" / f"{(i * 7) % 200:04d}_new.png")
    for split in SPLITS:
        assert _contents(open_pool(renamed, split)) == _contents(open_pool(many, split))


def test_copies_do_not_change_a_split_by_their_names(tmp_path: Path) -> None:
    """The copy is first by name in one folder and last in the other: the photograph stays where it was."""
    for folder, name in (("a", "00_copy"), ("b", "zz_copy")):
        (tmp_path / folder).mkdir()
        for i in range(60):
            photo(i, (70, 60)).save(tmp_path / folder / f"{i:02d}.png", compress_level=1)
            photo(i, (60, 60)).save(tmp_path / folder / f"{name}{i:02d}.png", compress_level=1)
    parts: list[set[str]] = []
    for folder in ("a", "b"):
        train = open_pool(tmp_path / folder, "train")
        parts.append({name.removesuffix(".png")[-2:] for name in names(train)})
    assert parts[0] == parts[1]
    assert 30 < len(parts[0]) < 55


def test_the_order_is_that_of_names_in_every_process(many: Path) -> None:
    said = (
        "import json, sys; from fovea.tasks.pool_sources import open_pool; p = open_pool(sys.argv[1], 'test'); "
        "print(json.dumps([p.name(i) for i in range(len(p))]))"
    )
    other = subprocess.run(
        [sys.executable, "-c", said, str(many)], capture_output=True, text=True, check=True, timeout=120
    )
    here = names(open_pool(many, "test"))
    assert json.loads(other.stdout) == here == sorted(here)


@pytest.mark.parametrize("split", ["validation", "test"])
def test_a_small_pool_says_so(tmp_path: Path, split: Split) -> None:
    fill(tmp_path, 20)
    with pytest.raises(UserError) as error:
        open_pool(tmp_path, split)
    said = str(error.value)
    assert f"{split} pictures of 20 different ones, and 10 are needed" in said
    assert "transductive=true" in said
    assert len(open_pool(tmp_path, split, transductive=True)) == 20


def test_without_a_source_the_pool_is_the_packages_own() -> None:
    assert open_pool(None, "test", side=64) == BuiltIn(split="test", side=64)
    assert len(open_pool(None, "validation", transductive=True)) == 60


def test_a_validation_source_of_its_own(many: Path, tmp_path: Path) -> None:
    other = fill(tmp_path / "other", 15, first=5000)
    train, validation, test = (open_pool(many, split, validation=other) for split in SPLITS)
    assert len(validation) == 15
    assert _contents(validation) == _contents(everything(other))
    # What would have been validation is trained on; the test pictures stay what they were.
    whole = {split: _contents(open_pool(many, split)) for split in SPLITS}
    assert _contents(train) == whole["train"] | whole["validation"]
    assert _contents(test) == whole["test"]


def test_a_validation_source_that_overlaps_is_refused(tmp_path: Path) -> None:
    for i in range(30):
        (tmp_path / "own").mkdir(exist_ok=True)
        (tmp_path / "other").mkdir(exist_ok=True)
        photo(i).save(tmp_path / "own" / f"{i}.png", compress_level=1)
        photo(i + 29).resize((120, 100)).save(tmp_path / "other" / f"x{i}.jpg", quality=70)
    # Photograph 29 is in both, in other sizes.
    for split in SPLITS:
        with pytest.raises(UserError) as error:
            open_pool(tmp_path / "own", split, validation=tmp_path / "other")
        assert "x0.jpg is 29.png; take them out" in str(error.value)
        assert "transductive=true" in str(error.value)
    both = open_pool(tmp_path / "own", "validation", validation=tmp_path / "other", transductive=True)
    assert len(both) == 30


def test_transductive_gives_every_split_all_pictures(many: Path) -> None:
    for split in SPLITS:
        assert len(open_pool(many, split, transductive=True)) == 200


# --- depth maps -------------------------------------------------------------------------------------------


def _ramp(width: int, height: int) -> np.ndarray:
    """Depth 1, 2, 3, … along each row."""
    return np.tile(np.arange(1, width + 1, dtype=np.uint16), (height, 1))


def test_depth_maps_beside_their_pictures(tmp_path: Path) -> None:
    for name in "abcde":
        smooth(ord(name)).save(tmp_path / f"{name}.png")
    ramp = _ramp(64, 48)
    ramp[0, 0] = 0
    Image.fromarray(ramp).save(tmp_path / "a.depth.png")
    np.save(tmp_path / "b.depth.npy", np.where(ramp == 2, np.nan, ramp.astype(np.float32)))
    (tmp_path / "depth").mkdir()
    Image.fromarray(_ramp(32, 24)).save(tmp_path / "depth" / "c.png")
    np.save(tmp_path / "depth" / "d.npy", ramp)
    np.save(tmp_path / "depth" / "nobody.npy", ramp)
    pool = everything(tmp_path)
    assert names(pool) == ["a.png", "b.png", "c.png", "d.png", "e.png"]
    assert "1 depth maps belong to no picture (nobody)" in pool.notes
    a, b, c, d, e = (pool.depth(i) for i in range(5))
    assert e is None
    for one in (a, b, c, d):
        assert one is not None
        assert one.dtype == np.float32
        assert one.shape == (48, 64)
    assert np.isnan(a[0, 0])  # 0: unknown
    assert np.isnan(a).sum() == 1
    assert (a[1] == np.arange(1, 65)).all()
    assert np.isnan(b[:, 1]).all()
    assert (c[0, :6] == [1, 1, 2, 2, 3, 3]).all()  # half the size: each cell twice
    assert (d[5] == np.arange(1, 65)).all()


def test_depth_follows_the_cap(tmp_path: Path) -> None:
    smooth(1, (640, 480)).save(tmp_path / "a.jpg")
    Image.fromarray(_ramp(640, 480)).save(tmp_path / "a.depth.png")
    pool = everything(tmp_path, max_pixels=19_200)
    depth = pool.depth(0)
    assert depth is not None
    assert pool.picture(0).size == (160, 120)
    assert depth.shape == (120, 160)
    # Column x of 160 lies over columns 4x … 4x+3 of 640; its middle, 4 (x + 1/2) = 4x + 2, holds depth 4x + 3.
    assert (depth[7] == 4 * np.arange(160) + 3).all()


def test_a_folder_of_depth_maps_elsewhere_and_in_archives(tmp_path: Path) -> None:
    folder = fill(tmp_path / "photos", 2)
    (tmp_path / "maps").mkdir()
    Image.fromarray(_ramp(64, 48)).save(tmp_path / "maps" / "blob001.png")
    pool = everything(folder, depth=tmp_path / "maps")
    assert pool.depth(0) is None
    assert pool.depth(1) is not None
    Image.fromarray(_ramp(64, 48)).save(folder / "blob000.depth.png")
    np.save(folder / "blob001.depth.npy", _ramp(64, 48))
    packed = everything(_packed(folder, "zip"))
    assert len(packed) == 2
    first, second = packed.depth(0), packed.depth(1)
    assert first is not None
    assert second is not None
    assert (first == second).all()


@pytest.mark.parametrize(
    ("name", "write", "said"),
    [
        (
            "a.depth.png",
            lambda at: Image.fromarray(_ramp(48, 64)).save(at),
            "is 48 x 64, its upright picture 64 x 48",
        ),
        ("a.depth.png", lambda at: smooth(1).save(at), "is no grey picture"),
        ("a.depth.png", lambda at: at.write_text("x"), "is not a picture"),
        ("a.depth.npy", lambda at: np.save(at, np.zeros((3, 4, 5))), "save real numbers [height, width]"),
        ("a.depth.npy", lambda at: np.save(at, np.array([[{}]]), allow_pickle=True), "save real numbers"),
        ("a.depth.npy", lambda at: at.write_bytes(pickle.dumps([1])), "cannot be read"),
    ],
)
def test_depth_maps_that_are_none(tmp_path: Path, name: str, write: Callable[[Path], Any], said: str) -> None:
    smooth(1).save(tmp_path / "a.jpg")
    write(tmp_path / name)
    with pytest.raises(UserError) as error:
        everything(tmp_path)
    assert said in str(error.value)
    assert name in str(error.value)


# --- sequences --------------------------------------------------------------------------------------------


def _walk(n: int, seed: int = 7) -> list[Image.Image]:
    """Frames of a window that moves over a picture."""
    wide = smooth(seed, (64 + 6 * n, 48))
    return [wide.crop((6 * i, 0, 6 * i + 64, 48)) for i in range(n)]


def test_a_folder_of_frames_is_one_sequence(tmp_path: Path) -> None:
    fill(tmp_path, 3)
    (tmp_path / "walk.frames").mkdir()
    for i, frame in enumerate(_walk(12), 1):
        frame.save(tmp_path / "walk.frames" / f"f{i}.png")
    pool = everything(tmp_path)
    # Three pictures and the first frame can be drawn; the others have numbers behind them.
    assert len(pool) == 4
    (sequence,) = pool.sequences()
    assert sequence == (3, *range(4, 15))
    assert [pool.name(i) for i in sequence] == [f"walk.frames/f{i}.png" for i in range(1, 13)]
    assert [pool.picture(i).tobytes() for i in sequence] == [frame.tobytes() for frame in _walk(12)]


@pytest.mark.parametrize("form", ["gif", "webp", "png"])
def test_an_animation_of_four_frames_is_a_sequence(tmp_path: Path, form: str) -> None:
    frames = [photo(i, (64, 48)) for i in range(5)]
    options = {"save_all": True, "append_images": frames[1:], "duration": 100}
    frames[0].save(tmp_path / f"moving.{form}", **options)
    options["append_images"] = frames[1:3]
    frames[0].save(tmp_path / f"three.{form}", **options)
    pool = everything(tmp_path, duplicates="keep")
    assert names(pool) == [f"moving.{form}#1", f"three.{form}"]
    assert pool.sequences() == ((0, 2, 3, 4, 5),)
    for i, frame in zip(pool.sequences()[0], frames):
        assert np.abs(levels(pool.picture(i)) - levels(frame)).mean() < 12
    # In any order, also frame 2 (number 3) without those before it.
    alone = everything(tmp_path, duplicates="keep", max_pixels=3000).picture(3)
    assert abs(levels(alone).mean() - levels(frames[2]).mean()) < 5


def test_a_long_animation_is_sampled_evenly(tmp_path: Path) -> None:
    frames = [Image.new("L", (40, 40), i) for i in range(1, 201)]
    frames[0].save(tmp_path / "long.gif", save_all=True, append_images=frames[1:])
    (sequence,) = everything(tmp_path).sequences()
    assert len(sequence) == 64
    shown = everything(tmp_path)
    assert [shown.name(i) for i in (sequence[0], sequence[-1])] == ["long.gif#1", "long.gif#200"]


def test_frames_are_in_one_split_and_copies_of_them_are_removed(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(pool_sources, "LEAST_POOL", 1)
    for i in range(60):
        (tmp_path / f"{i:02d}.frames").mkdir()
        for k in range(4):
            frame = photo(i, (80, 60)).crop((4 * k, 0, 4 * k + 64, 60))
            frame.save(tmp_path / f"{i:02d}.frames" / f"{k}.png", compress_level=1)
    photo(11, (80, 60)).crop((4, 0, 68, 60)).save(tmp_path / "00_still.png")
    whole = everything(tmp_path)
    assert len(whole.sequences()) == len(whole) == 60
    assert whole.removed == (("00_still.png", "11.frames/0.png"),)
    parts = [open_pool(tmp_path, split) for split in SPLITS]
    films = [{pool.name(number)[:2] for one in pool.sequences() for number in one} for pool in parts]
    assert [len(film) for film in films] == [len(pool) for pool in parts]
    assert all(len(one) == 4 for pool in parts for one in pool.sequences())
    assert sum(map(len, films)) == len(set().union(*films)) == 60
