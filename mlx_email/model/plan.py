"""How much memory a stage takes, before anything is loaded: the sum that the shipped configurations are chosen by.

An upper bound to reckon with, not a measurement: activations are counted as float32, and nothing as freed early.
"""

from dataclasses import dataclass

from mlx_email.config import Config, Grpo, Reward, Sampled, Stage

BITS = 4.5  # of a weight of a 4-bit base: groups of 64 have a scale and a bias of 16 bits each
FLOAT = 4  # bytes
ANSWER = 48  # tokens of a canonical answer, at most
HEAD = 0.3e9  # bytes in flight in the head, which never holds all logits (`kernels.logprob`)


@dataclass(frozen=True)
class Shape:
    """A model of the Llama family: what its config.json says."""

    parameters: float
    layers: int
    hidden: int
    feed_forward: int
    heads: int
    kv_heads: int

    @property
    def kv(self) -> int:
        """Width of all keys, and of all values."""
        return self.hidden // self.heads * self.kv_heads

    def adapter_parameters(self, config: Config) -> int:
        """Of LoRA on the configured projections."""
        inner = {"q_proj": self.hidden, "k_proj": self.kv, "v_proj": self.kv, "o_proj": self.hidden}
        widths = {
            **{name: self.hidden + out for name, out in inner.items()},
            **dict.fromkeys(("gate_proj", "up_proj", "down_proj"), self.hidden + self.feed_forward),
        }
        return (
            (config.lora.layers or self.layers) * config.lora.rank * sum(widths[name] for name in config.lora.targets)
        )


def branches(stage: Stage) -> tuple[int, int]:
    """Completions of a prompt that a micro-batch holds, and tokens of one."""
    if isinstance(stage, Grpo):
        return (stage.group_size, stage.max_tokens) if stage.rollout == "sample" else (5, 8)
    if isinstance(stage, Sampled):
        return getattr(stage, "keep", 1), stage.max_tokens
    return (1 + stage.wrong_answers if isinstance(stage, Reward) else 2), ANSWER


def training_gb(shape: Shape, config: Config, stage: Stage) -> float:
    """What a stage's training takes at its peak, in GB (10^9 bytes).

    The base; the adapters with gradients, two moments and a reference; what the layers keep for the backward pass of a
    micro-batch of longest prompts: of a position and layer 8 vectors as wide as the model, 2 as its keys, 4 as its
    feed-forward, and with gradient checkpointing its input, keys and values, and one layer's all.
    """
    group, tokens = branches(stage)
    positions = config.max_prompt_tokens + group * tokens
    if isinstance(stage, Reward) and stage.message_pairs:
        positions = max(positions, 2 * config.max_prompt_tokens)  # of two messages
    positions *= stage.batch_size
    whole = 8 * shape.hidden + 2 * shape.kv + 4 * shape.feed_forward
    kept = shape.layers * whole
    if config.gradient_checkpointing:
        kept = shape.layers * (shape.hidden + 2 * shape.kv) + whole
    adapters = shape.adapter_parameters(config) * FLOAT * (1 + 1 + 2 + 1)
    return (shape.parameters * BITS / 8 + adapters + positions * kept * FLOAT + HEAD) / 1e9
