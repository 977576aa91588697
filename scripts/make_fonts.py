"""Make src/fovea/data/fonts.zip: printable ASCII of a few free fonts, from folders of font files.

    pip install fonttools && python scripts/make_fonts.py FOLDER [FOLDER ...]

FOLDERs are searched for the file names below (Debian: fonts-roboto-unhinted, fonts-open-sans, fonts-noto-core,
fonts-croscore, fonts-dejavu-core, fonts-dejavu-extra). Licences: src/fovea/data/fonts.LICENSE.
"""

import io
import sys
import zipfile
from pathlib import Path

from fontTools import subset

FONTS = {
    "train": (
        "Roboto-Regular", "Roboto-Bold", "Roboto-BoldItalic", "OpenSans-Regular", "OpenSans-Bold",
        "NotoSerif-Regular", "NotoSerif-BoldItalic", "NotoSansMono-Regular", "DejaVuSans", "DejaVuSans-Bold",
        "Arimo-Regular",
    ),
    "validation": ("NotoSans-Bold", "Cousine-Regular"),
    "test": ("DejaVuSerif", "Tinos-Bold", "Cousine-Bold"),
}  # fmt: skip


def reduced(path: Path) -> bytes:
    """The font with printable ASCII only, without hinting, layout features or its (perhaps reserved) family name."""
    options = subset.Options(hinting=False, layout_features=[], name_IDs=[0, 13], notdef_outline=True)
    font = subset.load_font(str(path), options)
    cutter = subset.Subsetter(options)
    cutter.populate(unicodes=range(32, 127))
    cutter.subset(font)
    font["head"].modified = 0
    font.recalcTimestamp = False
    out = io.BytesIO()
    font.save(out)
    return out.getvalue()


def main(folders: list[str]) -> None:
    found = {path.stem: path for folder in folders for path in sorted(Path(folder).rglob("*.ttf"))}
    with zipfile.ZipFile("src/fovea/data/fonts.zip", "w", zipfile.ZIP_DEFLATED) as archive:
        for split, names in FONTS.items():
            for name in names:
                archive.writestr(
                    zipfile.ZipInfo(f"{split}/{name}.ttf"), reduced(found[name]), zipfile.ZIP_DEFLATED
                )


if __name__ == "__main__":
    main(sys.argv[1:])
