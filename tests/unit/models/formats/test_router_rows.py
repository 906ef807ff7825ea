"""Routers read by byte ranges: equal to those of loaded models, from folders and from a server on this
machine that counts what it sends; servers and files that are not what they should be.
"""

from __future__ import annotations

import json
import re
import threading
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

import numpy as np
import pytest
import torch
from huggingface_hub import constants
from transformers import AutoModelForCausalLM

import sparsescope as ss
from sparsescope.errors import DependencyError, SpecError, SubjectError
from sparsescope.models import checkpoints
from sparsescope.models.checkpoints import CheckpointSeries, open_series
from sparsescope.models.formats.router_rows import FolderFiles, HubFiles, read_router_rows
from sparsescope.models.sources import load

MIXTURES = ("random-olmoe", "random-mixtral", "random-qwen2moe")
SHARD = "100KB"


class Server(ThreadingHTTPServer):
    """A hub of one machine: /organization/model/resolve/REVISION/FILE, with byte ranges."""

    def __init__(self, folders, ranges=True):
        super().__init__(("127.0.0.1", 0), Handler)
        self.folders, self.ranges, self.sent, self.asked = folders, ranges, 0, []
        self.cut, self.total = 0, ""

    @property
    def endpoint(self):
        return f"http://127.0.0.1:{self.server_address[1]}"


class Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"

    def do_GET(self):
        _, organization, model, _, revision, name = self.path.split("/")
        path = self.server.folders.get((f"{organization}/{model}", revision))
        path = path / name if path is not None else None
        if path is None or not path.is_file():
            self.answer(404, b"")
            return
        whole = path.read_bytes()
        found = re.fullmatch(r"bytes=(\d+)-(\d+)", self.headers.get("Range", ""))
        if found is None or not self.server.ranges:
            self.answer(200, whole)
            return
        begin, end = int(found[1]), int(found[2]) + 1
        self.server.asked.append((name, begin, end))
        part = whole[begin : end - self.server.cut if end - begin > 8 else end]
        self.answer(
            206, part, {"Content-Range": f"bytes {begin}-{end - 1}/{self.server.total or len(whole)}"}
        )

    def answer(self, code, body, more=None):
        self.send_response(code)
        for key, value in {"Content-Length": str(len(body)), **(more or {})}.items():
            self.send_header(key, value)
        self.end_headers()
        try:
            self.wfile.write(body)
            self.server.sent += len(body)
        except OSError:  # the client has seen enough
            self.close_connection = True

    def log_message(self, *given):
        """Nothing."""


@pytest.fixture(scope="module")
def saved(tmp_path_factory):
    """Folders of random mixtures as transformers writes them, in bfloat16 and in several shards."""
    folders = {}
    for name in MIXTURES:
        folder = tmp_path_factory.mktemp(name)
        model = load(name).model.to(torch.bfloat16)
        model.save_pretrained(folder, max_shard_size=SHARD)
        folders[name] = folder
    return folders


@pytest.fixture
def serve(monkeypatch):
    """Start servers; the hub library may use the network, which is this machine."""
    servers = []

    def start(folders, **options):
        server = Server(folders, **options)
        threading.Thread(target=server.serve_forever, daemon=True).start()
        servers.append(server)
        monkeypatch.setattr(constants, "HF_HUB_OFFLINE", False)
        template = server.endpoint + "/{repo_id}/resolve/{revision}/{filename}"
        monkeypatch.setattr(constants, "HUGGINGFACE_CO_URL_TEMPLATE", template)
        return server

    yield start
    for server in servers:
        server.shutdown()
        server.server_close()


def loaded_rows(folder):
    subject = ss.wrap(AutoModelForCausalLM.from_pretrained(folder))
    blocks = [block.layer for block in subject.blocks if block.experts is not None]
    rows = [subject.parameter(f"weight:blocks.{layer}.mlp.router.weight").float().numpy() for layer in blocks]
    return tuple(blocks), np.stack(rows)


@pytest.mark.parametrize("name", MIXTURES)
def test_they_are_the_routers_of_the_loaded_model(saved, name):
    found = read_router_rows(FolderFiles(saved[name]))
    layers, rows = loaded_rows(saved[name])
    assert found.layers == layers and np.array_equal(found.rows, rows)
    size = sum(path.stat().st_size for path in saved[name].glob("*.safetensors"))
    assert found.bytes_whole == size and found.bytes_read < size
    assert len(list(saved[name].glob("*.safetensors"))) > 1, "several shards"


def test_a_shipped_series_gives_the_routers_of_each_checkpoint():
    series = open_series("bytes-moe")
    for step in (0, 1500):
        subject = series.subject(step)
        for place, layer in enumerate(series.routers(step).layers):
            expected = subject.parameter(f"weight:blocks.{layer}.mlp.router.weight").numpy()
            assert np.array_equal(series.routers(step).rows[place], expected)
    assert series.routers(0) is series.routers(0), "read once"
    assert series.routers(0).digest != series.routers(1500).digest


def test_a_server_sends_little_more_than_the_routers(saved, serve):
    server = serve({("org/moe", "step1"): saved["random-olmoe"]})
    found = read_router_rows(HubFiles("org/moe", "step1"))
    here = read_router_rows(FolderFiles(saved["random-olmoe"]))
    assert np.array_equal(found.rows, here.rows) and found.digest == here.digest
    assert found.bytes_read == here.bytes_read
    # and a byte for the size of each file
    files = len(list(saved["random-olmoe"].glob("*.safetensors"))) + 2
    assert found.bytes_read <= server.sent <= found.bytes_read + files
    heads = {(name, begin) for name, begin, _ in server.asked if name.endswith(".safetensors")}
    tensors = [name for name, begin in heads if begin > 8]
    assert len(tensors) == len(found.layers), "a request for each router, none for other tensors"


def test_revisions_of_a_hub_are_followed_without_loading_a_model(saved, serve, monkeypatch):
    folders = {("org/moe", f"step{n}"): saved["random-olmoe"] for n in (1, 2)}
    serve(folders)
    monkeypatch.setattr(CheckpointSeries, "subject", lambda *given: pytest.fail("a model is loaded"))
    result = ss.run("router_drift", routers="org/moe@step1,step2")
    assert result.tables["rows"]["step"].unique().tolist() == [1, 2]
    assert result.tables["rows"]["cosine"].tolist() == pytest.approx([1] * len(result.tables["rows"]))
    monkeypatch.setattr(checkpoints, "_branches", lambda repository: ["main", "step1", "step2"])
    assert ss.run("router_drift", routers="org/moe").tables["rows"]["step"].nunique() == 2
    one = ss.run("router_drift", routers="org/moe@step2")
    assert "--routers org/moe@step2" in one.provenance["command"]


def test_servers_that_cannot_be_used_say_why(saved, serve, monkeypatch):
    folders = {("org/moe", "step1"): saved["random-olmoe"]}
    server = serve(folders, ranges=False)
    with pytest.raises(DependencyError, match="cannot be read from the hub") as caught:
        read_router_rows(HubFiles("org/moe", "step1"))
    assert "whole files" in str(caught.value) and server.asked == []
    server = serve(folders)
    server.cut = 3
    with pytest.raises((DependencyError, SubjectError)):
        read_router_rows(HubFiles("org/moe", "step1"))
    with pytest.raises(SubjectError, match="read by themselves") as caught:
        read_router_rows(HubFiles("org/moe", "step7"))
    assert "neither: is this a revision" in str(caught.value)
    server.total = "*"  # as RFC 9110 allows
    with pytest.raises(DependencyError, match="cannot be read from the hub"):
        read_router_rows(HubFiles("org/moe", "step1"))
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)
    with pytest.raises(DependencyError) as caught:
        read_router_rows(HubFiles("org/moe", "step1"))
    assert "HF_HUB_OFFLINE" in str(caught.value)


def test_a_dense_model_and_damaged_files_are_refused(saved, tmp_path):
    dense = tmp_path / "dense"
    load("random-llama").model.save_pretrained(dense)
    with pytest.raises(SubjectError, match="read by themselves") as caught:
        read_router_rows(FolderFiles(dense))
    assert "num_experts" in str(caught.value)
    broken = tmp_path / "broken"
    broken.mkdir()
    for path in saved["random-olmoe"].iterdir():
        (broken / path.name).write_bytes(path.read_bytes())
    index = json.loads((broken / "model.safetensors.index.json").read_text())
    for places, said in (
        ({"a": "../secret"}, "beside the index"),
        ({"a": "gone"}, "no such file"),
        (7, "int"),
    ):
        (broken / "model.safetensors.index.json").write_text(json.dumps(index | {"weight_map": places}))
        with pytest.raises(SubjectError) as caught:
            read_router_rows(FolderFiles(broken))
        assert said in str(caught.value)
    (broken / "model.safetensors.index.json").write_text("{")
    with pytest.raises(SubjectError, match="read by themselves"):
        read_router_rows(FolderFiles(broken))
    (broken / "model.safetensors.index.json").unlink()
    (broken / "model.safetensors").write_bytes(b"\xff" * 64)
    with pytest.raises(SubjectError, match="header"):
        read_router_rows(FolderFiles(broken))


def test_a_gate_that_is_no_router_is_told_by_its_shape(saved, tmp_path):
    """A dense layer with a matrix of this name, and the gate of a shared expert."""
    from safetensors.torch import load_file, save_file

    folder = tmp_path / "odd"
    load("random-olmoe").model.save_pretrained(folder)
    tensors = load_file(folder / "model.safetensors")
    plain = read_router_rows(FolderFiles(folder))
    tensors["model.layers.9.mlp.gate.weight"] = torch.zeros(99, 16)
    tensors["model.layers.0.mlp.shared_expert_gate.weight"] = torch.zeros(1, 16)
    save_file(tensors, folder / "model.safetensors")
    assert np.array_equal(read_router_rows(FolderFiles(folder)).rows, plain.rows)


def test_series_of_objects_have_no_files():
    series = CheckpointSeries("mine", open_series("bytes-moe").checkpoints, lambda found: None)
    with pytest.raises(SpecError, match="files of this series"):
        series.routers(0)
    with pytest.raises(SpecError, match="no checkpoint of step 3"):
        open_series("bytes-moe").routers(3)
