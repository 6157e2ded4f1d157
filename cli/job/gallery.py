"""Which files of a folder are its images, and in what order: 2.png before 10.png.

A contact sheet shows images and is none. `genbo sample` marks its own; another is known by its name where its size is
not that of the images, which are all alike. What is left out is named, for it may be wanted after all.
"""

from __future__ import annotations

import re
from collections.abc import Collection, Sequence
from itertools import pairwise
from pathlib import Path, PurePosixPath

MARK = ("genbo", "contact sheet")  # the text in a PNG file that is one
FOREIGN = ("__MACOSX", "@eaDir", "lost+found")  # folders of other programs, with small copies of images
SHEETS = re.compile(
    r"(.*[-_ ])?(image[-_ ]?)?(grids?|sheets?|contact[-_ ]?sheets?|collages?|montages?|mosaics?|overviews?|previews?"
    r"|thumb(nail)?s?|reports?|figures?|plots?|charts?)([-_ ]?s?\d+)*",
    re.IGNORECASE,
)
DRAWN = re.compile(r"\d{3}-.*-s(\d+)-\d+")  # what `genbo sample` calls an image, with its seed
Size = tuple[int, int]


def images_of(folder: Path, wanted: Collection[str] = ()) -> tuple[list[Path], dict[str, str]]:
    """The images in number order, and what was left out: its name in the folder, and why.

    What `wanted` names is an image whatever it looks like.
    """
    from genbo.diffusion.image_files import image_files

    files = {file.relative_to(folder).as_posix(): file for file in image_files(folder)}
    out = {name: "of another program" for name in files if set(PurePosixPath(name).parts[:-1]) & set(FOREIGN)}
    rest = [name for name in files if name not in out]
    suspects = [name for name in rest if _may_be_a_sheet(name) or files[name].suffix.lower() == ".png"]
    looks = {name: _look(files[name]) for name in suspects}
    out |= {name: "a contact sheet" for name in suspects if looks[name][1] or _of_sample(name, rest)}
    named = [name for name in rest if name not in out and _may_be_a_sheet(name)]
    if named:
        images = {_look(files[name])[0] for name in rest if name not in out and name not in named}
        alike = len(images) == 1 and None not in images
        out |= {name: "a sheet, by its name and size" for name in named if alike and looks[name][0] not in images}
    kept = [name for name in files if name not in out or name in wanted]
    return [files[name] for name in in_number_order(kept)], {name: out[name] for name in out if name not in wanted}


def _may_be_a_sheet(name: str) -> bool:
    parts = PurePosixPath(name).with_suffix("").parts
    return any(SHEETS.fullmatch(part) for part in parts) and not DRAWN.fullmatch(parts[-1])


def _of_sample(name: str, names: Sequence[str]) -> bool:
    """Whether it is the sheet of an older `genbo sample`, whose images lie beside it."""
    place = PurePosixPath(name)
    if not (found := re.fullmatch(r"sheet-s(\d+)", place.stem)):
        return False
    beside = (DRAWN.fullmatch(other.stem) for other in map(PurePosixPath, names) if other.parent == place.parent)
    return any(drawn[1] == found[1] for drawn in beside if drawn)


def _look(file: Path) -> tuple[Size | None, bool]:
    """The size, and whether it is marked as a sheet, by the file's head; a damaged one is found out later."""
    from PIL import Image

    from genbo.diffusion.image_files import FORMATS

    try:
        with Image.open(file, formats=FORMATS) as opened:
            return opened.size, opened.info.get(MARK[0]) == MARK[1]
    except Exception:  # Pillow's decoders raise whatever the bytes lead them to
        return None, False


# -- order -----------------------------------------------------------------------------------------------------


def in_number_order(names: Sequence[str]) -> list[str]:
    """Names as a person counts: each run of digits is a number."""
    return sorted(names, key=_counted)


def uncertain(names: Sequence[str]) -> tuple[str, str] | None:
    """Two of these names, already in number order, of which nothing says that the first comes first; or None.

    Sorted letter by letter they stand the other way round, and where they part there are no plain numbers: a decimal
    point, a sign, or digits within a word or a hash.
    """
    for first, second in pairwise(names):
        if PurePosixPath(first).parts > PurePosixPath(second).parts and not _parted_by_a_number(first, second):
            return first, second
    return None


def _counted(name: str) -> tuple[list[list[str | int]], str]:
    return [_pieces(part) for part in _parts(name)], name


def _parts(name: str) -> tuple[str, ...]:
    place = PurePosixPath(name)
    return (*place.parts[:-1], place.stem, place.suffix)


def _pieces(part: str) -> list[str | int]:
    """Text, number, text, number, ..."""
    return [int(piece) if n % 2 else piece for n, piece in enumerate(re.split(r"([0-9]+)", part))]


def _parted_by_a_number(first: str, second: str) -> bool:
    """Whether the first place where two names differ is a plain number in both."""
    one, two = next(pair for pair in zip(_parts(first), _parts(second), strict=False) if pair[0] != pair[1])
    a, b = _pieces(one), _pieces(two)
    at = next((n for n, (x, y) in enumerate(zip(a, b, strict=False)) if x != y), min(len(a), len(b)))
    if at % 2 == 0 or at >= min(len(a), len(b)) or _is_hash(one) or _is_hash(two):
        return False
    before = str(a[at - 1])
    signed = at == 1 and before in ("-", "+")
    decimal = before == "." and at > 1
    return not (signed or decimal or any(re.match(r"[^\W_]|\.$", str(pieces[at + 1])) for pieces in (a, b)))


def _is_hash(part: str) -> bool:
    return re.fullmatch(r"[0-9a-f-]{8,}", part) is not None and re.search(r"[a-f]", part) is not None
