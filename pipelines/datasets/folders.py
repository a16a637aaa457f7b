"""The user's own images: a folder for each class, or train, validation and test folders of such.

JPEG, PNG, BMP and GIF (first frame), any size; hidden files are left out, and extensions may be in capitals. Every
file is decoded once at the start, by the function that training and serving use, so that a damaged one is known by
name before anything is trained. If all images are grey they stay grey; otherwise all become RGB. A folder `train` that
holds images itself, beside folders that are no splits, is a class like them.
"""

from __future__ import annotations

import os
import struct
import warnings
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import tensorflow as tf

from pipelines.config import Failure, UsageError
from pipelines.datasets.raw import SPLITS, Raw
from pipelines.transforms.images import decode

EXTENSIONS = (".jpg", ".jpeg", ".png", ".bmp", ".gif")
SPLIT_NAMES = {"train": ("train", "training"), "validation": ("validation", "val", "valid"), "test": ("test",)}
TEST_FRACTION = 0.1


def read_folder(data_dir: str, *, seed: int, skip_bad: bool, validation_fraction: float) -> Raw:
    """A folder of class folders as `Raw`; splits that are not there are carved, stratified and by `seed`.

    Raises:
        UsageError: `data_dir` is not a folder.
        Failure: no images, one class only, classes that differ between the splits, or damaged images (unless
            `skip_bad`).
    """
    root = Path(data_dir).expanduser()
    if not root.is_dir():
        raise UsageError(f"Expected --data_dir to be a folder. Received: {data_dir!r}")
    folders = {folder.name.lower(): folder for folder in visible(root) if folder.is_dir()}
    found = {split: next((folders[n] for n in names if n in folders), None) for split, names in SPLIT_NAMES.items()}
    split_names = {name for names in SPLIT_NAMES.values() for name in names}
    is_class = found["train"] is not None and has_images(found["train"]) and not folders.keys() <= split_names
    has_splits = found["train"] is not None and not is_class
    roots = {split: folder for split, folder in found.items() if folder} if has_splits else {"train": root}
    files = {split: image_files(folder) for split, folder in roots.items()}
    classes = class_names(root, roots, files)
    shapes = checked(root, files, skip_bad)
    paths = {split: [path for path, _ in pairs if path in shapes] for split, pairs in files.items()}
    labels = {
        split: np.array([classes.index(label) for path, label in pairs if path in shapes], "int64")
        for split, pairs in files.items()
    }
    if len(set(labels["train"])) < 2:
        raise Failure(f"Expected readable training images of at least two classes in {root}. Received: one or none")
    parts = {split: (np.array(paths[split]), labels[split]) for split in files}
    if "test" not in parts:
        parts["train"], parts["test"] = carve(*parts["train"], TEST_FRACTION, seed)
    if "validation" not in parts:
        held = validation_fraction if "test" in files else validation_fraction / (1 - TEST_FRACTION)
        parts["train"], parts["validation"] = carve(*parts["train"], held, seed + 1)
    counts = {split: len(parts[split][1]) for split in SPLITS}
    if min(counts.values()) == 0:
        raise Failure(f"Expected enough images in {root} for train, validation and test. Received: {counts}")
    sides = {(shape[0], shape[1]) for shape in shapes.values()}
    height, width = sides.pop() if len(sides) == 1 else (None, None)
    channels = 1 if all(shape[2] < 3 for shape in shapes.values()) else 3
    return Raw(
        **{split: read_files(*parts[split], seed) for split in SPLITS},
        classes=tuple(classes),
        counts=counts,
        image_shape=(height, width, channels),
        source=f"{len(shapes)} images in {len(classes)} class folders of {root.name}",
    )


def visible(folder: Path) -> list[Path]:
    """What a folder holds, without hidden files, in the order of the names."""
    return sorted(path for path in folder.iterdir() if not path.name.startswith("."))


def has_images(folder: Path) -> bool:
    """Whether images lie in the folder itself."""
    return any(path.name.lower().endswith(EXTENSIONS) for path in visible(folder))


def image_files(folder: Path) -> list[tuple[Path, str]]:
    """(file, class) of every image under the class folders of `folder`."""
    pairs = []
    for kind in visible(folder):
        for parent, folders, names in os.walk(kind, followlinks=True):
            folders[:] = sorted(name for name in folders if not name.startswith("."))
            images = sorted(name for name in names if name.lower().endswith(EXTENSIONS) and not name.startswith("."))
            pairs += [(Path(parent) / name, kind.name) for name in images]
    return pairs


def class_names(root: Path, roots: dict[str, Path], files: dict[str, list[tuple[Path, str]]]) -> list[str]:
    """The classes of the training folder in alphabetical order.

    Raises:
        Failure: no images, one class, or a split with a class that train lacks.
    """
    if not any(files.values()):
        found = [path.name for path in visible(root)][:5]
        loose = sum(path.name.lower().endswith(EXTENSIONS) for path in visible(root))
        what = f"{loose} images outside of class folders" if loose else ", ".join(found) if found else "an empty folder"
        raise Failure(f"Expected folders of images, one for each class, in {root} ({kinds()}). Received: {what}")
    classes = sorted({label for _, label in files["train"]})
    if len(classes) < 2:
        raise Failure(f"Expected at least two class folders with images in {roots['train']}. Received: {classes}")
    for split, pairs in files.items():
        extra = sorted({label for _, label in pairs} - set(classes))
        if extra:
            raise Failure(f"Expected the classes of train in {roots[split]}. Received, in addition: {extra}")
    return classes


def kinds() -> str:
    return ", ".join(extension[1:] for extension in EXTENSIONS)


def checked(root: Path, files: dict[str, list[tuple[Path, str]]], skip_bad: bool) -> dict[Path, tuple[int, ...]]:
    """The shape of every image that decodes.

    Raises:
        Failure: some do not, or have a palette TensorFlow does not read, and `skip_bad` is off; ten are named.
    """
    paths = [path for pairs in files.values() for path, _ in pairs]
    with ThreadPoolExecutor(os.cpu_count()) as pool:
        found = dict(zip(paths, pool.map(shape_of, paths), strict=True))
    shapes = {path: shape for path, shape in found.items() if not isinstance(shape, str)}
    bad = [path.relative_to(root).as_posix() + why for path, why in found.items() if isinstance(why, str)]
    if bad:
        names = ", ".join(bad[:10]) + (f" and {len(bad) - 10} more" if len(bad) > 10 else "")
        if not skip_bad:
            raise Failure(
                f"Expected images that decode as {kinds()} (--skip_bad leaves others out). "
                f"Received {len(bad)} of {len(paths)} that do not: {names}"
            )
        warnings.warn(f"left out {len(bad)} of {len(paths)} images that do not decode: {names}", stacklevel=4)
    return shapes


def shape_of(path: Path) -> tuple[int, ...] | str:
    """(h, w, c) of an image file; where it cannot be used, a note for its name, empty if it just does not decode."""
    try:
        with tf.device("CPU"):
            contents = tf.io.read_file(os.fspath(path))
            shape = tuple(decode(contents).shape)
    except tf.errors.OpError:
        return ""
    return " (a BMP with a palette: save it as PNG)" if has_palette(contents.numpy()) else shape


def has_palette(contents: bytes) -> bool:
    """Whether these are a BMP of at most 8 bits whose values are not shades of grey as they stand.

    `tf.io.decode_bmp` ignores the palette and the compression of such a file.

    Reference: BITMAPINFOHEADER and RGBQUAD of the Windows bitmap format.
    """
    if len(contents) < 54 or contents[:2] != b"BM":
        return False
    pixels, header = struct.unpack_from("<II", contents, 10)
    bits, compression = struct.unpack_from("<HI", contents, 28)
    if bits > 8:
        return False
    table = np.frombuffer(contents[14 + header : pixels], "uint8")
    colours = table[: len(table) // 4 * 4].reshape(-1, 4)[: 2**bits, :3]  # (n, blue green red)
    return compression != 0 or bool((colours != np.arange(len(colours))[:, None]).any())


def carve(paths: np.ndarray, labels: np.ndarray, fraction: float, seed: int) -> tuple[tuple, tuple]:
    """(rest, held out): `fraction` of every class, one at the least where a class has two or more, chosen by `seed`."""
    generator = np.random.default_rng(seed)
    held = np.zeros(len(labels), bool)
    for label in np.unique(labels):
        mine = generator.permutation(np.flatnonzero(labels == label))
        held[mine[: min(max(1, round(fraction * len(mine))), len(mine) - 1)]] = True
    return (paths[~held], labels[~held]), (paths[held], labels[held])


def read_files(paths: np.ndarray, labels: np.ndarray, seed: int) -> tf.data.Dataset:
    """Encoded images and labels, in an order shuffled once by `seed`: any first part of them is a fair sample."""
    order = np.random.default_rng(seed).permutation(len(labels))
    names = [os.fspath(path) for path in paths[order]]
    data = tf.data.Dataset.from_tensor_slices((names, labels[order]))
    return data.map(lambda name, label: {"image": tf.io.read_file(name), "label": label}, tf.data.AUTOTUNE)
