"""The settings of each kind of stage; the defaults are the source's where it has any."""

from typing import Annotated, Literal

import msgspec

PositiveInt = Annotated[int, msgspec.Meta(ge=1)]
PositiveFloat = Annotated[float, msgspec.Meta(gt=0)]
Share = Annotated[float, msgspec.Meta(ge=0, le=1)]
StageName = Annotated[str, msgspec.Meta(pattern=r"^[a-z][a-z0-9_-]*$", max_length=40)]  # a folder of the run
Probability = Annotated[float, msgspec.Meta(ge=0, lt=1)]
NotNegative = Annotated[float, msgspec.Meta(ge=0)]
Days = Annotated[float, msgspec.Meta(ge=0.01, le=3650)]


class Stage(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True, tag_field="algorithm"):
    """What every stage has."""

    name: StageName
    # Another stage's result, kept or not, or `base`: no adapters; None: the last that was kept.
    starts_from: StageName | None = None
    epochs: PositiveInt = 3
    batch_size: PositiveInt = 4  # examples a micro-batch
    accumulation: PositiveInt = 8  # micro-batches a step
    learning_rate: PositiveFloat = 2e-5  # the peak
    schedule: Literal["constant", "linear", "cosine"] = "cosine"
    warmup: Share = 0.1  # share of the steps
    max_steps: PositiveInt | None = None  # stop there, the schedule ending with it
    log_every: PositiveInt = 10  # steps
    save_every: PositiveInt = 50  # steps; what a kill can cost
    validate_every: PositiveInt | None = 100  # steps, and at the end; the best is the result. None: the last is
    patience: PositiveInt | None = None  # stop after so many validations without a better one


class Sft(Stage, frozen=True, kw_only=True, forbid_unknown_fields=True, tag="sft"):
    """Supervised fine-tuning; the defaults are the source's."""

    name: StageName = "sft"
    demonstrations: PositiveInt | None = None  # messages of the training split, drawn; None: all
    augment: bool = False  # train on variants too: the subject in other words, a similar sender


class Reward(Stage, frozen=True, kw_only=True, forbid_unknown_fields=True, tag="reward"):
    """A Bradley-Terry reward model beside the policy. Rate, epochs and the mlp are the source's; it has the mlp on the
    last 4 layers, and pairs of messages only."""

    name: StageName = "reward"
    learning_rate: PositiveFloat = 1e-5
    head: Literal["linear", "mlp"] = "linear"  # on the last token's hidden state; mlp: the source's, with GELU
    head_dropout: Probability = 0.1  # of the mlp
    members: PositiveInt = 1  # heads, each trained from another start: their spread says how sure the reward is
    trained_layers: PositiveInt | None = None  # adapters of the last ones only (the source: 4); None: of all
    wrong_answers: Annotated[int, msgspec.Meta(ge=1, le=4)] = 4  # a message, each a pair with the right one
    margins: bool = True  # the right answer is to be ahead the more, the faster and clearer the owner acted
    message_pairs: Share = 0.1  # the source's pairs of two messages, as a share of the messages
    center_rewards_coefficient: NotNegative = 0.01

    def __post_init__(self) -> None:
        if self.head == "linear" and self.head_dropout != 0.1:
            raise ValueError("head_dropout is of head=mlp: a linear head has none")


class Dpo(Stage, frozen=True, kw_only=True, forbid_unknown_fields=True, tag="dpo"):
    """Direct preference optimisation: what the owner did against what they did not; the defaults are the source's."""

    name: StageName = "dpo"
    epochs: PositiveInt = 2
    batch_size: PositiveInt = 2
    accumulation: PositiveInt = 16
    learning_rate: PositiveFloat = 5e-6
    beta: PositiveFloat = 0.1
    loss_type: Literal[
        "sigmoid",
        "hinge",
        "ipo",
        "robust",
        "exo_pair",
        "nca_pair",
        "bco_pair",
        "sppo_hard",
        "aot",
        "aot_unpaired",
        "apo_zero",
        "apo_down",
        "discopop",
        "sigmoid_norm",
        "sft",
    ] = "sigmoid"
    label_smoothing: Probability = 0.0  # share of wrong preferences: of robust, exo_pair, aot, aot_unpaired
    discopop_tau: PositiveFloat = 0.05
    ld_alpha: Share | None = None  # LD-DPO: weight of what one completion is longer than the other; None: 1
    wrong_answers: Annotated[int, msgspec.Meta(ge=1, le=4)] = 1  # a message, each a pair with the right one

    def __post_init__(self) -> None:
        smoothed = {"robust": (0.0, 0.5), "exo_pair": (1e-9, 1.0), "aot": (0.0, 1.0), "aot_unpaired": (0.0, 1.0)}
        low, high = smoothed.get(self.loss_type, (0.0, 1e-9))
        if not low <= self.label_smoothing < high:
            allowed = f"at least {low:g}, below {high:g}" if self.loss_type in smoothed else "nothing but 0"
            raise ValueError(f"label_smoothing={self.label_smoothing}: loss_type={self.loss_type} takes {allowed}")
        if self.loss_type != "discopop" and self.discopop_tau != 0.05:
            raise ValueError(f"discopop_tau is of loss_type=discopop, not of {self.loss_type}")
        if self.loss_type.startswith("aot") and (self.accumulation > 1 or self.batch_size < 2):
            raise ValueError(f"loss_type={self.loss_type} sorts over its batch: accumulation=1 and a larger batch_size")
        if self.loss_type == "sft" and self.ld_alpha is not None:
            raise ValueError("ld_alpha compares two completions: loss_type=sft has one")


class Kto(Stage, frozen=True, kw_only=True, forbid_unknown_fields=True, tag="kto"):
    """Kahneman-Tversky optimisation: single answers, wanted or not; the defaults are the source's."""

    name: StageName = "kto"
    epochs: PositiveInt = 2
    batch_size: PositiveInt = 2
    accumulation: PositiveInt = 16
    learning_rate: PositiveFloat = 5e-6
    beta: PositiveFloat = 0.1
    loss_type: Literal["kto", "apo_zero_unpaired"] = "kto"
    desirable_weight: PositiveFloat | None = None  # None: the smaller class weighs as much as the larger in all
    undesirable_weight: PositiveFloat | None = None

    def __post_init__(self) -> None:
        if self.batch_size * self.accumulation < 2:
            raise ValueError(
                "KTO compares a step's examples with each other: batch_size * accumulation must be 2 or more"
            )


class Temporal(Stage, frozen=True, kw_only=True, forbid_unknown_fields=True, tag="temporal"):
    """What came later as the feedback on what the policy would do; a step a window of an owner's mail, oldest first.
    The windows are the source's, rate and beta those of its DPO."""

    name: StageName = "temporal"
    epochs: PositiveInt = 1
    accumulation: PositiveInt = 1
    learning_rate: PositiveFloat = 5e-6
    beta: PositiveFloat = 0.1
    window_days: Days = 30.0
    lookahead_days: Days = 7.0  # after a window; what comes later does not count
    step_days: Days = 7.0  # from one window's beginning to the next
    window_messages: PositiveInt | None = None  # of a window, drawn; None: all

    def __post_init__(self) -> None:
        if self.accumulation != 1:
            raise ValueError("accumulation does nothing here: a window is a step, in as many micro-batches as it takes")
        if self.epochs != 1:
            raise ValueError("epochs: time passes once; a second time the first window would be judged by its future")


FUNCTION = r"^(action|action_cost|format|priority|length|learned|[^:]+:[A-Za-z_]\w*)$"


class RewardTerm(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """One of the reward functions whose weighted sum a completion is worth."""

    # One of ours, `learned` (the score of the reward stage before), or `package.module:name` or `file.py:name`.
    function: Annotated[str, msgspec.Meta(pattern=FUNCTION)]
    weight: float = 1.0


class Sampled(Stage, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """What the stages that sample have in common."""

    # A token is drawn from the policy's distribution at this temperature; losses are of the one at 1.
    temperature: NotNegative = 0.8
    top_p: Share = 0.0  # 0: all
    top_k: Annotated[int, msgspec.Meta(ge=0)] = 0  # 0: all
    min_p: Share = 0.0
    max_tokens: PositiveInt = 64  # of a completion
    rewards: Annotated[tuple[RewardTerm, ...], msgspec.Meta(min_length=1)] = (
        RewardTerm(function="action"),
        RewardTerm(function="priority", weight=0.2),
        RewardTerm(function="format", weight=0.2),
    )
    stop_accuracy: Share | None = 0.85  # on the messages validated on, by which the stage has reached what it is for

    def __post_init__(self) -> None:
        names = [term.function for term in self.rewards]
        if len(set(names)) != len(names):
            raise ValueError("rewards: a function is named twice")


class Grpo(Sampled, frozen=True, kw_only=True, forbid_unknown_fields=True, tag="grpo"):
    """Group-relative policy optimisation; the defaults are the source's, but for the rewards and 64 tokens for its
    256: an answer has about 35."""

    name: StageName = "grpo"
    epochs: PositiveInt = 5
    batch_size: PositiveInt = 2  # prompts a micro-batch
    accumulation: PositiveInt = 4
    learning_rate: PositiveFloat = 1e-5
    # enumerate: no sampling; the exact expectation over the five actions, each with its canonical answer
    rollout: Literal["sample", "enumerate"] = "sample"
    group_size: Annotated[int, msgspec.Meta(ge=2)] = 8  # completions a prompt
    updates: PositiveInt = 1  # steps taken with a rollout
    beta: NotNegative = 0.1  # of the KL to the policy that the stage began with
    kl: Literal["exact", "k3"] | None = None  # None: k3, the estimate from a sample; of rollout=enumerate exact
    loss_type: Literal["grpo", "bnpo", "dr_grpo", "dapo", "cispo", "sapo", "luspo"] = "grpo"
    importance_sampling_level: Literal["token", "sequence"] = "token"
    epsilon_low: NotNegative = 0.2
    epsilon_high: PositiveFloat | None = None  # None: 0.2, of cispo 5
    delta: PositiveFloat | None = None
    sapo_temperature_pos: PositiveFloat = 1.0
    sapo_temperature_neg: PositiveFloat = 1.05
    # What a reward's distance from its group's mean is divided by: the deviation of the group, of the batch, nothing;
    # rloo: nothing, and the mean is that of the others. None: group; of rollout=enumerate none.
    advantages: Literal["group", "batch", "none", "rloo"] | None = None
    samples_every: PositiveInt | None = 50  # steps between two tables of samples; None: no table
    mask_truncated: bool = False  # learn nothing from completions that were cut at max_tokens

    def __post_init__(self) -> None:
        super().__post_init__()
        clipped = self.loss_type not in ("cispo", "sapo")
        unused = {
            "rollout=sample": {"kl": self.kl == "exact" and self.rollout == "sample"},
            "beta=0": {"kl": self.kl is not None and self.beta == 0},
            f"loss_type={self.loss_type}": {
                "delta": self.delta is not None and not clipped,
                "epsilon_low": self.epsilon_low != 0.2 and not clipped,
                "epsilon_high": self.epsilon_high is not None and self.loss_type == "sapo",
                "sapo_temperature_pos": self.sapo_temperature_pos != 1.0 and self.loss_type != "sapo",
                "sapo_temperature_neg": self.sapo_temperature_neg != 1.05 and self.loss_type != "sapo",
            },
            "rollout=enumerate": {
                name: self.rollout == "enumerate" and getattr(self, name) != default
                for name, default in SAMPLED_ONLY.items()
            },
        }
        for chosen, names in unused.items():
            for name in (name for name, found in names.items() if found):
                raise ValueError(f"{name}={getattr(self, name)!r} does nothing with {chosen}: leave it out")
        if self.rollout == "enumerate" and self.advantages not in (None, "none", "group"):
            raise ValueError(f"advantages={self.advantages}: with rollout=enumerate none, or group")
        if self.rollout == "sample" and (self.temperature == 0 or self.top_k == 1):
            raise ValueError("temperature=0 and top_k=1 draw the same completion every time: nothing to learn from")
        if (self.max_steps or 0) % self.updates:
            raise ValueError(f"max_steps={self.max_steps} leaves a rollout of {self.updates} updates unfinished")

    @property
    def high(self) -> float:
        """epsilon_high as the loss takes it."""
        return self.epsilon_high or (5.0 if self.loss_type == "cispo" else 0.2)


class Rsf(Sampled, frozen=True, kw_only=True, forbid_unknown_fields=True, tag="rsf"):
    """Rejection-sampling fine-tuning: imitate the best of one's own completions; the defaults are the source's. Each
    iteration is a stage of the run: rsf-1, rsf-2, ..."""

    name: StageName = "rsf"
    epochs: PositiveInt = 1
    accumulation: PositiveInt = 1
    learning_rate: PositiveFloat = 1e-6
    prompts: PositiveInt | None = None  # of an iteration, drawn; None: all
    samples: Annotated[int, msgspec.Meta(ge=2)] = 16  # completions a prompt
    keep: PositiveInt = 4  # the best of them
    threshold: float | None = None  # keep none that is worth less
    iterations: PositiveInt = 5  # at most
    stop_accuracy: Share | None = 0.95  # no further iteration above it
    follows: StageName | None = None  # the iteration before it; written by the program

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.keep > self.samples:
            raise ValueError(f"keep={self.keep} of {self.samples} samples")
        if self.iterations > 1 and len(self.name) > 36:
            raise ValueError(f"name={self.name}: too long for its iterations, which have a number after it")


# What rollout=enumerate has no use for, by its default.
SAMPLED_ONLY = {
    "group_size": 8,
    "temperature": 0.8,
    "top_p": 0.0,
    "top_k": 0,
    "min_p": 0.0,
    "max_tokens": 64,
    "loss_type": "grpo",
    "importance_sampling_level": "token",
    "mask_truncated": False,
    "samples_every": 50,
    "delta": None,
}

AnyStage = Sft | Reward | Dpo | Kto | Grpo | Rsf | Temporal
