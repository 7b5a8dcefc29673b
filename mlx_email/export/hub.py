"""An exported folder to the Hugging Face hub, where only its owner can see it."""

import os
import shlex
from pathlib import Path

from huggingface_hub import HfApi, constants

from mlx_email.errors import MlxEmailError, UserError
from mlx_email.model.source import HUB_NAME

# What an earlier export may have left in the repository and this one may not have: mlx-lm reads every shard it finds,
# and a tokenizer's files may come in other names. Whatever is uploaded anew is not deleted.
STALE = [
    *("model*.safetensors*", "adapter/*", "generation_config.json"),
    *("tokenizer*", "special_tokens_map.json", "added_tokens.json", "vocab*", "merges*", "*.jinja"),
]


def check(repo: str) -> None:
    """UserError where `repo` cannot be a name, or the network is switched off."""
    if not HUB_NAME.fullmatch(repo):
        raise UserError(f"--upload-repo {repo}: name it as org/name")
    if constants.HF_HUB_OFFLINE:
        raise UserError(f"--upload-repo {repo}: the network is switched off (HF_HUB_OFFLINE): unset it")


def upload(folder: Path, repo: str) -> str:
    """Upload a folder into a private repository, which is made where there is none; gives its address.

    Raises UserError where the repository is there and public: the model is made of mail. MlxEmailError for whatever
    else ends it; the folder stays as it is.
    """
    check(repo)
    constants.HF_HUB_DISABLE_TELEMETRY = True
    api = HfApi()
    try:
        url = api.create_repo(repo, private=True, exist_ok=True)
        if not api.model_info(repo).private:
            raise UserError(f"{repo} is public, and the model is made of mail: make it private, or name another")
        api.upload_folder(
            folder_path=os.fspath(folder),
            repo_id=repo,
            commit_message="A model exported by mlx-email",
            delete_patterns=STALE,
        )
    except UserError:
        raise
    except Exception as error:  # the client's and its network library's errors, which change with their versions
        line = next(iter(str(error).strip().splitlines()), type(error).__name__)
        again = f"hf upload {shlex.quote(repo)} {shlex.quote(os.fspath(folder))} --private"
        raise MlxEmailError(
            f"{folder} is whole, but was not uploaded to {repo} ({line}): hf auth login, then {again}"
        ) from error
    return str(url)
