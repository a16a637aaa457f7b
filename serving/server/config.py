"""Which models are served, from where, and which of their versions: plain dataclasses, made from flags or from a
`--model_config_file`, the text form of `tensorflow_serving.config.ModelServerConfig`.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from pipelines.config import UsageError


@dataclass(frozen=True)
class Policy:
    """Which of the versions found are served: the `latest` few, `all`, or `specific` ones."""

    kind: str = "latest"
    num_versions: int = 1
    versions: tuple[int, ...] = ()

    def aspired(self, found: Iterable[int]) -> list[int]:
        """The versions that should be loaded, newest first, of those that were found."""
        newest = sorted(set(found), reverse=True)
        if self.kind == "all":
            return newest
        if self.kind == "specific":
            return [version for version in newest if version in self.versions]
        return newest[: max(self.num_versions, 1)]


@dataclass(frozen=True)
class ModelConfig:
    """One model: its name in requests, the folder of its version folders, the policy, labels for versions."""

    name: str
    base_path: Path
    policy: Policy = Policy()
    labels: Mapping[str, int] = field(default_factory=dict)


def read(file: str | Path) -> list[ModelConfig]:
    """The models of a `--model_config_file`.

    Raises:
        UsageError: the file is missing or does not say what a ModelServerConfig should.
    """
    from google.protobuf import text_format
    from tensorflow_serving.config import model_server_config_pb2

    try:
        text = Path(file).read_text()
    except (OSError, UnicodeDecodeError) as error:
        raise UsageError(f"Expected --model_config_file to be a readable text file. Received: {file} ({error})")
    try:
        message = text_format.Parse(text, model_server_config_pb2.ModelServerConfig())
    except text_format.ParseError as error:
        raise UsageError(f"Expected the text form of a ModelServerConfig in {file}. Received: {error}")
    return from_proto(message)


def from_proto(message: Any) -> list[ModelConfig]:
    """The models of a ModelServerConfig message.

    Raises:
        UsageError: what TensorFlow Serving would refuse, in its words where it has some.
    """
    if message.HasField("custom_model_config"):
        raise UsageError("Expected a model_config_list. Received: a custom_model_config, which no server here supports")
    configs: list[ModelConfig] = []
    for model in message.model_config_list.config:
        if not model.name:
            raise UsageError(f"Expected every model of the list to have a name. Received: {model}")
        if any(config.name == model.name for config in configs):
            raise UsageError(f"Illegal to list model {model.name} multiple times in config list")
        if not model.base_path:
            raise UsageError(f"Expected a base_path for model {model.name}. Received: none")
        if not Path(model.base_path).is_absolute():
            raise UsageError(
                f"Expected model {model.name} to have an absolute path on this machine. "
                f"Received: base_path {model.base_path!r}"
            )
        if not model.model_platform and not model.model_type:
            raise UsageError(
                f'Expected model_platform: "tensorflow" for model {model.name}. Received: '
                "Illegal setting neither model_type(deprecated) nor model_platform."
            )
        if model.model_platform not in ("", "tensorflow"):
            raise UsageError(
                f'Expected model_platform: "tensorflow" for model {model.name}. Received: {model.model_platform!r}'
            )
        configs.append(
            ModelConfig(model.name, Path(model.base_path), _policy(model), dict(sorted(model.version_labels.items())))
        )
    return configs


def _policy(model: Any) -> Policy:
    choice = model.model_version_policy.WhichOneof("policy_choice")
    if choice == "all":
        return Policy("all")
    if choice == "specific":
        versions = tuple(model.model_version_policy.specific.versions)
        if not versions:
            raise UsageError(f"Expected versions in the specific policy of model {model.name}. Received: none")
        return Policy("specific", versions=versions)
    return Policy("latest", num_versions=max(1, model.model_version_policy.latest.num_versions))
