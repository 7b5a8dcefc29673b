"""From what a user calls a model to a folder that is safe to load.

Whatever comes out of `resolve` has been vetted: its JSON parses, it asks for no code, it is complete, and the header of
every weight file was read by the Rust `safetensors` package, since mlx's own reader trusts the file (mlx #4233).
"""

import errno
import hashlib
import json
import os
import re
from pathlib import Path
from typing import Any

from huggingface_hub import HfApi, constants, snapshot_download
from huggingface_hub.errors import (
    GatedRepoError,
    HfHubHTTPError,
    HFValidationError,
    LocalEntryNotFoundError,
    RepositoryNotFoundError,
)
from safetensors import SafetensorError, safe_open

from mlx_email import files
from mlx_email.errors import MlxEmailError, ModelError
from mlx_email.model import gguf

HUB_NAME = re.compile(r"[A-Za-z0-9][\w.-]*/[A-Za-z0-9][\w.-]*", re.ASCII)
HUB_FILES = ["model*.safetensors", "*.json", "*.jinja", "tokenizer.model", "merges.txt", "vocab.txt"]
HUB_SECONDS = 10.0  # for the hub's first answer: its client sets no limit and would wait for ever

NAMED = ("tiny", "smollm2")  # the models that come with the package

REQUIRED = ("config.json", "tokenizer.json")
SHA256 = re.compile(r"[0-9a-f]{64}")
WEIGHTS = "model*.safetensors"  # what mlx-lm loads
INDEX = "model.safetensors.index.json"
CODE_KEYS = ("model_file", "auto_map")  # name Python files of the folder: mlx-lm's key, transformers' key
CODE_VARIABLE = "MLX_LM_TRUST_REMOTE_CODE"
MODULE_KEYS = ("chat_template_type", "tool_parser_type")  # of tokenizer_config.json: mlx-lm imports a module so named
MODULE_NAME = re.compile(r"[A-Za-z0-9_-]+", re.ASCII)  # no dots: an import stays within its own package
LARGEST_SIZE = 2**31 - 1  # mlx holds the sizes of an array in 32 bits


def resolve(model: str, *, offline: bool = False) -> Path:
    """The vetted folder of a model: `tiny`, `smollm2`, a folder, or `org/name` of the Hugging Face hub.

    Those two names mean the models that come with the package; `./tiny` is a folder of yours. A hub model is fetched
    only where the cache lacks it, and never with `offline`. Raises ModelError, in one line, where there is no such
    model or it may not be loaded.
    """
    if os.environ.get(CODE_VARIABLE, "").lower() not in ("", "0", "false", "no"):
        raise ModelError(f"{CODE_VARIABLE} is set, which would run code from model folders: unset it")
    local = local_path(model)
    if model == "tiny":
        folder = Path(__file__).parent / "tiny"
    elif model == "smollm2":
        folder = gguf.smollm2()
    elif local and os.path.isdir(local):
        folder = Path(local)
    elif local and os.path.exists(local):
        raise ModelError(f"{model} is a file: a model is a folder in mlx-lm's format")
    elif HUB_NAME.fullmatch(model):
        folder = hub_folder(model, offline=offline)
    else:
        raise ModelError(f"no model {model!r}: give tiny, smollm2, a folder that exists, or org/name of the hub")
    vet(folder)
    return folder


def local_path(model: str) -> str:
    """Where a model's name would lie on this machine, `~` resolved; "" for what no path can be.

    >>> local_path("models/mine"), local_path("~\\0")
    ('models/mine', '')
    """
    return "" if "\0" in model else os.path.expanduser(model)  # the system refuses a NUL by an error


# Vetting


def vet(folder: Path) -> None:
    """Refuse a folder that is not a complete mlx-lm model, or that asks for code to be run.

    Python files and pickles may lie in it: nothing loads them. Raises ModelError naming the file.
    """
    if lacking := missing(folder):
        raise ModelError(
            f"{folder} is not a complete mlx-lm model: it has no {lacking[0]}"
            + (f" (nor {len(lacking) - 1} more)" if len(lacking) > 1 else "")
        )
    config = read_object(folder / "config.json")
    settings = read_object(folder / "tokenizer_config.json") if (folder / "tokenizer_config.json").exists() else {}
    for name, content in (("config.json", config), ("tokenizer_config.json", settings)):
        for key in CODE_KEYS:
            if key in content:
                raise ModelError(f"{folder / name} has {key}, which runs code from the folder: mlx-email never does")
    if not _module_name(config.get("model_type")):
        raise ModelError(f"{folder / 'config.json'} names no model_type: it is not an mlx-lm model")
    for key in MODULE_KEYS:
        if settings.get(key) is not None and not _module_name(settings[key]):
            raise ModelError(f"{folder / 'tokenizer_config.json'} has a {key} that is not a plain name")
    for path in sorted(folder.glob("*.safetensors")):
        vet_safetensors(path)


def missing(folder: Path) -> list[str]:
    """The files a model folder needs and this one lacks, weight shards of its index included."""
    lacking = [name for name in REQUIRED if not (folder / name).is_file()]
    wanted = {WEIGHTS} if not any(path.is_file() for path in folder.glob(WEIGHTS)) else set()
    if (folder / INDEX).is_file():
        shards = read_object(folder / INDEX).get("weight_map")
        if not isinstance(shards, dict):
            raise ModelError(f"{folder / INDEX} has no weight_map: it is damaged")
        present = {path.name for path in folder.glob("*.safetensors") if path.is_file()}
        wanted = {str(name) for name in shards.values()} - present or wanted
    return lacking + sorted(wanted)


def vet_safetensors(path: Path) -> None:
    """Refuse a file whose header does not describe exactly its bytes, before mlx maps it.

    Rust checks the header's length, types and that shapes fill the file without hole or overlap; it reads no weights.
    Raises ModelError naming the file.
    """
    if not path.is_file():  # opening a pipe would wait for ever
        raise ModelError(f"{path} is not a file")
    try:
        with safe_open(path, framework="numpy") as tensors:
            for name in tensors.keys():  # noqa: SIM118 (not a dict)
                if max(tensors.get_slice(name).get_shape(), default=0) > LARGEST_SIZE:
                    raise ModelError(f"{path} is damaged: the size of {name!r} is beyond what mlx can hold")
    except SafetensorError as error:
        raise ModelError(f"{path} is damaged or not a safetensors file ({_line(error)}): fetch it again") from error
    except OSError as error:
        raise ModelError(f"{path} cannot be read: {error.strerror or _line(error)}") from error


def fingerprint(folder: Path) -> str:
    """The SHA-256 over a model's weights, configuration and tokenizer, in hex: two folders with the same are one model.

    Weights in the hub's cache are links to files that are named by their SHA-256, so they need not be read.
    """
    said = {}
    for path in sorted([*folder.glob(WEIGHTS), *(folder / name for name in REQUIRED)]):
        linked = path.resolve().name
        said[path.name] = linked if path.is_symlink() and SHA256.fullmatch(linked) else files.sha256(path)
    return hashlib.sha256(json.dumps(said, sort_keys=True).encode()).hexdigest()


def read_object(path: Path) -> dict[str, Any]:
    """The JSON object in a file; ModelError naming the file where there is none."""
    try:
        value = json.loads(path.read_bytes())
    except OSError as error:
        raise ModelError(f"{path} cannot be read: {error.strerror or _line(error)}") from error
    except (ValueError, RecursionError) as error:
        raise ModelError(f"{path} is not JSON ({_line(error)})") from error
    if not isinstance(value, dict):
        raise ModelError(f"{path} is not a JSON object")
    return value


def _module_name(value: Any) -> bool:
    return isinstance(value, str) and MODULE_NAME.fullmatch(value) is not None


def _line(error: BaseException) -> str:
    """The first line of an error's message: ours are one line, those of libraries often are not."""
    return next(iter(str(error).strip().splitlines()), type(error).__name__)


# The hub


def hub_folder(model: str, *, offline: bool = False) -> Path:
    """The snapshot of `org/name` in the hub's cache, downloaded (or a download resumed) where it is not complete.

    Only weights, JSON, chat templates and tokenizer files of the top folder are fetched: no Python, no pickle. Raises
    ModelError that says what to do: offline, no network, no such model, a licence to accept, an interrupted download.
    """
    try:
        cached = Path(snapshot_download(model, **_selection(), local_files_only=True))
        if not missing(cached):
            return cached
    except LocalEntryNotFoundError:
        pass
    except HFValidationError as error:
        raise ModelError(f"{model} is neither a folder here nor a possible name of a hub model") from error
    if offline or constants.HF_HUB_OFFLINE:
        raise ModelError(
            f"{model} is not complete in the cache and the network is switched off: switch it on once, or give a folder"
        )
    # No telemetry (its variable was read when the hub's client was imported, perhaps before us).
    constants.HF_HUB_DISABLE_TELEMETRY = True
    try:
        # First a question with a limit: snapshot_download asks the same without one, and hides the reason of a failure.
        HfApi().model_info(model, timeout=HUB_SECONDS)
        return Path(snapshot_download(model, **_selection(), etag_timeout=HUB_SECONDS))
    except GatedRepoError as error:
        raise ModelError(f"{model} asks you to accept its licence: do so on its page, then hf auth login") from error
    except RepositoryNotFoundError as error:
        raise ModelError(
            f"no model {model} on the hub, and no folder of that name here: check the name "
            "(for a private model: hf auth login)"
        ) from error
    except HfHubHTTPError as error:
        status = error.response.status_code
        raise ModelError(f"the hub does not give {model} (HTTP {status}): try again later, or hf auth login") from error
    except Exception as error:
        # Whatever else the client raises (its network library's errors, which change with its versions) ended the
        # download; what has arrived is kept by the client.
        if isinstance(error, OSError) and error.errno in (errno.ENOSPC, errno.EDQUOT, errno.EACCES, errno.EROFS):
            raise MlxEmailError(f"cannot store {model} in {constants.HF_HUB_CACHE}: {error.strerror}") from error
        raise ModelError(
            f"{model} is not complete in the cache and could not be fetched ({_line(error)}): "
            "connect to the network and run again (a download resumes), or give a folder"
        ) from error


def _selection() -> dict[str, Any]:
    # A pattern's * matches / too: other precisions and formats lie in sub-folders, which nothing here reads.
    return {"allow_patterns": HUB_FILES, "ignore_patterns": ["*/*"]}
