"""The small networks of `models/` in plain PyTorch, timed: the peer of `python -m benchmarks.training`.

    python benchmarks/torch_peers.py convnet 8 8 1 10 --batch 32 --images 1280 --seconds 5

Needs torch alone, so that it can run with an interpreter that has nothing else of this project. Prints one JSON object.
Eager mode, Adam, the same layers and number of trainable parameters as the Keras builders; random pixels in memory.
"""

from __future__ import annotations

import argparse
import json
import time

import torch
from torch import nn


def conv_norm(inputs: int, outputs: int, stride: int = 1, activation: bool = True) -> list[nn.Module]:
    """3×3 convolution without bias, batch normalization and, unless told otherwise, ReLU."""
    layers: list[nn.Module] = [nn.Conv2d(inputs, outputs, 3, stride, 1, bias=False), nn.BatchNorm2d(outputs)]
    return [*layers, nn.ReLU(inplace=True)] if activation else layers


def head(features: int, classes: int, dropout: float = 0.0) -> list[nn.Module]:
    return [nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Dropout(dropout), nn.Linear(features, classes)]


def convnet(channels: int, classes: int) -> nn.Module:
    """`models/convnet.py` with its defaults: two stages of two convolutions, 32 and 64 channels."""
    return nn.Sequential(
        *conv_norm(channels, 32), *conv_norm(32, 32),
        nn.MaxPool2d(2), nn.Dropout2d(0.15),  # (b, 32, h / 2, w / 2)
        *conv_norm(32, 64), *conv_norm(64, 64),
        *head(64, classes, 0.3),
    )  # fmt: skip


class Block(nn.Module):
    """A residual block of two convolutions whose shortcut has no parameters (He et al. 2015, section 3.3, option A)."""

    def __init__(self, inputs: int, outputs: int, stride: int):
        super().__init__()
        self.branch = nn.Sequential(*conv_norm(inputs, outputs, stride), *conv_norm(outputs, outputs, 1, False))
        self.stride, self.more = stride, outputs - inputs

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        shortcut = x[:, :, :: self.stride, :: self.stride]  # (b, c, h / stride, w / stride)
        if self.more:
            shortcut = nn.functional.pad(shortcut, (0, 0, 0, 0, 0, self.more))  # (b, c + more, h, w)
        return torch.relu(self.branch(x) + shortcut)


def resnet20(channels: int, classes: int) -> nn.Module:
    """`models/resnet.py` at size "20": three stages of three blocks, 16, 32 and 64 channels."""
    blocks: list[nn.Module] = conv_norm(channels, 16)
    inputs = 16
    for width in (16, 32, 64):
        for index in range(3):
            blocks.append(Block(inputs, width, 2 if width > 16 and index == 0 else 1))
            inputs = width
    return nn.Sequential(*blocks, *head(64, classes))


def rate(model: nn.Module, x: torch.Tensor, y: torch.Tensor, batch: int, seconds: float) -> float:
    """Images per second of training, the first pass over the data left out."""
    optimizer, criterion = torch.optim.Adam(model.parameters(), 1e-3), nn.CrossEntropyLoss()
    start, images = 0.0, 0
    while not start or time.perf_counter() - start < seconds:
        for places in torch.randperm(len(x)).split(batch):
            optimizer.zero_grad()
            criterion(model(x[places]), y[places]).backward()
            optimizer.step()
            images += len(places)
        if not start:
            start, images = time.perf_counter(), 0
    return images / (time.perf_counter() - start)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("model", choices=("convnet", "resnet20"))
    parser.add_argument("height", type=int, help="of the pictures, in pixels")
    parser.add_argument("width", type=int, help="of the pictures, in pixels")
    parser.add_argument("channels", type=int)
    parser.add_argument("classes", type=int)
    parser.add_argument("--batch", type=int, default=32)
    parser.add_argument("--images", type=int, default=1280, help="in one pass")
    parser.add_argument("--seconds", type=float, default=5.0)
    flags = parser.parse_args()
    torch.manual_seed(0)
    model = {"convnet": convnet, "resnet20": resnet20}[flags.model](flags.channels, flags.classes)
    x = torch.randn(flags.images, flags.channels, flags.height, flags.width)
    y = torch.randint(flags.classes, (flags.images,))
    found = {
        "images_per_second": rate(model, x, y, flags.batch, flags.seconds),
        "parameters": sum(weight.numel() for weight in model.parameters()),
        "torch": torch.__version__,
        "threads": torch.get_num_threads(),
    }
    print(json.dumps(found))


if __name__ == "__main__":
    main()
