"""What the fault tests share: small trainings, processes to kill, a table and a model to train on."""

import ctypes
import fcntl
import os
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
import small
from warm import Warm

from mlx_email import blas
from mlx_email.cli import main


@pytest.fixture(scope="module", autouse=True)
def one_thread() -> Iterator[None]:
    """MKL's threads take longer to meet than to multiply matrices as small as here. The bits are the same."""
    library = blas.find() if sys.platform == "linux" else None
    if library is None:
        yield
        return
    mkl = ctypes.CDLL(str(library))
    before = mkl.MKL_Get_Max_Threads()
    mkl.MKL_Set_Num_Threads(1)
    yield
    mkl.MKL_Set_Num_Threads(before)


@pytest.fixture(scope="module", autouse=True)
def no_waiting_for_the_disk() -> Iterator[None]:
    """To flush a file takes longer than to train, and matters only where the power fails: that it is asked for, and in
    which order, is what can be tested."""
    with pytest.MonkeyPatch.context() as patch:
        patch.delattr(fcntl, "F_FULLFSYNC", raising=False)
        patch.setattr(os, "fsync", os.fstat)
        yield


@pytest.fixture(scope="session")
def warm(tmp_path_factory) -> Iterator[Warm]:
    """Starts processes that can be killed."""
    starter = Warm(tmp_path_factory.mktemp("processes"))
    yield starter
    starter.close()


@pytest.fixture(scope="session")
def table(tmp_path_factory) -> Path:
    """A folder that `prepare` wrote, of 60 letters."""
    folder = tmp_path_factory.mktemp("table")
    assert main(["synth", "--out", str(folder / "box"), "--messages", "60"]) == 0
    assert main(["prepare", str(folder / "box/maildir"), "--out", str(folder / "table")]) == 0
    return folder / "table"


@pytest.fixture(scope="session")
def little(tmp_path_factory) -> Path:
    """The folder of a random model."""
    return small.write_model(tmp_path_factory.mktemp("little") / "model")
