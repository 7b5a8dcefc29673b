"""Arrays in, arrays out: the numerical core. It knows no model and no mail.

The folder lies at the top of the repository and is installed as `mlx_email.kernels`. Another distribution owns the
top-level name, and transformers asks for it, so a checkout on the path must not answer in its place.
"""

if __name__ == "kernels":
    raise ModuleNotFoundError("this folder is imported as mlx_email.kernels", name=__name__)
