"""Images from folders, idx files and scikit-learn: what is read, how it is split, and what is said of bad input."""

from __future__ import annotations

import gzip
import io
import struct
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from genbo.diffusion.data import Data, Images
from genbo.diffusion.refused import Refused
from genbo.diffusion.seed import Seed


def pictures(
    folder: Path, count: int, size: tuple[int, int] = (6, 6), mode: str = "RGB", seed: int = 0
) -> list[np.ndarray]:
    """Files 000.png, 001.png, ... of noise."""
    folder.mkdir(parents=True, exist_ok=True)
    generator = np.random.default_rng(seed)
    shape = (size[1], size[0], 3) if mode == "RGB" else (size[1], size[0])
    arrays = [generator.integers(0, 256, shape, dtype=np.uint8) for _ in range(count)]
    for number, array in enumerate(arrays):
        Image.fromarray(array).save(folder / f"{number:03}.png")
    return arrays


def idx(array: np.ndarray) -> bytes:
    return bytes([0, 0, 8, array.ndim]) + struct.pack(f">{array.ndim}I", *array.shape) + array.tobytes()


def mnist(folder: Path, train: int = 60, test: int = 12, packed: bool = True) -> dict[str, np.ndarray]:
    """A folder as MNIST comes."""
    generator = np.random.default_rng(1)
    found = {}
    for name, count in (("train", train), ("t10k", test)):
        found[f"{name}-images-idx3-ubyte"] = generator.integers(0, 256, (count, 5, 4), dtype=np.uint8)
        found[f"{name}-labels-idx1-ubyte"] = generator.integers(0, 3, count, dtype=np.uint8)
    for name, array in found.items():
        if packed:
            (folder / f"{name}.gz").write_bytes(gzip.compress(idx(array)))
        else:
            (folder / name).write_bytes(idx(array))
    return found


def rows(images: Images) -> set[bytes]:
    return {image.numpy().tobytes() for image in images.pixels}


def everything(data: Data) -> list[Images]:
    splits = data.open()
    return [splits.train, splits.validation, splits.test]


def refused(data: Data) -> str:
    with pytest.raises(Refused) as error:
        data.open()
    said = str(error.value)
    assert said.startswith("data: ") and "\n" not in said and "; " in said
    return said


# -- folders --------------------------------------------------------------------------------------------------


def test_a_folder_is_read_as_it_stands(tmp_path):
    arrays = pictures(tmp_path, 5)
    train, *held = everything(Data(str(tmp_path), validation=0, test=0))
    assert torch.equal(train.pixels, torch.from_numpy(np.stack(arrays)).permute(0, 3, 1, 2))
    assert train.pixels.dtype == torch.uint8 and train.shape == (3, 6, 6) and train.labels is None
    assert [len(images) for images in held] == [0, 0]


def test_subfolders_are_classes(tmp_path):
    pictures(tmp_path / "dog", 3)
    pictures(tmp_path / "cat", 4, seed=1)
    train = Data(str(tmp_path), validation=0, test=0).open().train
    assert train.classes == ("cat", "dog") and train.labels.tolist() == [0] * 4 + [1] * 3


def test_numbers_are_in_the_ranges_that_networks_take(tmp_path):
    Image.fromarray(np.array([[0, 255], [0, 255]], dtype=np.uint8)).save(tmp_path / "a.png")
    Image.fromarray(np.array([[51, 51], [51, 51]], dtype=np.uint8)).save(tmp_path / "b.png")
    train = Data(str(tmp_path), validation=0, test=0).open().train
    assert train.shape == (1, 2, 2)
    assert train.unit()[1, 0, 0, 0].item() == pytest.approx(0.2)
    assert (train.signed()[0].min(), train.signed()[0].max()) == (-1, 1)


@pytest.mark.parametrize(("color", "channels"), [("auto", 3), ("rgb", 3), ("grey", 1)])
def test_colour_where_any_image_has_it(tmp_path, color, channels):
    pictures(tmp_path / "a", 2, mode="L")
    pictures(tmp_path / "b", 2)
    assert Data(str(tmp_path), color=color, validation=0, test=0).open().train.shape[0] == channels


def test_transparent_images_lie_on_white_and_photographs_stand_upright(tmp_path):
    Image.fromarray(np.zeros((4, 4, 4), dtype=np.uint8)).save(tmp_path / "clear.png")
    upright = np.zeros((4, 4, 3), dtype=np.uint8)
    upright[:2] = 255
    turned = Image.fromarray(upright)
    exif = turned.getexif()
    exif[0x0112] = 3  # upside down
    turned.save(tmp_path / "turned.jpg", exif=exif, quality=100)
    clear, photo = Data(str(tmp_path), validation=0, test=0).open().train.unit()
    assert (clear == 1).all()
    assert photo[:, 2:].min() > 0.9 and photo[:, :2].max() < 0.1


def test_a_size_takes_the_middle_square(tmp_path):
    wide = np.zeros((8, 16, 3), dtype=np.uint8)
    wide[:, 4:12] = 200
    Image.fromarray(wide).save(tmp_path / "a.png")
    pictures(tmp_path, 2, size=(5, 9))
    train = Data(str(tmp_path), size=4, validation=0, test=0).open().train
    assert train.shape == (3, 4, 4)
    assert train.pixels[-1].min() > 180, "the black edges are cut off, but for what the kernel brings in"


def test_webp_and_jpeg_are_read(tmp_path):
    flat = Image.new("RGB", (8, 8), (200, 30, 90))
    for suffix in ("webp", "JPG", "jpeg", "png"):
        flat.save(tmp_path / f"a.{suffix}", format={"webp": "WEBP", "png": "PNG"}.get(suffix, "JPEG"), quality=95)
    train = Data(str(tmp_path), validation=0, test=0).open().train
    assert len(train) == 4
    assert (train.pixels.float() - train.pixels[3].float()).abs().max() < 8


# -- splits ---------------------------------------------------------------------------------------------------


def test_every_image_is_in_one_split(tmp_path):
    arrays = pictures(tmp_path, 200)
    parts = [rows(images) for images in everything(Data(str(tmp_path), validation=0.2, test=0.3))]
    assert sum(map(len, parts)) == len(set.union(*parts)) == len(arrays)
    assert abs(len(parts[1]) - 40) < 20 and abs(len(parts[2]) - 60) < 22


def test_more_images_move_none(tmp_path):
    pictures(tmp_path, 100)
    before = [rows(images) for images in everything(Data(str(tmp_path)))]
    pictures(tmp_path / "more", 100, seed=1)
    after = [rows(images) for images in everything(Data(str(tmp_path)))]
    assert all(old < new for old, new in zip(before, after, strict=True))


def test_copies_stay_together_whatever_they_are_called(tmp_path):
    pictures(tmp_path, 60)
    for file in sorted(tmp_path.iterdir()):
        (tmp_path / f"z{file.name}").write_bytes(file.read_bytes())
    parts = [images.pixels for images in everything(Data(str(tmp_path), validation=0.3, test=0.3))]
    for pixels in parts:
        assert len(pixels) == 2 * len({p.numpy().tobytes() for p in pixels})


def test_a_larger_share_of_validation_leaves_the_test_images_alone(tmp_path):
    pictures(tmp_path, 100)
    one, other = (Data(str(tmp_path), validation=share, test=0.2).open() for share in (0.1, 0.4))
    assert rows(one.test) == rows(other.test) and rows(one.validation) < rows(other.validation)


def test_the_digits():
    splits = Data("digits").open()
    sizes = [len(part) for part in (splits.train, splits.validation, splits.test)]
    assert sum(sizes) == 1797 and sizes[0] > 1350 and min(sizes) > 120
    assert splits.train.shape == (1, 8, 8) and splits.train.pixels.max() == 255
    assert splits.train.classes == tuple("0123456789") and set(splits.train.labels.tolist()) == set(range(10))


# -- idx ------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("packed", [True, False])
def test_a_folder_of_idx_files_keeps_its_test_set(tmp_path, packed):
    arrays = mnist(tmp_path, packed=packed)
    splits = Data(str(tmp_path), validation=0.3).open()
    assert splits.test.pixels.numpy()[:, 0].tolist() == arrays["t10k-images-idx3-ubyte"].tolist()
    assert splits.test.labels.tolist() == arrays["t10k-labels-idx1-ubyte"].tolist()
    assert len(splits.train) + len(splits.validation) == 60 and len(splits.validation) > 5
    where = {image.tobytes(): label for image, label in zip(*list(arrays.values())[:2], strict=True)}
    for part in (splits.train, splits.validation):
        found = [where[image.numpy().tobytes()] for image in part.pixels[:, 0]]
        assert found == part.labels.tolist()


def test_a_single_idx_file_is_split_as_a_folder_is(tmp_path):
    mnist(tmp_path)
    splits = Data(str(tmp_path / "t10k-images-idx3-ubyte.gz"), validation=0.4, test=0.3).open()
    assert len(splits.train) + len(splits.validation) + len(splits.test) == 12 and splits.train.labels is not None


def test_idx_files_without_labels_and_in_another_size(tmp_path):
    mnist(tmp_path)
    for file in tmp_path.glob("*labels*"):
        file.unlink()
    train = Data(str(tmp_path), size=8, color="rgb").open().train
    assert train.labels is None and train.shape == (3, 8, 8)


def spoiled(tmp_path: Path, content: bytes, name: str = "train-images-idx3-ubyte") -> str:
    mnist(tmp_path, packed=False)
    (tmp_path / name).write_bytes(content)
    return refused(Data(str(tmp_path)))


IMAGE = np.zeros((4, 3, 3), dtype=np.uint8)
SIXTY = np.zeros((60, 3, 3), dtype=np.uint8)


@pytest.mark.parametrize(
    ("content", "said"),
    [
        (b"", "begins with nothing instead of 00000803"),
        (b"\x00\x00\x08\x01" + b"\x00" * 40, "begins with 00000801"),
        (b"\x89PNG" + b"\x00" * 40, "begins with 89504e47"),
        (idx(IMAGE)[:9], "ends inside its header"),
        (idx(SIXTY)[:-1], "only 539 bytes where its header promises 540"),
        (idx(SIXTY) + b"\x00", "more bytes where its header promises 540"),
        (
            bytes([0, 0, 8, 3]) + struct.pack(">3I", 2**32 - 1, 2**32 - 1, 28),
            "claims 4294967295 x 4294967295 x 28 bytes",
        ),
        (idx(IMAGE[:1]), "holds 1 image"),
        (idx(IMAGE[:, :0]), "images of 0 x 3 pixels"),
        (idx(IMAGE), "has 60 labels for the 4 images"),
    ],
    ids=lambda value: value if isinstance(value, str) else "",
)
def test_idx_files_that_will_not_do(tmp_path, content, said):
    assert said in spoiled(tmp_path, content)


def test_gzip_files_that_will_not_do(tmp_path):
    arrays = mnist(tmp_path)
    file = tmp_path / "train-images-idx3-ubyte.gz"
    whole = file.read_bytes()
    for content in (b"no gzip at all", whole[: len(whole) // 2], whole[:3]):
        file.write_bytes(content)
        assert "fetch it again" in refused(Data(str(tmp_path)))
    bomb = io.BytesIO()
    with gzip.GzipFile(fileobj=bomb, mode="wb") as stream:
        stream.write(idx(arrays["train-images-idx3-ubyte"]) + b"\x00" * 50_000_000)
    file.write_bytes(bomb.getvalue())
    assert "more bytes where its header promises 1200" in refused(Data(str(tmp_path)))


def test_two_training_sets_in_a_folder(tmp_path):
    mnist(tmp_path)
    (tmp_path / "emnist-images-idx3-ubyte").write_bytes(idx(IMAGE))
    assert "name the one file" in refused(Data(str(tmp_path)))


# -- what will not do -----------------------------------------------------------------------------------------


def test_a_folder_that_is_missing_empty_or_nearly(tmp_path):
    assert "there is no" in refused(Data(str(tmp_path / "nowhere")))
    assert "has no image" in refused(Data(str(tmp_path)))
    pictures(tmp_path, 1)
    assert "only one image" in refused(Data(str(tmp_path)))


def test_mixed_sizes_name_two_files_and_the_remedy(tmp_path):
    pictures(tmp_path, 3)
    pictures(tmp_path / "other", 2, size=(7, 9))
    said = refused(Data(str(tmp_path)))
    assert "000.png is 6 x 6 and other/000.png is 7 x 9" in said and "`size: 6`" in said


def test_all_unreadable_files_are_told_at_once(tmp_path):
    pictures(tmp_path, 3)
    whole = (tmp_path / "000.png").read_bytes()
    (tmp_path / "cut.png").write_bytes(whole[: len(whole) // 2])
    (tmp_path / "text.jpg").write_text("hello", encoding="utf-8")
    (tmp_path / "empty.webp").write_bytes(b"")
    Image.fromarray(np.zeros((4, 4), dtype=np.uint16)).save(tmp_path / "deep.png")
    said = refused(Data(str(tmp_path)))
    assert "4 of 7 images" in said
    assert all(name in said for name in ("cut.png", "text.jpg", "empty.webp", "deep.png (I;16 has more than 8 bits"))


def test_many_unreadable_files_are_counted(tmp_path):
    tmp_path.joinpath("good.png").write_bytes(b"")
    for number in range(20):
        (tmp_path / f"{number}.png").write_bytes(b"")
    assert "and 16 more" in refused(Data(str(tmp_path)))


def test_an_image_too_large_to_open_is_not_opened(tmp_path, monkeypatch):
    pictures(tmp_path, 2)
    monkeypatch.setattr("genbo.diffusion.image_files.MOST_PIXELS", 20)
    assert "6 x 6 is too large" in refused(Data(str(tmp_path)))


def test_a_folder_too_large_for_memory(tmp_path, monkeypatch):
    pictures(tmp_path, 4)
    monkeypatch.setattr("genbo.diffusion.image_files.MOST_BYTES", 300)
    assert "give a smaller `size`" in refused(Data(str(tmp_path)))


def test_another_format_behind_the_name_is_refused(tmp_path):
    pictures(tmp_path, 2)
    Image.new("RGB", (6, 6)).save(tmp_path / "b.png", format="TIFF")
    assert "1 of 3 images" in refused(Data(str(tmp_path)))


def test_bytes_of_every_kind_make_a_sentence(tmp_path):
    """One byte of a file changed, 60 times: it is read, or named."""
    pictures(tmp_path, 3)
    whole = (tmp_path / "000.png").read_bytes()
    generator = np.random.default_rng(0)
    for _ in range(60):
        content = bytearray(whole)
        content[generator.integers(len(content))] ^= 1 << generator.integers(8)
        (tmp_path / "000.png").write_bytes(content)
        try:
            Data(str(tmp_path), validation=0, test=0).open()
        except Refused as error:
            assert "000.png" in str(error)


def test_shares_that_leave_too_little(tmp_path):
    pictures(tmp_path, 4)
    assert "leave nothing to train on" in refused(Data(str(tmp_path), validation=0.5, test=0.5))
    assert "too few images for" in refused(Data(str(tmp_path), validation=0.01, test=0.01))


def test_a_single_image_is_no_folder(tmp_path):
    pictures(tmp_path, 2)
    assert "is a single image" in refused(Data(str(tmp_path / "000.png")))


def test_mistakes_are_found_without_heavy_imports(tmp_path):
    mnist(tmp_path)
    program = f"""
import sys
class Blocked:
    def find_spec(self, name, path=None, target=None):
        if name.partition(".")[0] in ("torch", "numpy", "PIL", "diffusers"):
            raise AssertionError(name + " was imported")
sys.meta_path.insert(0, Blocked())
from genbo.diffusion.data import Data
print(Data({str(tmp_path)!r}).mistakes(), Data("digits").mistakes(), Data("nowhere").mistakes())
"""
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, timeout=600, check=False)
    assert done.stdout.startswith("[] [] ['data: there is no nowhere"), done.stderr


# -- drawing --------------------------------------------------------------------------------------------------


def test_draws_depend_on_the_seed_alone_and_repeat_nothing():
    images = Images(torch.arange(50, dtype=torch.uint8).reshape(50, 1, 1, 1), torch.arange(50))
    one = images.draw(20, Seed(0).child("batch", 1))
    assert torch.equal(one.pixels, images.draw(20, Seed(0).child("batch", 1)).pixels)
    assert not torch.equal(one.pixels, images.draw(20, Seed(0).child("batch", 2)).pixels)
    assert len(set(one.labels.tolist())) == 20 and one.labels.tolist() == one.pixels.flatten().tolist()
    counts = torch.bincount(images.draw(120, Seed(1)).labels)
    assert counts.min() >= 2 and counts.max() <= 3


def test_batches_are_all_images_in_order():
    images = Images(torch.arange(10, dtype=torch.uint8).reshape(10, 1, 1, 1))
    assert [len(batch) for batch in images.batches(4)] == [4, 4, 2]
    assert torch.equal(torch.cat([batch.pixels for batch in images.batches(4)]), images.pixels)
