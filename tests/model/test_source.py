"""What `resolve` accepts, and that whatever it refuses is refused in one line that names the file."""

import http.server
import json
import os
import re
import socket
import struct
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import mlx.core as mx
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from safetensors.numpy import save_file
from tokenizers import Tokenizer, pre_tokenizers
from tokenizers.models import BPE

import mlx_email.model.source as source
from mlx_email.errors import MlxEmailError, ModelError

CONFIG = {
    "model_type": "llama",
    "hidden_size": 8,
    "intermediate_size": 16,
    "num_hidden_layers": 1,
    "num_attention_heads": 2,
    "rms_norm_eps": 1e-5,
    "vocab_size": 256,
    "tie_word_embeddings": True,
}


def tiny_llama(folder: Path) -> Path:
    """A random Llama of one layer and 256 byte tokens, as mlx-lm would write it."""
    folder.mkdir(parents=True, exist_ok=True)
    shapes = {"self_attn.q_proj": (8, 8), "self_attn.k_proj": (8, 8), "self_attn.v_proj": (8, 8)}
    shapes |= {"self_attn.o_proj": (8, 8), "mlp.gate_proj": (16, 8), "mlp.up_proj": (16, 8), "mlp.down_proj": (8, 16)}
    shapes |= {"input_layernorm": (8,), "post_attention_layernorm": (8,)}
    random = np.random.default_rng(0)
    weights = {f"model.layers.0.{name}.weight": random.normal(size=shape) for name, shape in shapes.items()}
    weights |= {"model.embed_tokens.weight": random.normal(size=(256, 8)), "model.norm.weight": np.ones(8)}
    save_file({name: array.astype(np.float32) for name, array in weights.items()}, folder / "model.safetensors")
    alphabet = {token: index for index, token in enumerate(sorted(pre_tokenizers.ByteLevel.alphabet()))}
    Tokenizer(BPE(vocab=alphabet, merges=[])).save(str(folder / "tokenizer.json"))
    (folder / "tokenizer_config.json").write_text('{"tokenizer_class": "PreTrainedTokenizerFast"}')
    (folder / "config.json").write_text(json.dumps(CONFIG))
    return folder


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    return tiny_llama(tmp_path / "model")


@pytest.fixture
def no_network(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """As everywhere no test reaches the network; here attempts are listed, and a hub is played on the loop-back."""
    attempts: list[str] = []
    look_up, connect = socket.getaddrinfo, socket.socket.connect

    def only_local_names(host: Any, *arguments: Any, **options: Any) -> Any:
        if host != "127.0.0.1":
            attempts.append(str(host))
            raise socket.gaierror(socket.EAI_NONAME, "Name or service not known")
        return look_up(host, *arguments, **options)

    def only_local_addresses(self: socket.socket, address: Any) -> None:
        if address[0] != "127.0.0.1":
            attempts.append(str(address))
            raise ConnectionRefusedError(f"a test tried to reach {address}")
        connect(self, address)

    monkeypatch.setattr(socket, "getaddrinfo", only_local_names)
    monkeypatch.setattr(socket.socket, "connect", only_local_addresses)
    return attempts


@pytest.fixture
def hub_cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setattr(source.constants, "HF_HUB_CACHE", str(tmp_path / "hub"))
    monkeypatch.setattr(source.constants, "HF_HUB_OFFLINE", False)
    monkeypatch.setattr(source.constants, "HF_HUB_DISABLE_TELEMETRY", False)  # restores what hub_folder sets
    return tmp_path / "hub"


def refusal(model: str | Path, **options: bool) -> str:
    """The message that `resolve` refuses a model with: ModelError, one line."""
    with pytest.raises(ModelError) as caught:
        source.resolve(str(model), **options)
    message = str(caught.value)
    assert "\n" not in message and message.strip()
    return message


def change(path: Path, **values: Any) -> None:
    path.write_text(json.dumps(json.loads(path.read_text()) | values))


# A folder of the user


def test_a_model_folder_resolves_and_loads(folder: Path, no_network: list[str], monkeypatch: pytest.MonkeyPatch):
    from mlx_lm import load

    assert source.resolve(str(folder)) == folder
    monkeypatch.chdir(folder.parent)
    assert source.resolve("./model") == Path("./model")
    model, tokenizer = load(str(folder))
    assert model(mx.array([tokenizer.encode("hi")])).shape == (1, 2, 256)
    assert no_network == []


def test_the_embedded_model_resolves(no_network: list[str]):
    if not (Path(source.__file__).parent / "tiny").is_dir():
        pytest.skip("the embedded model has not been made yet")
    assert source.resolve("tiny", offline=True).name == "tiny"
    assert no_network == []


@pytest.mark.parametrize(
    "model",
    [
        "",
        " ",
        "nothing",
        "a/b/c",
        "/no/such/folder",
        "../x",
        "a b/c",
        "x\0y",
        "~\0",
        "~nobody\0",
        "~no-such-user",
        "n" * 5000,
    ],
)
def test_what_is_no_model_is_refused(model: str, no_network: list[str]):
    assert "no model" in refusal(model)
    assert no_network == []


@given(st.text(max_size=30).filter(lambda text: not source.HUB_NAME.fullmatch(text)))
def test_any_other_text_is_refused_in_one_line(model: str):
    if not os.path.exists(source.local_path(model)) and model not in ("tiny", "smollm2"):
        refusal(model)


def test_a_file_is_no_model(folder: Path):
    assert "is a file" in refusal(folder / "model.safetensors")


@pytest.mark.parametrize("name", ["config.json", "tokenizer.json", "model.safetensors"])
def test_a_missing_file_is_named(folder: Path, name: str):
    (folder / name).unlink()
    assert name.replace("model.", "model*.") in refusal(folder)


def test_pickles_and_gguf_are_no_weights(folder: Path):
    (folder / "model.safetensors").rename(folder / "pytorch_model.bin")
    (folder / "model.gguf").write_bytes(b"GGUF")
    assert "model*.safetensors" in refusal(folder)


@pytest.mark.parametrize("content", ["", "{", "[]", "null", '{"a":' * 100_000, "\ufeff{}", '{"model_type": 3}', "{}"])
def test_a_config_that_is_no_config_is_refused(folder: Path, content: str):
    (folder / "config.json").write_text(content)
    assert "config.json" in refusal(folder)


def test_config_bytes_that_are_no_text_are_refused(folder: Path):
    (folder / "config.json").write_bytes(b"\xff\xfe\x00{")
    assert "config.json" in refusal(folder)


def test_a_missing_shard_is_named(folder: Path):
    shards = {"a": "model-00001-of-00002.safetensors", "b": "model-00002-of-00002.safetensors"}
    (folder / "model.safetensors").rename(folder / shards["a"])
    (folder / source.INDEX).write_text(json.dumps({"weight_map": shards}))
    assert shards["b"] in refusal(folder)
    (folder / source.INDEX).write_text(json.dumps({"weight_map": {"a": shards["a"]}}))
    assert source.resolve(str(folder)) == folder
    (folder / source.INDEX).write_text("{}")
    assert source.INDEX in refusal(folder)


# No code is ever run


@pytest.mark.parametrize("name", ["config.json", "tokenizer_config.json"])
@pytest.mark.parametrize("key", ["model_file", "auto_map"])
def test_code_from_the_folder_is_refused(folder: Path, name: str, key: str):
    canary = folder.parent / "canary"
    (folder / "evil.py").write_text(f"open({str(canary)!r}, 'w')")
    assert source.resolve(str(folder)) == folder  # the file alone does nothing
    change(folder / name, **{key: "evil.py" if key == "model_file" else {"AutoTokenizer": ["evil.X", None]}})
    message = refusal(folder)
    assert key in message and name in message
    assert not canary.exists()


@pytest.mark.parametrize(
    ("name", "key"),
    [
        ("config.json", "model_type"),
        ("tokenizer_config.json", "tool_parser_type"),
        ("tokenizer_config.json", "chat_template_type"),
    ],
)
@pytest.mark.parametrize("value", ["..evil", "a.b", "a/b", "", ["llama"], "llama\n"])
def test_names_that_mlx_lm_would_import_are_plain(folder: Path, name: str, key: str, value: Any):
    change(folder / name, **{key: value})
    assert name in refusal(folder)


@pytest.mark.parametrize(("value", "refused"), [("1", True), ("true", True), ("yes", True), ("0", False), ("", False)])
def test_the_variable_that_would_allow_code_is_refused(
    folder: Path, monkeypatch: pytest.MonkeyPatch, value: str, refused: bool
):
    monkeypatch.setenv(source.CODE_VARIABLE, value)
    if refused:
        assert source.CODE_VARIABLE in refusal(folder)
    else:
        assert source.resolve(str(folder)) == folder


# Weight files that lie


def test_a_truncated_file_is_named(folder: Path):
    path = folder / "model.safetensors"
    whole = path.read_bytes()
    for length in (0, 7, 8, 100, len(whole) // 2, len(whole) - 1):
        path.write_bytes(whole[:length])
        assert str(path) in refusal(folder)
    path.write_bytes(whole + b"\0")
    assert str(path) in refusal(folder)


def raw(header: dict[str, Any], data: bytes, length: int | None = None) -> bytes:
    text = json.dumps(header).encode()
    return struct.pack("<Q", len(text) if length is None else length) + text + data


def tensor(shape: list[int], begin: int, end: int, dtype: str = "F32") -> dict[str, Any]:
    return {"dtype": dtype, "shape": shape, "data_offsets": [begin, end]}


@pytest.mark.parametrize(
    "content",
    [
        raw({"a": tensor([200], 0, 8)}, bytes(8)),
        raw({"a": tensor([2], 0, 8), "b": tensor([2], 4, 12)}, bytes(12)),
        raw({"a": tensor([2], 4, 12)}, bytes(12)),
        raw({"a": tensor([2**62, 4, 2], 0, 8)}, bytes(8)),
        raw({"a": tensor([2], 0, 8)}, bytes(8), length=2**40),
        raw({"a": tensor([2], 0, 8, dtype="EVIL")}, bytes(8)),
        raw({"a": tensor([2**40, 0], 0, 0)}, b""),
        raw({"a": tensor([-2], 0, 8)}, bytes(8)),
        b"not a safetensors file at all",
    ],
    ids=["shape", "overlap", "hole", "overflow", "length", "type", "size", "negative", "text"],
)
def test_a_lying_header_is_refused_in_any_file(folder: Path, content: bytes):
    path = folder / "other.safetensors"
    path.write_bytes(content)
    assert str(path) in refusal(folder)


def test_a_pipe_does_not_hang(folder: Path):
    os.mkfifo(folder / "other.safetensors")
    assert "is not a file" in refusal(folder)


@given(st.binary(max_size=200))
def test_any_bytes_as_weights_are_one_line(tmp_path_factory: pytest.TempPathFactory, content: bytes):
    path = tmp_path_factory.getbasetemp() / "any.safetensors"
    path.write_bytes(content)
    try:
        source.vet_safetensors(path)
    except ModelError as error:
        assert "\n" not in str(error) and path.name in str(error)


# The hub


def test_offline_asks_nobody(hub_cache: Path, no_network: list[str], monkeypatch: pytest.MonkeyPatch):
    assert "switch it on once" in refusal("org/name", offline=True)
    monkeypatch.setattr(source.constants, "HF_HUB_OFFLINE", True)
    assert "switch it on once" in refusal("org/name")
    assert no_network == []


def test_no_network_is_said_at_once(hub_cache: Path, no_network: list[str]):
    start = time.monotonic()
    assert "connect to the network" in refusal("org/name")
    assert time.monotonic() - start < 5
    assert len(no_network) == 1  # no retries, and nothing but the question (no telemetry)


def test_an_impossible_hub_name_is_refused(hub_cache: Path, no_network: list[str]):
    assert "org/na--me" in refusal("org/na--me")
    assert no_network == []


Answer = Callable[[str], tuple[int, dict[str, str], bytes]]


@pytest.fixture
def serve(hub_cache: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Callable[[Answer], list[str]]]:
    """Start a hub on this machine that answers by a function of the path; gives the list of paths asked for."""
    servers = []

    def start(answer: Answer) -> list[str]:
        asked: list[str] = []

        class Handler(http.server.BaseHTTPRequestHandler):
            def do_GET(self) -> None:
                asked.append(self.path)
                status, headers, body = answer(self.path)
                self.send_response(status)
                for name, value in ({"Content-Length": str(len(body))} | headers).items():
                    self.send_header(name, value)
                self.end_headers()
                if self.command == "GET":
                    self.wfile.write(body)

            do_HEAD = do_GET

            def log_message(self, *_: Any) -> None:
                pass

        server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        servers.append(server)
        threading.Thread(target=server.serve_forever, args=(0.02,), daemon=True).start()
        monkeypatch.setattr(source.constants, "ENDPOINT", f"http://127.0.0.1:{server.server_port}")
        url = f"http://127.0.0.1:{server.server_port}" + "/{repo_id}/resolve/{revision}/{filename}"
        monkeypatch.setattr(source.constants, "HUGGINGFACE_CO_URL_TEMPLATE", url)
        return asked

    yield start
    for server in servers:
        server.shutdown()
        server.server_close()


COMMIT = "0123456789abcdef0123456789abcdef01234567"


def hub_of(folder: Path) -> Answer:
    """Answers as the hub does for one repository, `org/name`, that holds the files of a folder."""

    def answer(path: str) -> tuple[int, dict[str, str], bytes]:
        path = path.split("?")[0]
        content = {"Content-Type": "application/json"}
        names = sorted(str(entry.relative_to(folder)) for entry in folder.rglob("*") if entry.is_file())
        if re.fullmatch(r"/api/models/org/name(/revision/main)?", path):
            return 200, content, json.dumps({"id": "org/name", "sha": COMMIT, "siblings": []}).encode()
        if path == f"/api/models/org/name/tree/{COMMIT}":
            entries = [
                {"type": "file", "path": name, "size": (folder / name).stat().st_size, "oid": f"{index:040x}"}
                for index, name in enumerate(names)
            ]
            return 200, content, json.dumps(entries).encode()
        name = path.removeprefix(f"/org/name/resolve/{COMMIT}/")
        if name in names:
            return 200, {"ETag": f'"{names.index(name):040x}"', "X-Repo-Commit": COMMIT}, (folder / name).read_bytes()
        return 404, {"X-Error-Code": "RepoNotFound"}, b""

    return answer


def test_a_hub_model_is_fetched_once_and_without_code(
    folder: Path, serve: Callable[[Answer], list[str]], capsys: pytest.CaptureFixture[str]
):
    for name in ("evil.py", "pytorch_model.bin", "onnx/model.safetensors", "original/config.json", "README.md"):
        (folder / name).parent.mkdir(exist_ok=True)
        (folder / name).write_text("x")
    asked = serve(hub_of(folder))
    found = source.resolve("org/name")
    assert {entry.name for entry in found.iterdir()} == {
        "config.json",
        "model.safetensors",
        "tokenizer.json",
        "tokenizer_config.json",
    }
    assert all(path.startswith(("/api/models/org/name", "/org/name/resolve/")) for path in asked)
    assert capsys.readouterr().out == ""  # progress is for stderr
    asked.clear()
    assert source.resolve("org/name") == found
    assert source.resolve("org/name", offline=True) == found
    assert asked == []


def test_an_unfinished_download_is_resumed(folder: Path, hub_cache: Path, serve: Callable[[Answer], list[str]]):
    whole = hub_of(folder)

    def failing(path: str) -> tuple[int, dict[str, str], bytes]:
        return (403, {}, b"") if path.endswith("model.safetensors") else whole(path)

    serve(failing)
    assert "org/name" in refusal("org/name")
    assert "network" in refusal("org/name", offline=True)  # half a model is not used
    # Files are fetched side by side: which of the others were complete when the model was refused is chance.
    there = {path.name for path in hub_cache.rglob("snapshots/*/*")}
    assert "model.safetensors" not in there
    asked = serve(whole)
    assert (source.resolve("org/name") / "model.safetensors").exists()
    fetched = {path.rpartition("/")[2] for path in asked if "/resolve/" in path}
    assert "model.safetensors" in fetched and not fetched & there  # only what was missing


@pytest.mark.parametrize(
    ("status", "headers", "says"),
    [
        (404, {"X-Error-Code": "RepoNotFound"}, "check the name"),
        (401, {"X-Error-Code": "RepoNotFound"}, "check the name"),
        (403, {"X-Error-Code": "GatedRepo"}, "licence"),
        (401, {"X-Error-Code": "GatedRepo"}, "licence"),
        (403, {}, "HTTP 403"),
        (500, {}, "HTTP 500"),
        (429, {}, "HTTP 429"),
        (200, {}, "could not be fetched"),  # something that is no hub
    ],
)
def test_what_the_hub_refuses_is_explained(
    serve: Callable[[Answer], list[str]], status: int, headers: dict[str, str], says: str
):
    asked = serve(lambda _: (status, headers, b"welcome to this hotel's network"))
    start = time.monotonic()
    assert says in refusal("org/name")
    assert time.monotonic() - start < 5 and len(asked) == 1


def test_a_hub_that_never_answers_is_given_up(serve: Callable[[Answer], list[str]], monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(source, "HUB_SECONDS", 0.3)
    release = threading.Event()

    def silent(_: str) -> tuple[int, dict[str, str], bytes]:
        release.wait(10)
        return 500, {}, b""

    serve(silent)
    start = time.monotonic()
    try:
        assert "could not be fetched" in refusal("org/name")
        assert time.monotonic() - start < 5
    finally:
        release.set()


def test_a_full_disk_is_not_the_users_mistake(hub_cache: Path, no_network: list[str], monkeypatch: pytest.MonkeyPatch):
    def full(*_: Any, **options: Any) -> str:
        if options.get("local_files_only"):
            raise source.LocalEntryNotFoundError("not cached")
        raise OSError(source.errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(source, "snapshot_download", full)
    monkeypatch.setattr(source.HfApi, "model_info", lambda *_, **__: None)
    with pytest.raises(MlxEmailError, match="No space left") as caught:
        source.resolve("org/name")
    assert caught.value.exit_code == 1
