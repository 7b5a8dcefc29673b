"""From a run to a model folder that any mlx-lm program loads."""
