"""`mlx-email models`: choosing a base model, and getting it."""

import click


@click.group()
def models() -> None:
    """Base models: which there are, what fits this machine, and how to get one."""
