"""The client asks over REST and gRPC alike, with files, folders and CSV files, and says in one line what is wrong."""

from __future__ import annotations

import json
import os
import socket
import subprocess
import sys

import numpy as np
import pytest
from ports import free_ports
from server_process import ROOT, cpu_of_children
from tensorflow.core.example.example_pb2 import Example

from pipelines.config import Failure, UsageError
from serving import client as command
from serving.client import Client, summary
from serving.records import texts
from serving.server.tensors import BY_NAME, Tensor
from serving.transports import ServerError, Signature, as_array

KINDS = ("rest", "grpc")


def run(capsys, *words: str) -> str:
    """What the command prints."""
    command.ask(command.parser().parse_args(words))
    return capsys.readouterr().out


def address(server, kind: str) -> list[str]:
    port = server.rest_port if kind == "rest" else server.grpc_port
    return [f"--{kind}", f"localhost:{port}"]


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize(
    "array",
    [
        np.array([[0.1, -2.5]], np.float32),
        np.array([np.nan, np.inf, -np.inf]),
        np.array([[-1], [2**31 - 1]], np.int32),
        np.array([2**53 + 1]),
        np.array([0, 255], np.uint8),
        np.array([True, False]),
        np.array([[b"\x00\xff", "\u00e4".encode()]], object),
    ],
    ids=lambda a: str(a.dtype),
)
def test_both_transports_carry_every_type(server, kind, array):
    name = f"same_{'string' if array.dtype == object else array.dtype.name}"
    if kind == "rest" and array.dtype == object:
        array = np.array([[b"plain", "\u00e4".encode()]], object)  # JSON text cannot carry other bytes back
    found = server.client("half", kind).predict({"x": array}, name)["same"]
    assert found.dtype == array.dtype
    np.testing.assert_array_equal(found, array)


@pytest.mark.parametrize("kind", KINDS)
def test_versions_labels_status_and_metadata(server, kind):
    zero = {"x": [0.0]}
    for options, value in (({}, 3.0), ({"version": 1}, 1.0), ({"label": "stable"}, 2.0)):
        assert server.client("half", kind, **options).predict(zero)["y"].tolist() == [value]
    client = server.client("half", kind)
    assert client.status() == [{"version": n, "state": "AVAILABLE", "error": ""} for n in (3, 2, 1)]
    signature = client.metadata()["matmul"]
    assert list(signature.inputs) == ["a", "b"] and list(signature.outputs) == ["product", "rows"]
    assert signature.inputs["a"].shape == (-1, -1) and signature.inputs["a"].dtype is BY_NAME["DT_FLOAT"]
    assert client.metadata()["classify"].method == "tensorflow/serving/classify"
    client.close()


@pytest.mark.parametrize("kind", KINDS)
def test_bytes_outputs_come_back_whole(server, kind):
    found = server.client("half", kind).predict({"text": [b"\x00\xff"]}, "strings")
    assert found["upper_bytes"].tolist() == [b"\x00\xff"] and found["length"].tolist() == [2]


@pytest.mark.parametrize("kind", KINDS)
def test_errors_of_the_server_keep_its_words_and_code(server, kind):
    with pytest.raises(ServerError, match=r"Servable not found for request: Latest\(nope\)") as error:
        server.client("nope", kind).predict({"x": [0.0]})
    assert error.value.status in (404, "NOT_FOUND")
    with pytest.raises(UsageError, match=r"Did you mean 'matmul'\? Received: 'matmull'"):
        server.client("half", kind).predict({}, "matmull")
    with pytest.raises(UsageError, match="Expected the inputs a, b of matmul. Received: a"):
        server.client("half", kind).predict({"a": [[1.0]]}, "matmul")
    nowhere = Client(model="m", timeout=5, **{kind: f"localhost:{free_ports(1)[0]}"})
    with pytest.raises(ServerError, match="Expected a model server at localhost:"):
        nowhere.status()


def test_rest_asked_of_the_grpc_port_says_so(server):
    client = Client(model="half", rest=f"localhost:{server.grpc_port}", timeout=30)
    with pytest.raises(ServerError, match=r"Expected HTTP at localhost:\d+, the port of the REST API") as error:
        client.status()
    assert str(error.value).isprintable()


def test_a_connection_that_the_server_closed_is_opened_again(server):
    client = server.client("half")
    client.status()
    client._transport._connection.sock.shutdown(socket.SHUT_RDWR)
    assert client.predict({"x": [0.0]})["y"].tolist() == [3.0]


@pytest.mark.parametrize("kind", KINDS)
def test_csv_rows_and_folders_of_files_make_a_table(server, kind, tmp_path, capsys):
    (tmp_path / "rows.csv").write_text("id,x\na,1\nb,2.5\n")
    assert run(capsys, *address(server, kind), "--model=half", str(tmp_path / "rows.csv")).splitlines() == [
        "name        y",
        "rows.csv:2  3.5",
        "rows.csv:3  4.25",
    ]
    folder = tmp_path / "files"
    (folder / "deep").mkdir(parents=True)
    (folder / "deep" / "b.txt").write_bytes(b"bb")
    (folder / "a.bin").write_bytes(b"a\xff")
    (folder / ".hidden").write_bytes(b"")
    words = [*address(server, kind), "--model=half", "--signature=strings", "--json", "--batch_size=1", str(folder)]
    assert [json.loads(line) for line in run(capsys, *words).splitlines()] == [
        {"name": "a.bin", "length": 2, "upper": "A\ufffd", "upper_bytes": {"b64": "Yf8="}}
        if kind == "rest"
        else {"name": "a.bin", "length": 2, "upper": {"b64": "Qf8="}, "upper_bytes": {"b64": "Yf8="}},
        {"name": "deep/b.txt", "length": 2, "upper": "BB", "upper_bytes": "bb"},
    ]


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("size", [1, 32])
def test_a_refused_file_is_named_and_the_others_are_answered(server, kind, size, tmp_path, capsys):
    message = Example()
    message.features.feature["x"].float_list.value.append(2.0)
    good = message.SerializeToString()
    for name, content in (("a", good), ("b", b"not an example"), ("c", good)):
        (tmp_path / name).write_bytes(content)
    words = [*address(server, kind), "--model=half", "--signature=regress", f"--batch_size={size}", str(tmp_path)]
    with pytest.raises(Failure, match="Expected an answer to each of the 3 inputs. Received: 1 refused, named above"):
        run(capsys, *words)
    head, a, b, c = capsys.readouterr().out.splitlines()
    assert (head.split(), a.split(), c.split()) == (["name", "outputs", "error"], ["a", "[4]"], ["c", "[4]"])
    assert b.startswith("b ") and "not parse" in b and "{{" not in b
    with pytest.raises(Failure):
        run(capsys, *words, "--json")
    answers = [json.loads(line) for line in capsys.readouterr().out.splitlines()]
    assert [answer["name"] for answer in answers] == ["a", "b", "c"]
    assert answers[0]["outputs"] == [4.0] and "not parse" in answers[1]["error"]


def test_other_errors_of_the_server_are_no_row(server, capsys, tmp_path):
    (tmp_path / "rows.csv").write_text("x\n1\n")
    with pytest.raises(ServerError, match="Servable not found") as error:
        run(capsys, *address(server, "rest"), "--model=half", "--version=9", str(tmp_path / "rows.csv"))
    assert error.value.status == 404 and not capsys.readouterr().out


@pytest.mark.parametrize(
    ("words", "left"),
    [
        ("Unknown format. One of JPEG.\n\t [[{{node while/body}}]] (HTTP 400)", "Unknown format. One of JPEG."),
        ("Unknown format. [[{{function_node map_while_body_2347}}{{node a}}]] (HTTP 400)", "Unknown format."),
        ("{{function_node __wrapped__Decode}} Unknown format (gRPC INVALID_ARGUMENT)", "Unknown format"),
        ("Expected (b, 2). Received: [1] (HTTP 400)", "Expected (b, 2). Received: [1]"),
    ],
)
def test_a_reason_is_what_people_can_read(words, left):
    assert command.reason(ServerError(words, 400)) == left


def test_npy_files_are_examples(server, tmp_path, capsys):
    np.save(tmp_path / "x.npy", np.float32(2))
    assert run(capsys, *address(server, "rest"), "--model=half", str(tmp_path)).splitlines()[1] == "x.npy  4"


@pytest.mark.parametrize(
    ("text", "signature", "message"),
    [
        ("y\n1\n2\n", "matmul", "Expected the columns a, b in "),
        ("x\none\n", "serving_default", "Expected numbers in line 2 of .*: could not convert string to float: 'one'"),
        ("steps\n1.5\n", "slow", "Expected numbers in line 2"),
        ("step\n1\n", "slow", "Expected the columns steps in .* Did you mean 'step'"),
        ("", "strings", "Received: an empty file"),
    ],
)
def test_csv_files_that_do_not_fit_say_why(server, tmp_path, text, signature, message):
    (tmp_path / "rows.csv").write_text(text)
    words = [*address(server, "rest"), "--model=half", f"--signature={signature}", str(tmp_path / "rows.csv")]
    with pytest.raises(UsageError, match=message):
        command.ask(command.parser().parse_args(words))


def signature_of(dtype="DT_FLOAT", shape=(-1, 2), name="x"):
    return Signature({name: Tensor(name, BY_NAME[dtype], shape)}, {}, "")


def test_columns_without_the_name_of_the_input_are_features(tmp_path):
    (tmp_path / "rows.csv").write_text("width,height\n1,2\n3,4\n")
    found = list(command.records([str(tmp_path)], signature_of()))
    assert found == [("rows.csv:2", {"x": [1.0, 2.0]}), ("rows.csv:3", {"x": [3.0, 4.0]})]
    (tmp_path / "rows.csv").write_text("width,height\n1,2.5\n")
    with pytest.raises(UsageError, match=r"Expected numbers in line 2 of .*'2.5'"):
        list(command.records([str(tmp_path)], signature_of("DT_INT32")))


def test_examples_are_grouped_by_shape_and_sent_alone_where_the_batch_is_fixed():
    asked = [(str(i), {"x": np.zeros(shape)}) for i, shape in enumerate([2, 2, 2, 3, 3])]
    groups = command.batches(iter(asked), signature_of(shape=(-1, -1)), 2)
    assert [[name for name, _ in group] for group in groups] == [["0", "1"], ["2"], ["3", "4"]]
    groups = command.batches(iter(asked), signature_of(shape=(1, 2)), 2)
    assert [len(group) for group in groups] == [1] * 5


def test_classifiers_show_label_and_top_probability():
    scores = np.array([0.25, 0.75], np.float32)
    assert summary({"name": "a", "probabilities": scores, "label": b"cat", "features": np.zeros(9)}) == {
        "name": "a",
        "label": "cat",
        "probability": "0.7500",
    }
    assert summary({"name": "a", "scores": scores})["label"] == "1"
    assert summary({"name": "a", "y": np.arange(8.0)}) == {"name": "a", "y": "[0 1 2 3 4 5 …]"}


@pytest.mark.parametrize("kind", KINDS)
def test_texts_of_the_command_line_are_asked_about(server, capsys, kind):
    words = [*address(server, kind), "--model=half", "--signature=strings", "--json", "--text", "one", "zwei Wörter"]
    rows = [json.loads(line) for line in run(capsys, *words).splitlines()]
    assert [(row["name"], row["upper"]) for row in rows] == [("one", "ONE"), ("zwei Wörter", "ZWEI WöRTER")]  # of bytes


def test_texts_need_a_signature_of_strings(server, capsys):
    with pytest.raises(UsageError, match=r"an input of strings for --text. Received: one of x \(DT_FLOAT|float"):
        run(capsys, *address(server, "rest"), "--model=half", "--text", "one")


def test_several_inputs_are_given_by_name_on_the_command_line():
    inputs = {
        "prompt": Tensor("prompt", BY_NAME["DT_STRING"], (-1,)),
        "seed": Tensor("seed", BY_NAME["DT_INT32"], (-1,)),
    }
    signature = Signature(inputs, {}, "")
    assert list(texts(["seed=3", "prompt=a=b"], signature)) == [("a=b", {"prompt": "a=b", "seed": 3})]
    for words in (["prompt=a"], ["prompt=a", "seeds=3"], ["a", "seed=3"], ["prompt=a", "seed=3", "c"]):
        with pytest.raises(UsageError, match=r"Expected --text prompt=VALUE seed=VALUE\..* Received: "):
            list(texts(words, signature))
    with pytest.raises(UsageError, match="Expected numbers where an input takes them"):
        list(texts(["prompt=a", "seed=three"], signature))


def test_values_that_do_not_fit_an_input_are_usage_errors():
    assert as_array(["a", b"b"], Tensor("t", BY_NAME["DT_STRING"], (-1,))).tolist() == [b"a", b"b"]
    with pytest.raises(UsageError, match="Expected float values for input 'x'"):
        as_array(["one"], Tensor("x", BY_NAME["DT_FLOAT"], (-1,)))
    with pytest.raises(UsageError, match="Expected one address"):
        Client(model="m")
    with pytest.raises(UsageError, match="Expected a version or a label"):
        Client(model="m", rest="localhost:1", version=1, label="a")


@pytest.mark.parametrize(
    ("words", "code", "message"),
    [
        (["--model=m", "--rest", "localhost:{port}", "x.bin"], 1, "Expected a model server at localhost:"),
        (["--rest", "localhost:{port}", "x.bin"], 2, "Expected --model NAME. Received: none"),
        (["--model=m"], 2, "Expected files, folders or --text TEXT. Received: none"),
        (["--modle=m", "x.bin"], 2, "Did you mean '--model'? Received: '--modle=m'"),
        (["--model=m", "--grpc=http://a:1", "x.bin"], 2, "Expected HOST:PORT for --grpc."),
    ],
)
def test_the_command_fails_in_one_line_and_fast_over_rest(tmp_path, words, code, message):
    words = [word.format(port=free_ports(1)[0]) for word in words]
    begin = cpu_of_children()
    result = subprocess.run(
        [sys.executable, "-m", "serving.client", *words],
        cwd=ROOT,
        env=os.environ | {"TF_CPP_MIN_LOG_LEVEL": "3"},
        capture_output=True,
        text=True,
        check=False,
    )
    assert result.returncode == code
    assert message in result.stderr.splitlines()[-1] and "Traceback" not in result.stderr
    assert cpu_of_children() - begin < 1.5, "nothing here imports TensorFlow"
