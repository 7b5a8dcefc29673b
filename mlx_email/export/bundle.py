"""An exported model's folder: an ordinary one of mlx-lm's, with what evaluation needs to know beside it.

DIR/config.json, model*.safetensors, tokenizer.json, ...   as mlx-lm reads them
   /adapter/          adapters.safetensors, adapter_config.json, where they are not merged
   /README.md         the model card (`card`)
   /mlx_email.json    what the model is and how it is asked; size and SHA-256 of every file (`sealed`)
"""

import json
import shutil
from pathlib import Path
from typing import Any

import msgspec

from mlx_email import files, sealed
from mlx_email.model import lora, source
from mlx_email.sealed import Damaged

ABOUT, ADAPTER, CARD = "mlx_email.json", "adapter", "README.md"
# Copied as they are: writing a tokenizer anew may change it.
TOKENIZER_FILES = ("tokenizer*", "special_tokens_map.json", "added_tokens.json", "vocab*", "merges*", "*.jinja")
BESIDE = (*TOKENIZER_FILES, "generation_config.json")
# Where a base model came from: maybe a folder of the machine on which it was made. Nothing reads it.
NAMED, ORIGINS = ("config.json", "tokenizer_config.json"), ("_name_or_path", "name_or_path")


class About(msgspec.Struct, frozen=True, kw_only=True):
    """What mlx_email.json says besides its files."""

    mlx_email: str  # version
    model: str  # the base, as the public may know it
    stage: str
    strategy: str  # export.fuse.STRATEGIES
    max_prompt_tokens: int
    sender_history: bool
    batch_size: int  # messages, of closed-set scoring
    calibration: dict[str, Any] | None = None  # the stage's calibration.json


def is_exported(folder: Path) -> bool:
    """Whether a folder is an exported model."""
    return (folder / ABOUT).is_file()


def seal(folder: Path, about: About) -> None:
    """Write mlx_email.json of a folder that is otherwise complete."""
    sealed.seal(folder, manifest=ABOUT, **msgspec.to_builtins(about))


def read(folder: Path) -> About:
    """What an exported folder is, after every byte of it has been compared with mlx_email.json.

    Raises Damaged naming a file that differs, lacks, or should not be there: mlx-lm reads what it finds. Hidden files
    (.gitattributes, .cache) are nobody's business.
    """
    said = sealed.verify(folder, manifest=ABOUT)
    for path in sorted(folder.rglob("*")):
        name = path.relative_to(folder)
        hidden = any(part.startswith(".") for part in name.parts)
        if path.is_file() and not hidden and name.as_posix() not in {*said["files"], ABOUT}:
            raise Damaged(f"{path} does not belong there: {ABOUT} does not name it")
    try:
        return msgspec.convert(said, About)
    except msgspec.ValidationError as error:
        raise Damaged(f"{folder / ABOUT} is damaged ({error})") from error


def beside(base: Path) -> list[Path]:
    """The files of a base model's folder that go with its weights: tokenizer and generation settings."""
    return sorted({path for pattern in BESIDE for path in base.glob(pattern) if path.is_file()})


def copy_beside(base: Path, folder: Path) -> None:
    """Copy them; of the folder's JSON files none then says where the base came from."""
    for path in beside(base):
        shutil.copyfile(path, folder / path.name)
    _forget_origins(folder)


def whole_base(base: Path) -> list[Path]:
    """Everything of a base model's folder that mlx-lm reads."""
    named = [base / "config.json", *base.glob(source.WEIGHTS), *base.glob(source.INDEX), *beside(base)]
    return sorted({path for path in named if path.is_file()})


def copy_with_adapter(base: Path, adapter: Path, folder: Path, name: str) -> None:
    """Copy a base model, and a stage's adapter into a folder of it; `name`: what the adapter says its base is."""
    for path in whole_base(base):
        shutil.copyfile(path, folder / path.name)
    _forget_origins(folder)
    (folder / ADAPTER).mkdir()
    shutil.copyfile(adapter / lora.ADAPTERS, folder / ADAPTER / lora.ADAPTERS)
    config = json.loads((adapter / lora.ADAPTER_CONFIG).read_bytes())
    files.write_json(folder / ADAPTER / lora.ADAPTER_CONFIG, {**config, "model": name})


def _forget_origins(folder: Path) -> None:
    """Leave ORIGINS out of the files NAMED; those that have none of them stay as they are, to the byte."""
    for path in (folder / name for name in NAMED if (folder / name).is_file()):
        said = source.read_object(path)
        if not said.keys().isdisjoint(ORIGINS):
            kept = {name: value for name, value in said.items() if name not in ORIGINS}
            files.write(path, json.dumps(kept, indent=2) + "\n")
