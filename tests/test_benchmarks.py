"""The synthetic corpus of the ingest benchmark is read as mail: nothing is rejected, and every action occurs."""

import importlib.util
import io
from pathlib import Path

import pytest

from mlx_email.labels.prepare import prepare
from mlx_email.labels.schema import OBSERVED

CORPUS = Path(__file__).resolve().parents[1] / "benchmarks" / "corpus.py"


@pytest.fixture(scope="module")
def corpus():
    spec = importlib.util.spec_from_file_location("corpus", CORPUS)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def written(corpus, seed: int = 0) -> bytes:
    file = io.BytesIO()
    corpus.write_tar(file, messages=300, owners=3, seed=seed)
    return file.getvalue()


def test_the_corpus_is_labelled(corpus, tmp_path):
    (tmp_path / "c.tar").write_bytes(written(corpus))
    found = prepare([tmp_path / "c.tar"], tmp_path / "table")
    assert (found.files, found.owners, found.rejected, found.undated) == (300, 3, {}, 0)
    assert 80 <= found.duplicates <= 120
    assert set(found.actions) == set(OBSERVED)


def test_an_mbox_holds_what_is_asked_for(corpus):
    file = io.BytesIO()
    corpus.write_mbox(file, messages=120, seed=0)
    data = file.getvalue()
    assert data.startswith(b"From ") and data.count(b"\r\n\r\nFrom ") == 119 == data.count(b"X-Gmail-Labels: ") - 1


def test_the_same_seed_gives_the_same_bytes(corpus):
    assert written(corpus) == written(corpus) != written(corpus, seed=1)
