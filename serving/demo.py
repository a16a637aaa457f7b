"""The whole road in one go: train, export, serve, ask over REST and gRPC, and compare the answers with the truth.

    python -m serving.demo

Trains the default run of image_classification on real handwritten digits, exports it, starts the model server, sends it
PNG files over both protocols, and prints the answers beside the true labels: about 70 seconds on two cores. Every
command that it runs is printed, to be repeated by hand. The exit code is 1 when any two answers disagree: REST and
gRPC, or the served accuracy and the one that was measured after training. (A digit that the model takes for another one
is marked, and is no error.)
"""

from __future__ import annotations

import argparse
import shlex
import shutil
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np

from pipelines import runs
from pipelines.config import Failure, Parser, guarded, quiet_tensorflow
from serving.client import Client
from serving.export import SUMMARY, curl, model_base, versions
from serving.transports import ServerError

TASK = "image_classification"
SHOWN = 24
SAME = 1e-6  # what REST's decimal numbers may lose


def shown(words: Sequence[str]) -> str:
    """A command as one would type it."""
    return shlex.join(["python", *words])


def run(*words: str) -> None:
    """Print a `python -m` command and run it to its end."""
    print(f"\n$ {shown(words)}", flush=True)
    code = subprocess.run([sys.executable, *words]).returncode
    if code:
        raise Failure(f"Expected this command to succeed: {shown(words)}. Received: exit code {code}")


def port(preferred: int) -> int:
    """The preferred port if nothing listens there, or else a free one."""
    for number in (preferred, 0):
        with socket.socket() as probe:
            probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            try:
                probe.bind(("", number))
            except OSError:
                continue
            return probe.getsockname()[1]
    raise Failure("Expected a free port. Received: none")


@contextmanager
def server(base: Path, rest: int, grpc: int, seconds: float = 60) -> Iterator[subprocess.Popen]:
    """The model server as a process, ready inside, and stopped by SIGTERM after.

    Raises:
        Failure: it does not get ready in time, or does not stop cleanly.
    """
    ports = [f"--rest_api_port={rest}", f"--port={grpc}"]
    words = ["-m", "serving.server", f"--model_name={TASK}", f"--model_base_path={base.resolve()}", *ports]
    print(f"\n$ {shown(words)} &", flush=True)
    process = subprocess.Popen([sys.executable, *words])
    try:
        client = Client(rest=f"http://localhost:{rest}", model=TASK)
        deadline = time.monotonic() + seconds
        while not ready(client):
            if process.poll() is not None or time.monotonic() > deadline:
                raise Failure(f"Expected a server that is ready in {seconds:g} s. Received: {process.poll()}")
            time.sleep(0.1)
        client.close()
        yield process
    except BaseException:
        process.kill()
        process.wait()
        raise
    process.send_signal(signal.SIGTERM)
    try:
        code = process.wait(30)
    except subprocess.TimeoutExpired:
        process.kill()
        raise Failure("Expected the server to stop within 30 s of SIGTERM. Received: it still runs")
    if code:
        raise Failure(f"Expected the server to stop with exit code 0. Received: {code}")


def ready(client: Client) -> bool:
    try:
        return any(one["state"] == "AVAILABLE" for one in client.status())
    except ServerError:
        return False


def test_pictures(run: runs.Run) -> tuple[list[bytes], np.ndarray]:
    """The test split as a client has it: encoded pictures, and the name of the true class of each, (n,)."""
    from pipelines import datasets

    config = run.config
    raw = datasets.load(
        config.dataset, data_dir=config.data_dir, seed=config.seed, limit=config.limit, skip_bad=config.skip_bad
    )
    pairs = [(one["image"], run.spec["classes"][one["label"]]) for one in raw.test.as_numpy_iterator()]
    return [image for image, _ in pairs], np.array([name for _, name in pairs])


def ask(client: Client, pictures: Sequence[bytes]) -> tuple[np.ndarray, np.ndarray, float]:
    """Labels (n,), probabilities (n, k) and milliseconds a request: one picture each for the first, then one batch."""
    client.predict({"image": [pictures[0]]})  # opens the connection
    start = time.perf_counter()
    answers = [client.predict({"image": [one]}) for one in pictures[:SHOWN]]
    each = (time.perf_counter() - start) / len(answers) * 1e3
    if pictures[SHOWN:]:
        answers.append(client.predict({"image": list(pictures[SHOWN:])}))
    labels = np.concatenate([answer["label"] for answer in answers])
    probabilities = np.concatenate([answer["probabilities"] for answer in answers])
    return np.array([one.decode() if isinstance(one, bytes) else str(one) for one in labels]), probabilities, each


def table(names: Sequence[str], truth: Any, rest: Any, grpc: Any) -> str:
    """The answers of the first pictures beside the true labels."""
    rows = []
    for i, name in enumerate(names):
        one, other = (f"{label[i]} ({values[i].max():.1%})" for label, values in (rest, grpc))
        rows.append([name, one, other, truth[i], "" if rest[0][i] == truth[i] else "the model is wrong"])
    return runs.table(["picture", "REST", "gRPC", "truth", ""], rows)


def disagreements(truth: Any, rest: Any, grpc: Any, measured: float) -> list[str]:
    """What does not fit together, in words; `[]` where all is well."""
    found = []
    others = int((rest[0] != grpc[0]).sum())
    if others:
        found.append(f"REST and gRPC give {others} pictures different labels")
    off = float(np.abs(rest[1].astype("float64") - grpc[1]).max())
    if not off <= SAME:
        found.append(f"the probabilities of REST and gRPC differ by {off:.2g}")
    served = float((rest[0] == truth).mean())
    if abs(served - measured) > 1e-6:
        found.append(f"the server is right in {served:.4%} of the test split, training measured {measured:.4%}")
    return found


def save_pictures(folder: Path, pictures: Sequence[bytes], truth: Any) -> list[Path]:
    """Write encoded pictures as files named by number and true label, as one would send them by hand."""
    folder.mkdir(exist_ok=True)
    paths = [folder / f"{i:02d}-is-{name}.png" for i, name in enumerate(truth[: len(pictures)])]
    for path, picture in zip(paths, pictures):
        path.write_bytes(picture)
    return paths


def draw(pictures: Sequence[bytes], truth: Any, labels: Any, probabilities: Any, path: Path) -> None:
    """The served answers over the pictures."""
    import io

    from PIL import Image

    from pipelines import report

    pixels = np.stack([np.atleast_3d(np.asarray(Image.open(io.BytesIO(one)))) for one in pictures])  # (n, h, w, c)
    titles = [f"{label} {values.max():.0%} (is {true})" for label, values, true in zip(labels, probabilities, truth)]
    wrong = {i for i, true in enumerate(truth[: len(pictures)]) if labels[i] != true}
    report.image_grid(pixels, titles, path, heading="answers of the model server (red: wrong)", wrong=wrong)


def demo(out: str, exported: str, limit: int | None = None) -> None:
    """Run the demonstration.

    Args:
        out: where the run folder goes.
        exported: where the exported version goes.
        limit: train on at most this many pictures; default: all.

    Raises:
        Failure: a step fails, or answers disagree.
    """
    begin = time.monotonic()
    before = set(runs.find(out, TASK))
    fewer = ["--limit", str(limit)] if limit is not None else []
    run("-m", f"pipelines.{TASK}", *fewer, *(["--out", out] if out != "runs" else []))
    folder = next(found for found in runs.find(out, TASK) if found not in before)
    run("-m", "serving.export", str(folder), *(["--out", exported] if exported != "exported" else []))
    base = model_base(exported, TASK, "savedmodel")
    version = base / str(versions(base)[-1])

    quiet_tensorflow()
    trained = runs.load(folder, model=False)
    pictures, truth = test_pictures(trained)
    files = save_pictures(folder / "pictures", pictures[:SHOWN], truth)
    rest_port, grpc_port = port(8501), port(8500)
    with server(base, rest_port, grpc_port):
        rest = ask(Client(rest=f"http://localhost:{rest_port}", model=TASK), pictures)
        grpc = ask(Client(grpc=f"localhost:{grpc_port}", model=TASK), pictures)
        words = ["-m", "serving.client", f"--rest=http://localhost:{rest_port}", f"--model={TASK}", str(files[0])]
        run(*words)
        line = curl(f"http://localhost:{rest_port}/v1/models/{TASK}:predict", "serving_default", str(files[0]))
        print(f"\n$ {line}", flush=True)
        if shutil.which("curl"):
            subprocess.run(["sh", "-c", line], check=False)  # the line as it is printed
            print()
    print(f"\n{table([path.name for path in files], truth, rest[:2], grpc[:2])}")

    right, measured = int((rest[0] == truth).sum()), trained.metrics["test"]["accuracy"]
    print(f"\nserved: {right} of {len(truth)} test pictures right, {right / len(truth):.2%} (REST and gRPC alike);")
    print(f"a request of one picture takes {rest[2]:.1f} ms over REST and {grpc[2]:.1f} ms over gRPC")
    picture = folder / "plots" / "served.png"
    draw(pictures[:SHOWN], truth, rest[0], rest[1], picture)
    print("\nOpen these pictures:")
    for path, what in (
        (picture, "the answers of the server"),
        (folder / "plots/curves.png", "how it learned"),
        (folder / "plots/confusion_matrix.png", "which digits it takes for which"),
        (folder / "plots/most_wrong.png", "the digits it finds hardest"),
        (folder / "plots/first_batch.png", "what it was trained on"),
    ):
        print(f"  {path}: {what}")
    print(f"Read: {folder / 'card.md'} (model card), {version / SUMMARY} (what the served model takes and gives)")
    found = disagreements(truth, rest[:2], grpc[:2], measured)
    if found:
        raise Failure(f"Expected answers that agree. Received: {'; '.join(found)}")
    print(f"All answers agree. {time.monotonic() - begin:.0f} s")


def main(argv: list[str]) -> None:
    parser = Parser(prog="python -m serving.demo", description=__doc__, allow_abbrev=False)
    parser.formatter_class = argparse.RawDescriptionHelpFormatter
    parser.add_argument("--out", default="runs", metavar="DIR", help="where the run folder goes (default runs)")
    parser.add_argument("--exported", default="exported", metavar="DIR", help="where the model goes (default exported)")
    parser.add_argument("--limit", type=int, metavar="N", help="train on at most N pictures; default: all")
    parser.add_argument("--verbose", action="store_true", help="show the traceback of an error")
    flags = parser.parse_args(argv)
    demo(flags.out, flags.exported, flags.limit)


if __name__ == "__main__":
    sys.exit(guarded(lambda: main(sys.argv[1:]), verbose="--verbose" in sys.argv))
