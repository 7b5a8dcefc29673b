"""Every example in a docstring is true."""

import doctest
import importlib
import pkgutil

import pytest

import mlx_email
import mlx_email.kernels

PACKAGES = [(mlx_email.__path__, "mlx_email."), (mlx_email.kernels.__path__, "mlx_email.kernels.")]
MODULES = sorted({m.name for path, prefix in PACKAGES for m in pkgutil.walk_packages(path, prefix)})


@pytest.mark.parametrize("name", MODULES)
def test_examples(name):
    assert doctest.testmod(importlib.import_module(name)).failed == 0
