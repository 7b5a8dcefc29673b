"""A fast BLAS for MLX's CPU backend on Linux.

The Linux wheel of MLX is linked to the reference BLAS (about 4 GFLOP/s on two cores). Symbols of a library that was
loaded globally before `mlx.core` win, so loading MKL first gives about 150 GFLOP/s and needs no LD_PRELOAD.
"""

import ctypes
import os
import site
import sys
import warnings
from pathlib import Path


def load() -> Path | None:
    """Load MKL's single dynamic library for the whole process.

    Returns the library, or None where there is nothing to do (not Linux, or no `mkl` installed: slower, but correct).

    `MKL_CBWR` pins one code path: without it the result of a product depends on the number of rows, and neither
    bit-exact resume nor batch invariance would hold. It is read when MKL first runs, and a value that the user has set
    is left alone. Small products still depend on the number of threads (measured on an AMD machine): the same bits
    take the same number of them.
    """
    if sys.platform != "linux":
        return None
    library = find()
    if library is None:
        return None
    if "mlx.core" in sys.modules:
        warnings.warn(
            "mlx was imported before mlx_email: matrix products use the slow reference BLAS; import mlx_email first",
            RuntimeWarning,
            stacklevel=3,
        )
        return None
    os.environ.setdefault("MKL_CBWR", "AVX2,STRICT")
    try:
        ctypes.CDLL(str(library), mode=ctypes.RTLD_GLOBAL)
    except OSError as error:
        warnings.warn(
            f"{library} cannot be loaded ({error}): training is 40 times slower", RuntimeWarning, stacklevel=3
        )
        return None
    return library


def find() -> Path | None:
    """The `libmkl_rt` that the `mkl` package put into this environment, newest first; None when there is none.

    pip puts it into `lib` of the environment, of the user's own packages, or of /usr/local (Debian).
    """
    for prefix in (sys.prefix, site.getuserbase(), "/usr/local"):
        if candidates := sorted(Path(prefix, "lib").glob("libmkl_rt.so.*"), reverse=True):
            return candidates[0]
    return None
