"""The tensors of a checkpoint folder: safetensors, in one file or in several, read without being copied, and written.

A safetensors file is eight bytes that say how long a JSON header is, the header with dtype, shape and place of every
tensor, and their bytes. Checkpoints in PyTorch's own format are refused: they are pickles, and a pickle is a program.
"""

import json
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path

import ml_dtypes
import numpy as np
from safetensors import SafetensorError, safe_open
from safetensors.numpy import save_file

INDEX, SINGLE = "model.safetensors.index.json", "model.safetensors"
PICKLES = ("pytorch_model.bin", "pytorch_model.bin.index.json", "*.pt", "*.pth", "*.ckpt", "*.pkl")
DTYPES = {
    "F64": np.float64,
    "F32": np.float32,
    "F16": np.float16,
    "BF16": ml_dtypes.bfloat16,
    "I64": np.int64,
    "I32": np.int32,
    "U8": np.uint8,
    "BOOL": np.bool_,
}


class Tensors(Mapping[str, np.ndarray]):
    """The tensors of a folder by their names, as views of its files: an array is read when it is used.

    Args:
        folder: with `model.safetensors`, or with an index and its parts.

    Raises:
        ValueError: the folder has none, a file is missing, cut short or damaged, or a tensor is in no file.
    """

    def __init__(self, folder: Path):
        self.places: dict[str, tuple[Path, type, tuple[int, ...], int]] = {}
        for file in self._files(folder):
            if not file.is_file():
                raise ValueError(f"Expected the file that {INDEX} names. Received: no {file}")
            try:
                with safe_open(file, framework="numpy"):
                    pass  # the library has checked the header, and that the file is as long as it says
            except (SafetensorError, OSError) as error:
                raise ValueError(f"Expected a whole safetensors file. Received: {file} ({error})") from error
            self._read_header(file)

    @staticmethod
    def _files(folder: Path) -> list[Path]:
        index, single = folder / INDEX, folder / SINGLE
        if index.is_file():
            try:
                parts = json.loads(index.read_text())["weight_map"].values()
            except (ValueError, KeyError, AttributeError) as error:
                raise ValueError(f"Expected JSON with a weight_map. Received: {index}") from error
            return [folder / part for part in sorted(set(parts))]
        if single.is_file():
            return [single]
        pickles = [path.name for pattern in PICKLES for path in sorted(folder.glob(pattern))]
        if pickles:
            raise ValueError(
                f"Expected {SINGLE}; a pickle can run any program when it is read, so none is. Convert it where you "
                f"trust it, by `save_pretrained` of Hugging Face transformers. Received: {folder / pickles[0]}"
            )
        raise ValueError(f"Expected a folder with {SINGLE} or {INDEX}. Received: {folder}")

    def _read_header(self, file: Path) -> None:
        with file.open("rb") as stream:
            length = int.from_bytes(stream.read(8), "little")
            header = json.loads(stream.read(length))
        for name, one in header.items():
            if name == "__metadata__":
                continue
            if one["dtype"] not in DTYPES:
                raise ValueError(f"Expected a tensor of {', '.join(DTYPES)}. Received: {name} of {one['dtype']}")
            start = 8 + length + one["data_offsets"][0]
            self.places[name] = (file, DTYPES[one["dtype"]], tuple(one["shape"]), start)

    def __getitem__(self, name: str) -> np.ndarray:
        file, dtype, shape, start = self.places[name]
        if 0 in shape:
            return np.zeros(shape, dtype)
        return np.memmap(file, dtype, "r", start, shape or (1,)).reshape(shape)

    def shape(self, name: str) -> tuple[int, ...]:
        return self.places[name][2]

    def __iter__(self) -> Iterator[str]:
        return iter(self.places)

    def __len__(self) -> int:
        return len(self.places)


def write(folder: Path, arrays: Iterable[tuple[str, np.ndarray]], limit: int = 5_000_000_000) -> None:
    """Writes tensors as one file, or as several of at most `limit` bytes with an index, as the Hub has them."""
    parts: list[dict[str, np.ndarray]] = [{}]
    for name, array in arrays:
        if parts[-1] and sum(one.nbytes for one in parts[-1].values()) + array.nbytes > limit:
            parts.append({})
        parts[-1][name] = np.ascontiguousarray(array)
    if len(parts) == 1:
        save_file(parts[0], folder / SINGLE, {"format": "pt"})
        return
    names = [f"model-{place + 1:05}-of-{len(parts):05}.safetensors" for place in range(len(parts))]
    for name, part in zip(names, parts):
        save_file(part, folder / name, {"format": "pt"})
    size = sum(array.nbytes for part in parts for array in part.values())
    where = {tensor: name for name, part in zip(names, parts) for tensor in part}
    (folder / INDEX).write_text(json.dumps({"metadata": {"total_size": size}, "weight_map": where}, indent=2) + "\n")
