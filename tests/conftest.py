"""Every test runs with the fast BLAS (mlx_email is imported before mlx) and without a network."""

import os
import signal
import socket
from pathlib import Path

import pytest
from hypothesis import settings

import mlx_email  # noqa: F401 - first, so that it can load the BLAS

# A shared machine is not always equally fast; CI repeats itself, developers explore.
settings.register_profile("mlx_email", deadline=None, derandomize="CI" in os.environ)
settings.load_profile("mlx_email")

# A script's background jobs ignore interrupts, and so would all that the tests interrupt.
signal.signal(signal.SIGINT, signal.default_int_handler)

SHARED = Path(__file__).resolve().parents[2] / "shared"


@pytest.fixture(autouse=True)
def no_network(monkeypatch):
    def refuse(self, address):
        raise OSError(f"a test tried to reach {address}")

    monkeypatch.setattr(socket.socket, "connect", refuse)


@pytest.fixture(autouse=True, scope="session")
def reports():
    """What is wrong with a run's report fails the test, not only the report. There are no charts in it, and no model is
    asked for reasons: both take a while."""
    from mlx_email import report

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(report, "attempt", lambda run, note, explain: report.write(run))
        patch.setattr(report.draw, "available", lambda: False)
        yield


@pytest.fixture
def shared() -> Path:
    """The folder of real mail and recorded losses beside a checkout; the project passes its tests without it."""
    if not SHARED.is_dir():
        pytest.skip("needs ../shared, the folder of real mail and recorded losses")
    return SHARED
