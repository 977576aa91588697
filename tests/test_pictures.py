"""Pictures by reference: modes, orientation, the cache, hostile files. Golden pixels by hand."""

from __future__ import annotations

import io
import os
import pickle
import struct
import threading
import warnings
import zlib
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from fovea.tasks import open_pictures
from fovea.tasks import pictures as module
from fovea.tasks.pictures import (
    BadPicture,
    FileRef,
    PictureCache,
    Pictures,
    decode,
    quiet,
    read_size,
    to_rgb,
    verify,
)
from fovea.types import Problem, UserError, picture_sizes


def ref(path: Path) -> FileRef:
    return FileRef(path=str(path))


def noise(width: int, height: int, seed: int = 0) -> Image.Image:
    rng = np.random.default_rng(seed)
    return Image.fromarray(rng.integers(0, 256, (height, width, 3), dtype=np.uint8))


def png_header(width: int, height: int) -> bytes:
    """A PNG that declares a size and holds next to nothing."""

    def chunk(name: bytes, data: bytes) -> bytes:
        return struct.pack(">I", len(data)) + name + data + struct.pack(">I", zlib.crc32(name + data))

    head = struct.pack(">IIBBBBB", width, height, 8, 2, 0, 0, 0)
    return (
        b"\x89PNG\r\n\x1a\n"
        + chunk(b"IHDR", head)
        + chunk(b"IDAT", zlib.compress(b"\0"))
        + chunk(b"IEND", b"")
    )


# --- modes ------------------------------------------------------------------------------------------------


def pixel(image: Image.Image) -> tuple[int, ...]:
    rgb = to_rgb(image)
    assert rgb.mode == "RGB"
    return rgb.getpixel((0, 0))  # type: ignore[return-value]


def test_every_mode_becomes_rgb() -> None:
    assert pixel(Image.new("RGB", (2, 2), (1, 2, 3))) == (1, 2, 3)
    assert pixel(Image.new("L", (2, 2), 77)) == (77, 77, 77)
    assert pixel(Image.new("1", (2, 2), 1)) == (255, 255, 255)
    assert pixel(Image.new("CMYK", (2, 2), (0, 255, 255, 0))) == (255, 0, 0)
    # alpha over white: 51/255 = 0.2 of black on white is 0.8 of 255
    assert pixel(Image.new("RGBA", (2, 2), (0, 0, 0, 51))) == (204, 204, 204)
    assert pixel(Image.new("RGBA", (2, 2), (9, 9, 9, 0))) == (255, 255, 255)
    assert pixel(Image.new("LA", (2, 2), (0, 0))) == (255, 255, 255)
    palette = Image.new("P", (2, 2), 1)
    palette.putpalette([0, 0, 0, 10, 20, 30])
    assert pixel(palette) == (10, 20, 30)
    palette.info["transparency"] = 1
    assert pixel(palette) == (255, 255, 255)


def test_deep_grey_is_scaled_not_clipped() -> None:
    ramp = np.array([[0, 257, 32896, 65535]], dtype=np.uint16)
    assert list(np.asarray(to_rgb(Image.fromarray(ramp)))[0, :, 0]) == [0, 1, 128, 255]
    assert list(np.asarray(to_rgb(Image.fromarray(ramp.astype(np.int32))))[0, :, 0]) == [0, 1, 128, 255]
    wide = np.array([[0, 10_000_000]], dtype=np.int32)
    assert list(np.asarray(to_rgb(Image.fromarray(wide)))[0, :, 0]) == [0, 255]
    unit = np.array([[-1.0, 0.0, 0.5, 1.0, np.nan]], dtype=np.float32)
    assert list(np.asarray(to_rgb(Image.fromarray(unit)))[0, :, 0]) == [0, 0, 127, 255, 0]


def test_sixteen_bit_png_and_tiff_from_files(tmp_path: Path) -> None:
    ramp = np.tile(np.linspace(0, 65535, 64).astype(np.uint16), (8, 1))
    for name in ("a.png", "a.tif"):
        Image.fromarray(ramp).save(tmp_path / name)
        shown = np.asarray(decode(ref(tmp_path / name)))[0, :, 0]
        assert shown[0] == 0
        assert shown[-1] == 255
        assert len(set(shown)) == 64  # clipping would leave one value


# --- orientation ------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", ["a.jpg", "a.png", "a.webp", "a.tif"])
@pytest.mark.parametrize("turn", range(1, 9))
def test_orientation_holds_for_pixels_and_sizes(tmp_path: Path, name: str, turn: int) -> None:
    """The upright picture is red on the left and blue below right; stored as the EXIF value says."""
    upright = Image.new("RGB", (48, 32), "white")
    upright.paste("red", (0, 0, 24, 32))
    upright.paste("blue", (24, 16, 48, 32))
    undo = {6: 8, 8: 6}.get(turn, turn)  # the inverse of a quarter turn is the other quarter turn
    stored = upright.transpose(module._TURNS[undo]) if turn > 1 else upright
    exif = Image.Exif()
    exif[0x0112] = turn
    stored.save(tmp_path / name, exif=exif, **({"quality": 95} if name != "a.png" else {}))
    pictures = Pictures(refs=(ref(tmp_path / name),))
    assert pictures.sizes == ((48, 32),)
    assert verify(ref(tmp_path / name)) == (48, 32)
    found = pictures[0]
    assert found.size == (48, 32)
    for place, colour in (((8, 8), (255, 0, 0)), ((36, 26), (0, 0, 255)), ((36, 6), (255, 255, 255))):
        assert np.abs(np.subtract(found.getpixel(place), colour)).max() < 40, (turn, place)


# --- the sequence and the cache ---------------------------------------------------------------------------


def test_pictures_are_a_sequence_decoded_late(tmp_path: Path) -> None:
    for i in range(3):
        noise(20 + i, 10, i).save(tmp_path / f"{i}.png")
    pictures = open_pictures(tmp_path)
    assert len(pictures) == 3
    assert pictures.sizes == ((20, 10), (21, 10), (22, 10))
    assert [p.size for p in pictures] == [(20, 10), (21, 10), (22, 10)]
    assert pictures[-1].tobytes() == noise(22, 10, 2).tobytes()
    assert pictures[1:].sizes == ((21, 10), (22, 10))
    assert pictures[0] is pictures[0]
    again = pickle.loads(pickle.dumps(pictures))
    assert again == pictures
    assert again[1].tobytes() == pictures[1].tobytes()
    assert len(pickle.dumps(pictures)) < 2000  # names travel, not pixels
    with pytest.raises(IndexError):
        pictures[3]


def test_a_problem_with_late_pictures_is_like_any_other(tmp_path: Path) -> None:
    noise(30, 20).save(tmp_path / "a.png")
    problem = Problem(id="1", task="t", images=open_pictures(tmp_path), question="?", answer=1, kind="number")
    asked = replace(problem, question="!")
    assert asked.images == problem.images
    assert picture_sizes(problem) == ((30, 20),)
    assert picture_sizes(replace(problem, images=(noise(4, 5),))) == ((4, 5),)


def test_sizes_do_not_decode(tmp_path: Path) -> None:
    whole = io.BytesIO()
    noise(400, 300).save(whole, "PNG")
    (tmp_path / "a.png").write_bytes(whole.getvalue()[:2000])  # the header is there, most pixels are not
    pictures = Pictures(refs=(ref(tmp_path / "a.png"),), where="x.jsonl, line 4")
    assert pictures.sizes == ((400, 300),)
    with pytest.raises(
        UserError, match=r"^x.jsonl, line 4: the picture .*a.png cannot be read \(.*truncated"
    ):
        pictures[0]


def test_the_cache_is_bounded_and_drops_what_was_used_longest_ago(tmp_path: Path) -> None:
    refs = []
    for i in range(4):
        noise(50, 50, i).save(tmp_path / f"{i}.png")
        refs.append(ref(tmp_path / f"{i}.png"))
    cache = PictureCache(limit=3 * 50 * 50 * 4)
    first = [cache.get(r, 100) for r in refs[:3]]
    assert cache.get(refs[0], 100) is first[0]  # 0 was used last, so 1 goes
    cache.get(refs[3], 100)
    assert cache.bytes == 3 * 50 * 50 * 4
    assert cache.get(refs[0], 100) is first[0]
    assert cache.get(refs[1], 100) is not first[1]
    small = PictureCache(limit=100)
    assert small.get(refs[0], 100).size == (50, 50)
    assert small.bytes == 0


def test_the_cache_notices_another_file_and_a_deleted_one(tmp_path: Path) -> None:
    path = tmp_path / "a.png"
    noise(20, 20, 1).save(path)
    pictures = Pictures(refs=(ref(path),), where="my.jsonl, line 2 (problem 7)", known=((20, 20),))
    before = pictures[0].tobytes()
    noise(20, 20, 2).save(path)
    os.utime(path, ns=(1, 1))
    assert pictures[0].tobytes() != before
    noise(21, 20, 2).save(path)
    with pytest.raises(UserError, match=r"my.jsonl, line 2 \(problem 7\): .* has changed since"):
        pictures[0]
    path.unlink()
    with pytest.raises(
        UserError, match=r"my.jsonl, line 2 \(problem 7\): the picture .* does not exist; set images="
    ):
        pictures[0]


def test_threads_share_the_cache_and_the_warning_filters(tmp_path: Path) -> None:
    for i in range(8):
        noise(60, 40, i).save(tmp_path / f"{i}.jpg")
    pictures = open_pictures(tmp_path)
    module.CACHE.clear()
    filters = list(warnings.filters)
    sums: list[list[int]] = []

    def work() -> None:
        sums.append([int(np.asarray(p).sum()) for _ in range(5) for p in pictures])

    threads = [threading.Thread(target=work) for _ in range(6)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(sums) == 6
    assert all(found == sums[0] for found in sums)
    assert warnings.filters == filters
    with quiet, quiet:
        warnings.warn("inside", stacklevel=1)
    assert warnings.filters == filters


# --- hostile files ----------------------------------------------------------------------------------------


def test_bombs_are_refused_by_their_header(tmp_path: Path) -> None:
    """20,000 x 20,000 would be 1.6 GB. Pillow warns from 89 megapixels and refuses from 178: neither may leak."""
    for width, height, shown in ((20_000, 20_000, ""), (12_000, 9_000, "12000 x 9000 pixels, ")):
        (tmp_path / "a.png").write_bytes(png_header(width, height))
        for look in (read_size, verify, decode):
            with pytest.raises(BadPicture, match=f"has {shown}more than 100 megapixels; scale it down"):
                look(ref(tmp_path / "a.png"))
    noise(1200, 1000).save(tmp_path / "b.png")
    assert read_size(ref(tmp_path / "b.png"), 1.2) == (1200, 1000)
    with pytest.raises(BadPicture, match=r"more than 1.1 megapixels"):
        read_size(ref(tmp_path / "b.png"), 1.1)
    Image.new("RGB", (402, 2)).save(tmp_path / "c.png")
    with pytest.raises(BadPicture, match="longer than 200 times"):
        verify(ref(tmp_path / "c.png"))


@pytest.mark.parametrize("form", ["JPEG", "PNG", "WEBP", "GIF", "BMP", "TIFF", "progressive"])
def test_truncated_files_are_found_by_decoding(tmp_path: Path, form: str) -> None:
    path = tmp_path / "a.bin"
    options = {"format": "JPEG", "progressive": True} if form == "progressive" else {"format": form}
    noise(120, 90).save(path, **options)
    assert verify(ref(path)) == (120, 90)
    whole = path.read_bytes()
    for share in (0.1, 0.5, 0.9):
        path.write_bytes(whole[: int(len(whole) * share)])
        with pytest.raises(BadPicture):
            verify(ref(path))


@pytest.mark.parametrize(
    ("make", "what"),
    [
        (lambda path: None, "does not exist"),
        (lambda path: path.mkdir(), "is not a file"),
        (lambda path: path.write_bytes(b""), "holds no bytes"),
        (lambda path: path.write_text("<html>404</html>"), "is not a picture that can be read"),
        (
            lambda path: path.write_text("%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 9 9\n"),
            "is not a picture",
        ),
        (lambda path: os.mkfifo(path), "is not a file"),
    ],
)
def test_what_is_no_picture_is_named(tmp_path: Path, make: object, what: str) -> None:
    make(tmp_path / "a.png")  # type: ignore[operator]
    for look in (read_size, verify, decode):
        with pytest.raises(BadPicture, match=what):
            look(ref(tmp_path / "a.png"))


def test_strange_names(tmp_path: Path) -> None:
    for name in ("x" * 300 + ".png", "a\0b.png"):
        with pytest.raises(BadPicture, match=r"cannot be opened|does not exist"):
            read_size(FileRef(path=str(tmp_path / name)))


def test_a_folder_of_pictures_names_its_bad_ones(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="holds no pictures"):
        open_pictures(tmp_path)
    (tmp_path / "sub").mkdir()
    noise(9, 9).save(tmp_path / "sub" / "b.JPG", "JPEG")
    noise(9, 9).save(tmp_path / "a.png")
    (tmp_path / "._a.png").write_bytes(b"a file manager's note")
    (tmp_path / "notes.txt").write_text("no picture")
    assert [os.path.basename(str(r)) for r in open_pictures(tmp_path).refs] == ["a.png", "b.JPG"]
    (tmp_path / "c.png").write_bytes(b"no")
    (tmp_path / "d.png").write_bytes(b"")
    with pytest.raises(UserError, match=r"c.png is not a picture .*\(1 more bad pictures\)"):
        open_pictures(tmp_path)
    assert len(open_pictures(tmp_path, check=False)) == 4
    with pytest.raises(UserError, match="does not exist"):
        open_pictures(tmp_path / "nowhere")
