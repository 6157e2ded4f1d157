"""Pack every captioned emoji, 64 x 64 pixels in three drawing styles, into one compressed npz.

    concept  --one label, some keywords-->  caption
       |----noto, flat, 3d--------------->  image on white, and its alpha channel

Images come from three npm packages and words from a fourth, fetched with the ordinary npm client and joined
on the code point without its variation selector (FE0F). Flags, components and skin tones are left out.
"""

import argparse
import hashlib
import io
import json
import subprocess
import tarfile
import unicodedata
from pathlib import Path

import numpy as np
from PIL import Image

STYLES = {  # style -> (npm package, its folder of images)
    "noto": ("emoji-datasource-google@16.0.0", "package/img/google/64/"),
    "flat": ("emoji-datasource-twitter@16.0.0", "package/img/twitter/64/"),
    "3d": ("@lobehub/fluent-emoji-3d@1.1.0", "package/assets/"),
}
WORDS = "emojibase-data@17.0.0"
SIDE_PX = 64
HELD_OUT = 200
DROPPED_GROUPS = {"component", "flags"}


def fetch(package: str, folder: Path) -> Path:
    """The package's archive in `folder`, downloaded by npm when it is not there yet."""
    folder.mkdir(parents=True, exist_ok=True)
    archive = folder / (package.removeprefix("@").replace("/", "-").replace("@", "-") + ".tgz")
    if not archive.exists():
        subprocess.run(["npm", "pack", "--silent", package], cwd=folder, check=True, stdout=subprocess.DEVNULL)
    return archive


def members(archive: Path, prefix: str) -> dict[str, bytes]:
    """Files of the archive under `prefix`, by their names without it."""
    with tarfile.open(archive) as tar:
        files = [m for m in tar if m.isfile() and m.name.startswith(prefix)]
        return {m.name.removeprefix(prefix): tar.extractfile(m).read() for m in files}


def code_point(name: str) -> str:
    """`1F1EA-FE0F` and `1f1ea-fe0f.png` are both `1f1ea`."""
    return "-".join(part for part in name.lower().split(".")[0].split("-") if part != "fe0f")


def plain(text: str) -> str:
    """Lower case, without accents and most marks: `A button (blood type)` -> `a button blood type`."""
    text = unicodedata.normalize("NFKD", text.lower().replace("’", "'"))
    text = "".join(" " if c in ":,“”()!./&" else c for c in text if not unicodedata.combining(c))
    return " ".join(text.split())


def draw(data: bytes) -> np.ndarray:
    """An image file as (64, 64, 4): colour composited on white, then alpha."""
    rgba = Image.open(io.BytesIO(data)).convert("RGBA")
    alpha = rgba.getchannel("A")
    white = Image.new("RGBA", rgba.size, "white")
    white.alpha_composite(rgba)
    image = Image.merge("RGBA", (*white.convert("RGB").split(), alpha))
    if image.size != (SIDE_PX, SIDE_PX):
        parts = [band.resize((SIDE_PX, SIDE_PX), Image.Resampling.LANCZOS) for band in image.split()]
        image = Image.merge("RGBA", parts)
    return np.asarray(image)


def held_out(labels: list[str], count: int) -> np.ndarray:
    """The `count` labels of smallest hash: the same ones whatever else is in the list."""
    order = sorted(range(len(labels)), key=lambda i: hashlib.sha256(labels[i].encode()).hexdigest())
    mask = np.zeros(len(labels), bool)
    mask[order[:count]] = True
    return mask


def concepts(archive: Path) -> list[dict]:
    """Label, keywords, group and subgroup of each concept, in Unicode's order."""
    files = members(archive, "package/")
    entries, meta = json.loads(files["en/data.json"]), json.loads(files["meta/groups.json"])
    found = []
    for entry in sorted(entries, key=lambda e: e.get("order", 0)):
        if "group" not in entry or meta["groups"][str(entry["group"])] in DROPPED_GROUPS:
            continue
        label = plain(entry["label"])
        words = [plain(tag.replace("_", " ")) for tag in entry.get("tags", [])]
        found.append(
            {
                "key": code_point(entry["hexcode"]),
                "label": label,
                "keywords": [w for w in dict.fromkeys(words) if w and w != label],
                "group": meta["groups"][str(entry["group"])],
                "subgroup": meta["subgroups"][str(entry["subgroup"])],
            }
        )
    return found


def pack(cache: Path, out: Path) -> dict[str, int]:
    """Write the npz and return its counts."""
    drawn = {}
    for style, (package, prefix) in STYLES.items():
        drawn[style] = {code_point(name): data for name, data in members(fetch(package, cache), prefix).items()}
    known = [c for c in concepts(fetch(WORDS, cache)) if any(c["key"] in files for files in drawn.values())]
    rows = [
        (i, s, draw(drawn[style][c["key"]]))
        for s, style in enumerate(STYLES)
        for i, c in enumerate(known)
        if c["key"] in drawn[style]
    ]
    rgba = np.stack([image for _, _, image in rows])
    labels = [c["label"] for c in known]
    np.savez_compressed(
        out,
        images=rgba[..., :3],  # (N, 64, 64, 3), on white
        alphas=rgba[..., 3],  # (N, 64, 64)
        concept=np.array([i for i, _, _ in rows], np.int16),  # (N,)
        style=np.array([s for _, s, _ in rows], np.uint8),  # (N,), an index into styles
        styles=np.array(list(STYLES)),
        labels=np.array(labels),  # (C,)
        keywords=np.array([",".join(c["keywords"]) for c in known]),
        groups=np.array([c["group"] for c in known]),
        subgroups=np.array([c["subgroup"] for c in known]),
        held_out=held_out(labels, HELD_OUT),
    )
    return {"concepts": len(known), "images": len(rows), "bytes": out.stat().st_size}


def main() -> None:
    """Fetch, pack, and print the counts."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--cache", type=Path, default=Path(".cache/emoji"), help="where npm archives are kept")
    parser.add_argument("--out", type=Path, default=Path(".cache/emoji/emoji.npz"))
    args = parser.parse_args()
    args.out.parent.mkdir(parents=True, exist_ok=True)
    print(json.dumps(pack(args.cache, args.out)))


if __name__ == "__main__":
    main()
