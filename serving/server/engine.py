"""A SavedModel as functions of NumPy arrays: one for each signature, through the cheapest path that exists.

The fast path is a TF1 session over the SavedModel with a callable that is made once for each signature. It costs a
tenth of a call of the loaded signature function, but hangs on a private name of TensorFlow,
`Session._make_callable_from_options`, which is used in this file only. Where that name is missing the documented path
takes over: `tf.saved_model.load(path).signatures[name]`. Both answer the same.
"""

from __future__ import annotations

import contextlib
import importlib
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import tensorflow as tf
from tensorflow.core.protobuf import config_pb2, meta_graph_pb2, saved_model_pb2

from serving.server.errors import ServingError
from serving.server.tensors import DTYPES, Tensor, dtype_of

_PRIVATE = "_make_callable_from_options"
WARMUP_FILE = Path("assets.extra", "tf_serving_warmup_requests")
WARMUP_LIMIT = 1000  # records, as in TensorFlow Serving

Run = Callable[[Sequence[np.ndarray]], list[np.ndarray]]


@dataclass
class Signature:
    """A signature that can be run: `run(arrays in the order of inputs)` gives arrays in the order of `outputs`.

    `seconds` remembers what calls cost, by the size of their inputs; the server decides by it where to run them.
    """

    name: str
    method: str
    inputs: dict[str, Tensor]
    outputs: dict[str, Tensor]
    run: Run
    seconds: dict[int, float] = field(default_factory=dict)


@dataclass
class SavedModel:
    """A loaded SavedModel; `definitions` are its SignatureDefs as the files have them."""

    path: Path
    signatures: dict[str, Signature]
    definitions: dict[str, Any]
    fast: bool
    load_seconds: float
    _session: Any = None

    def close(self) -> None:
        """Give the memory back. No call may be running."""
        self.signatures.clear()
        if self._session is not None:
            self._session.close()


def has_fast_path() -> bool:
    """Whether this TensorFlow still has the private name."""
    return hasattr(tf.compat.v1.Session, _PRIVATE)


def load(
    path: str | Path, *, tags: Sequence[str] = ("serve",), threads: int = 0, fast: bool | None = None
) -> SavedModel:
    """Load a SavedModel.

    Args:
        path: the folder of one version.
        tags: which graph of the file to load.
        threads: within and between operations; 0: every core within one, and one operation at a time.
        fast: True and False force one of the two paths, None takes the fast one where it exists.

    Raises:
        ServingError: NOT_FOUND or INTERNAL, with TensorFlow's own words, where the files are missing or damaged.
    """
    path, begin = Path(path), time.perf_counter()
    fast = has_fast_path() if fast is None else fast
    try:
        register_operations(path, tags)
        if fast:
            definitions, runners, session = _load_session(path, tags, threads)
        else:
            definitions, runners, session = _load_functions(path, tags)
    except ServingError:
        raise
    except Exception as error:  # the loaders raise OSError, ValueError, OpError, DecodeError, … for damaged files
        code = "NOT_FOUND" if isinstance(error, (FileNotFoundError, tf.errors.NotFoundError)) else "INTERNAL"
        raise ServingError(code, f"Could not load SavedModel {path}: {' '.join(str(error).split())[:500]}") from error
    signatures = {}
    for name, run in runners.items():
        definition = definitions[name]
        inputs, outputs = _tensors(definition.inputs), _tensors(definition.outputs)
        signatures[name] = Signature(name, definition.method_name, inputs, outputs, run)
    return SavedModel(path, signatures, definitions, fast, time.perf_counter() - begin, session)


def _meta_graph(path: Path, tags: Sequence[str]) -> Any:
    """The graph with these tags as `saved_model.pb` describes it; an empty one where there is none."""
    file = saved_model_pb2.SavedModel()
    file.ParseFromString((path / "saved_model.pb").read_bytes())
    found = [one for one in file.meta_graphs if set(one.meta_info_def.tags) == set(tags)]
    return found[-1] if found else meta_graph_pb2.MetaGraphDef()


def register_operations(path: Path, tags: Sequence[str]) -> None:
    """Import TensorFlow Text where a model has operations that TensorFlow alone does not know: its tokenizers.

    TensorFlow Serving is linked with them; a Python program has to import them once.
    """
    names = {one.name for one in _meta_graph(path, tags).meta_info_def.stripped_op_list.op}
    if any(not hasattr(tf.raw_ops, name) for name in names if not name.startswith("_")):
        with contextlib.suppress(ImportError):  # without it TensorFlow says which operation is missing
            importlib.import_module("tensorflow_text")


def _usable(definitions: dict[str, Any]) -> dict[str, Any]:
    """The signatures that can be asked: not the initializer, and none with types that have no NumPy counterpart."""
    return {
        name: definition
        for name, definition in definitions.items()
        if not name.startswith("__saved_model")
        and all(info.dtype in DTYPES for info in [*definition.inputs.values(), *definition.outputs.values()])
    }


def _tensors(infos: Any) -> dict[str, Tensor]:
    """The descriptions of inputs or outputs, sorted by name."""
    found = {}
    for name in sorted(infos):
        info = infos[name]
        shape = None if info.tensor_shape.unknown_rank else tuple(dim.size for dim in info.tensor_shape.dim)
        found[name] = Tensor(name, dtype_of(info.dtype), shape)
    return found


def _load_session(path: Path, tags: Sequence[str], threads: int) -> tuple[dict[str, Any], dict[str, Run], Any]:
    """The fast path: a session over the graph, and a ready-made callable for each signature."""
    # Operations of one call run in the calling thread, one after another: handing them to TensorFlow's pool costs a
    # small model four times what it computes. Large operations still spread over the cores (intra-op threads).
    config = config_pb2.ConfigProto(inter_op_parallelism_threads=threads or -1, intra_op_parallelism_threads=threads)
    config.use_per_session_threads = threads > 0
    graph = tf.Graph()
    session = tf.compat.v1.Session(graph=graph, config=config)
    try:
        with graph.as_default():
            meta_graph = tf.compat.v1.saved_model.loader.load(session, list(tags), str(path))
        definitions = dict(meta_graph.signature_def)
        runners: dict[str, Run] = {}
        for name, definition in _usable(definitions).items():
            options = config_pb2.CallableOptions(
                feed=[definition.inputs[key].name for key in sorted(definition.inputs)],
                fetch=[definition.outputs[key].name for key in sorted(definition.outputs)],
            )
            call = getattr(session, _PRIVATE)(options)
            runners[name] = lambda arrays, call=call: call(*arrays)  # type: ignore[misc]
    except BaseException:
        session.close()
        raise
    return definitions, runners, session


def _load_functions(path: Path, tags: Sequence[str]) -> tuple[dict[str, Any], dict[str, Run], Any]:
    """The documented path: the signature functions of a loaded SavedModel."""
    definitions = dict(_meta_graph(path, tags).signature_def)
    loaded = tf.saved_model.load(str(path), tags=list(tags))
    runners: dict[str, Run] = {}
    for name, definition in _usable(definitions).items():
        runners[name] = _function_runner(loaded, name, sorted(definition.inputs), sorted(definition.outputs))
    return definitions, runners, None


def _function_runner(loaded: Any, name: str, inputs: list[str], outputs: list[str]) -> Run:
    function = loaded.signatures[name]

    def run(arrays: Sequence[np.ndarray]) -> list[np.ndarray]:
        answer = function(**{key: tf.constant(array) for key, array in zip(inputs, arrays)})
        return [answer[key].numpy() for key in outputs]

    run.model = loaded  # type: ignore[attr-defined]  # its variables live as long as it does
    return run


def warmup_records(path: Path) -> list[Any]:
    """The recorded requests of a version, as PredictionLog messages; none where it has no such file."""
    from tensorflow_serving.apis import prediction_log_pb2

    file = path / WARMUP_FILE
    if not file.is_file():
        return []
    records = tf.data.TFRecordDataset(str(file)).take(WARMUP_LIMIT).as_numpy_iterator()
    return [prediction_log_pb2.PredictionLog.FromString(record) for record in records]
