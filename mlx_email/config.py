"""The configuration: one tree of frozen records, filled from YAML and --set, strict in both.

An unknown key or a wrong type is an error that names the place. The resolved tree, all defaults written out, is saved
with the run.
"""

import difflib
import importlib.resources
import math
import types
import typing
from pathlib import Path
from typing import Annotated, Any, Literal

import msgspec

from mlx_email.errors import ConfigError

PositiveInt = Annotated[int, msgspec.Meta(ge=1)]
PositiveFloat = Annotated[float, msgspec.Meta(gt=0)]
Share = Annotated[float, msgspec.Meta(ge=0, le=1)]
StageName = Annotated[str, msgspec.Meta(pattern=r"^[a-z][a-z0-9_-]*$", max_length=40)]  # a folder of the run
Probability = Annotated[float, msgspec.Meta(ge=0, lt=1)]
NotNegative = Annotated[float, msgspec.Meta(ge=0)]


class Synthetic(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """The embedded mailbox, used when `train` is given no mail."""

    messages: PositiveInt = 10_700  # received ones, over all owners; at least 2,000 of them to test on
    noise: Share = 0.08  # share of messages where the owner does something else than the rule
    seed: int = 0


class Lora(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """Adapters; the defaults are the source's."""

    rank: PositiveInt = 64
    alpha: PositiveFloat = 128.0
    dropout: Probability = 0.05  # in SFT only: other stages compare the policy with itself
    targets: Annotated[tuple[str, ...], msgspec.Meta(min_length=1)] = (
        "q_proj",
        "k_proj",
        "v_proj",
        "o_proj",
        "gate_proj",
        "up_proj",
        "down_proj",
    )
    dora: bool = False  # the weights' magnitudes apart from their directions


class Stage(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True, tag_field="algorithm"):
    """What every stage has."""

    name: StageName
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


FUNCTION = r"^(action|action_cost|format|priority|length|learned|[^:]+:[A-Za-z_]\w*)$"


class RewardTerm(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """One of the reward functions whose weighted sum a completion is worth."""

    # One of ours, `learned` (the score of the reward stage before), or `package.module:name` or `file.py:name`.
    function: Annotated[str, msgspec.Meta(pattern=FUNCTION)]
    weight: float = 1.0


class Sampled(Stage, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """What the stages that sample have in common."""

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
    samples_every: PositiveInt | None = 50  # steps between two tables of samples; None: no table

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
        if (self.max_steps or 0) % self.updates:
            raise ValueError(f"max_steps={self.max_steps} leaves a rollout of {self.updates} updates unfinished")

    @property
    def high(self) -> float:
        """epsilon_high as the loss takes it."""
        return self.epsilon_high or (5.0 if self.loss_type == "cispo" else 0.2)


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
    "delta": None,
}

AnyStage = Sft | Reward | Dpo | Kto | Grpo


class Evaluation(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """Closed-set scoring."""

    batch_size: PositiveInt = 32  # messages
    max_messages: PositiveInt | None = None  # of a split, evenly spaced in time; None: all
    validation_messages: PositiveInt = 256  # of the validation split, for the validations while training


class Memory(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """What MLX may use, in GB."""

    limit_gb: PositiveFloat | None = None  # stop cleanly beyond it; None: the machine's memory
    cache_gb: NotNegative | None = None  # kept for reuse when freed; None: MLX's default


class Config(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """Everything that decides what a run does."""

    model: str = "tiny"
    seed: Annotated[int, msgspec.Meta(ge=0, lt=2**32)] = 0
    max_prompt_tokens: PositiveInt = 1024
    sender_history: bool = True  # prompts say what the owner did with the sender's last 20 mails
    compile: bool | None = None  # mx.compile of the training step; None: where it pays (not on the CPU)
    gradient_checkpointing: bool = False  # compute each layer twice instead of keeping what is in it: less memory
    gradient_clip: PositiveFloat = 1.0  # global norm
    weight_decay: NotNegative = 0.0
    synthetic: Synthetic = Synthetic()
    lora: Lora = Lora()
    stages: Annotated[tuple[AnyStage, ...], msgspec.Meta(min_length=1)] = (Sft(),)
    evaluation: Evaluation = Evaluation()
    keep_checkpoints: PositiveInt = 2  # the newest ones of a stage, besides its first and its best
    memory: Memory = Memory()


def load(name: str | None, overrides: typing.Sequence[str] = ()) -> Config:
    """The configuration of a file or of a shipped name (`smollm2`), with `a.b=c` overrides; None: all defaults.

    Raises ConfigError naming the file, the place and, for an unknown key, the nearest known one.
    """
    where, text = ("the defaults", "") if name is None else _read(name)
    try:
        tree = msgspec.yaml.decode(text) if text.strip() else {}
    except msgspec.DecodeError as error:
        raise ConfigError(f"{where} is not YAML: {_one_line(error)}") from error
    if not isinstance(tree, dict):
        raise ConfigError(f"{where} is not a mapping of settings")
    config = _overridden(_convert(tree, where), overrides)
    names = [stage.name for stage in config.stages]
    if len(set(names)) != len(names):
        raise ConfigError(f"{where}: two stages have the same name ({', '.join(names)})")
    if "data" in names:
        raise ConfigError(f"{where}: no stage can be named data, the folder of the run's tables")
    return config


def for_model(model: str | None) -> str | None:
    """The shipped configuration that goes with a model: the one of its name; None (the source's values) otherwise."""
    if model in (None, "tiny"):
        return "quickstart"
    return model if model in shipped() else None


def dump(config: Config) -> str:
    """The whole tree as YAML; `load` of it gives an equal tree."""
    return msgspec.yaml.encode(config).decode()


def shipped() -> list[str]:
    """The names of the configurations that are installed with the package."""
    folder = importlib.resources.files("mlx_email.configs")
    return sorted(entry.name.removesuffix(".yaml") for entry in folder.iterdir() if entry.name.endswith(".yaml"))


def _read(name: str) -> tuple[str, str]:
    if name in shipped():
        return name, importlib.resources.files("mlx_email.configs").joinpath(f"{name}.yaml").read_text()
    try:
        return name, Path(name).read_text()
    except (OSError, UnicodeDecodeError) as error:
        hint = f"shipped configurations: {', '.join(shipped())}"
        raise ConfigError(f"no configuration at {name} ({_one_line(error)}); {hint}") from error


def _convert(tree: Any, where: str) -> Config:
    _refuse_unknown(tree, Config, where, "")
    try:
        config = msgspec.convert(tree, Config, strict=False)
    except msgspec.ValidationError as error:
        raise ConfigError(f"{where}: {_one_line(error)}") from error
    _refuse_not_finite(msgspec.yaml.decode(dump(config)), where, "")
    return config


def _overridden(config: Config, overrides: typing.Sequence[str]) -> Config:
    """All overrides after one another. Two of them may only be allowed together (a loss and a setting of its own), so
    what one makes wrong another may mend; the first error counts where none does."""
    tree, wrong = msgspec.yaml.decode(dump(config)), None  # lists where the records have tuples
    for override in overrides:
        try:
            place = _override(tree, override, whole=wrong is None)
        except ConfigError as error:
            raise wrong or error from None
        try:
            config = _convert(tree, place)
            tree, wrong = msgspec.yaml.decode(dump(config)), None
        except ConfigError as error:
            wrong = wrong or error
    if wrong is not None:
        raise wrong
    return config


def _override(tree: Any, override: str, *, whole: bool) -> str:
    """Put `a.b=c` into a tree and say where it is from; an element of a list is named by its index or its `name`
    (`stages.sft.epochs=1`). In a `whole` tree every setting there is stands."""
    path, equals, text = override.partition("=")
    if not equals or not path:
        raise ConfigError(f"--set {override}: write it as --set a.b=value")
    try:
        value = msgspec.yaml.decode(text) if text.strip() else None
    except msgspec.DecodeError as error:
        raise ConfigError(f"--set {path}: {text!r} is not a YAML value") from error
    node: Any = tree
    *parents, last = path.split(".")
    for part in parents:
        node = _step(node, part, path)
    if isinstance(node, list):
        raise ConfigError(f"--set {path}: name a setting inside {last!r}")
    if not isinstance(node, dict):
        raise ConfigError(f"--set {path}: there is nothing inside {parents[-1]!r}")
    if whole and last not in node:
        raise ConfigError(f"--set {path}: no setting {last!r}{_nearest(last, node)}")
    node[last] = value
    return f"--set {path}"


def _step(node: Any, part: str, path: str) -> Any:
    if isinstance(node, list):
        # A stage that has no name yet gets its kind's.
        dicts = [element for element in node if isinstance(element, dict)]
        named = {str(element.get("name", element.get("algorithm"))): element for element in dicts}
        if part in named:
            return named[part]
        if part.isdigit() and int(part) < len(node):
            return node[int(part)]
        raise ConfigError(f"--set {path}: no stage {part!r}; there are {', '.join(named)}")
    if not isinstance(node, dict) or part not in node:
        raise ConfigError(f"--set {path}: no setting {part!r}{_nearest(part, node if isinstance(node, dict) else {})}")
    return node[part]


def _refuse_unknown(tree: Any, record: Any, where: str, path: str) -> None:
    """msgspec refuses unknown keys too, but does not say which one was meant."""
    if isinstance(tree, list):
        for index, element in enumerate(tree):
            _refuse_unknown(element, record, where, f"{path.rstrip('.')}[{index}].")
    if isinstance(record, dict):  # several kinds, each with its tag; an unknown one is left to msgspec
        record = record.get(tree.get("algorithm")) if isinstance(tree, dict) else None
    if not isinstance(tree, dict) or not (isinstance(record, type) and issubclass(record, msgspec.Struct)):
        return
    fields = {field.name: _record_of(field.type) for field in msgspec.structs.fields(record)}
    tag = record.__struct_config__.tag_field
    for key, value in tree.items():
        if key == tag:
            continue
        if key not in fields:
            raise ConfigError(f"{where}: no setting {path}{key}{_nearest(str(key), fields)}")
        _refuse_unknown(value, fields[key], where, f"{path}{key}.")


def _record_of(kind: Any) -> Any:
    """The record inside a field's type (`tuple[Sft, ...]`, `X | None`), a mapping from tags where there are several,
    or the type itself."""
    if typing.get_origin(kind) is Annotated:
        kind = typing.get_args(kind)[0]
    if typing.get_origin(kind) not in (tuple, typing.Union, types.UnionType):
        return kind
    found = [_record_of(inner) for inner in typing.get_args(kind)]
    records = [inner for inner in found if isinstance(inner, type) and issubclass(inner, msgspec.Struct)]
    tagged = next((inner for inner in found if isinstance(inner, dict)), None)
    if tagged is not None or len(records) > 1:
        return tagged or {record.__struct_config__.tag: record for record in records}
    return records[0] if records else kind


def _refuse_not_finite(tree: Any, where: str, path: str) -> None:
    if isinstance(tree, float) and not math.isfinite(tree):
        raise ConfigError(f"{where}: {path.rstrip('.')} is {tree}: a finite number is needed")
    pairs = tree.items() if isinstance(tree, dict) else enumerate(tree) if isinstance(tree, list) else ()
    for key, value in pairs:
        _refuse_not_finite(value, where, f"{path}{key}.")


def _nearest(key: str, known: typing.Iterable[str]) -> str:
    names = list(known)
    close = difflib.get_close_matches(key, names, n=1)
    return f": did you mean {close[0]}?" if close else f"; there are {', '.join(sorted(names))}" if names else ""


def _one_line(error: Exception) -> str:
    return " ".join(str(error).split())
