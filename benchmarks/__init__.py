"""Measurements. The folder lies at the top of the repository and is installed as `mlx_email.benchmarks`.

`compare/` is `mlx-email bench`; the other files are scripts (`python benchmarks/kernels.py`). Figures: RESULTS.md.
"""

if __name__ == "benchmarks":
    # A checkout on the path must not take a name that another distribution may own.
    raise ModuleNotFoundError("this folder is imported as mlx_email.benchmarks", name=__name__)
