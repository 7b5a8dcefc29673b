"""`--upload-repo`, with a hub that is played: private, and whatever goes wrong is one line."""

from types import SimpleNamespace

import pytest
from huggingface_hub.utils import filter_repo_objects

from mlx_email.errors import MlxEmailError, UserError
from mlx_email.export import hub


class Hub:
    """A Hugging Face hub that remembers what it was asked; `private`: what the repository then is."""

    def __init__(self, *, private: bool = True, fails: dict[str, Exception] | None = None) -> None:
        self.private, self.fails, self.asked = private, fails or {}, []

    def _asked(self, name: str, **given: object) -> None:
        self.asked.append((name, given))
        if name in self.fails:
            raise self.fails[name]

    def create_repo(self, repo_id: str, **given: object) -> str:
        self._asked("create_repo", repo_id=repo_id, **given)
        return f"https://hub.example/{repo_id}"

    def model_info(self, repo_id: str) -> SimpleNamespace:
        self._asked("model_info", repo_id=repo_id)
        return SimpleNamespace(private=self.private)

    def upload_folder(self, **given: object) -> None:
        self._asked("upload_folder", **given)


@pytest.fixture
def played(monkeypatch):
    monkeypatch.setattr(hub.constants, "HF_HUB_OFFLINE", False)
    monkeypatch.setattr(hub.constants, "HF_HUB_DISABLE_TELEMETRY", False)  # restores what upload sets

    def play(**how) -> Hub:
        found = Hub(**how)
        monkeypatch.setattr(hub, "HfApi", lambda: found)
        return found

    return play


def test_the_repository_is_private(played, tmp_path):
    asked = played()
    assert hub.upload(tmp_path, "ann/mail") == "https://hub.example/ann/mail"
    assert asked.asked[0] == ("create_repo", {"repo_id": "ann/mail", "private": True, "exist_ok": True})
    name, given = asked.asked[-1]
    assert (name, given["repo_id"], given["folder_path"]) == ("upload_folder", "ann/mail", str(tmp_path))
    assert hub.constants.HF_HUB_DISABLE_TELEMETRY


def test_what_an_earlier_export_left_is_deleted(played, tmp_path):
    """And nothing else: what somebody wrote beside it stays."""
    asked = played()
    hub.upload(tmp_path, "ann/mail")
    stale = ["model-00002-of-00002.safetensors", "model.safetensors.index.json", "adapter/adapters.safetensors"]
    stale += ["chat_template.jinja", "tokenizer.model", "vocab.json", "merges.txt", "added_tokens.json"]
    patterns = asked.asked[-1][1]["delete_patterns"]
    assert list(filter_repo_objects([*stale, "NOTES.md", ".gitattributes"], allow_patterns=patterns)) == stale


def test_nothing_goes_into_a_public_one(played, tmp_path):
    asked = played(private=False)
    with pytest.raises(UserError, match="is public"):
        hub.upload(tmp_path, "ann/mail")
    assert "upload_folder" not in [name for name, _ in asked.asked]


@pytest.mark.parametrize("at", ["create_repo", "model_info", "upload_folder"])
@pytest.mark.parametrize("error", [OSError("no route\nto host"), RuntimeError("401: who are you?"), ValueError()])
def test_what_goes_wrong_is_one_line(at, error, played, tmp_path):
    played(fails={at: error})
    with pytest.raises(MlxEmailError) as said:
        hub.upload(tmp_path, "ann/mail")
    assert "\n" not in str(said.value) and str(tmp_path) in str(said.value) and "hf auth login" in str(said.value)


@pytest.mark.parametrize("name", ["", "mail", "a/b/c", "../x", "a b/c", "ann/mail\n"])
def test_a_name_that_is_none_is_refused_before_anything_is_done(name, played, tmp_path):
    asked = played()
    with pytest.raises(UserError, match="org/name"):
        hub.upload(tmp_path, name)
    assert asked.asked == []


def test_nothing_is_uploaded_offline(played, tmp_path, monkeypatch):
    asked = played()
    monkeypatch.setattr(hub.constants, "HF_HUB_OFFLINE", True)
    with pytest.raises(UserError, match="network"):
        hub.upload(tmp_path, "ann/mail")
    assert asked.asked == []
