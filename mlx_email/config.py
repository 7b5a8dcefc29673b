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
from mlx_email.stages import (
    AnyStage,
    Dpo,
    Grpo,
    Kto,
    NotNegative,
    PositiveFloat,
    PositiveInt,
    Probability,
    Reward,
    RewardTerm,
    Rsf,
    Sampled,
    Sft,
    Share,
    Stage,
    Temporal,
)

__all__ = [
    "Acting",
    "Config",
    "Dpo",
    "Gate",
    "Grpo",
    "Kto",
    "Reward",
    "RewardTerm",
    "Rsf",
    "Sampled",
    "Sft",
    "Stage",
    "Temporal",
    "dump",
    "expanded",
    "for_model",
    "load",
    "shipped",
]


TAKEN = ("data", "replaced", "tracking", "base")  # names that are folders of the run's own, or that say something else
Metric = Literal["accuracy", "macro_f1", "nll"]
Goal = Annotated[float, msgspec.Meta(gt=0, lt=1)]
ActionName = Literal["reply_now", "reply_later", "forward", "archive", "delete"]
Calibrating = Literal["none", "temperature", "vector", "isotonic"]


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
    layers: PositiveInt | None = None  # that have some, the last ones; None: all. Those before need no backward pass
    dora: bool = False  # the weights' magnitudes apart from their directions


class Evaluation(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """Closed-set scoring."""

    batch_size: PositiveInt = 32  # messages
    max_messages: PositiveInt | None = None  # of a split, evenly spaced in time; None: all
    validation_messages: PositiveInt = 256  # of the validation split, for the validations while training


class Gate(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """What a stage's policy must not be worse in than the best before it, or the run goes on with that one."""

    metric: Metric | None = "accuracy"  # None: whatever a stage gives is kept
    messages: PositiveInt | None = 1000  # of the validation split, evenly spaced in time; None: all


class Acting(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """When a policy may act alone; chosen on the gate's messages."""

    calibration: Calibrating = "temperature"  # of confidences, before anything else
    goals: Annotated[tuple[Goal, ...], msgspec.Meta(min_length=1)] = (0.9, 0.95, 0.99)  # shares of right actions
    # How sure it must be that a goal is met, and not only by chance; None: that it was on these messages is enough.
    certainty: Probability | None = 0.8
    # What single wrong actions cost, by the right one and the one taken, where it is not as in `evaluate.costs`; in
    # units of a letter archived in vain.
    costs: dict[ActionName, dict[ActionName, NotNegative]] | None = None
    most_cost: NotNegative = 0.15  # that acting alone may be expected to cost


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
    gate: Gate = Gate()
    acting: Acting = Acting()
    target_accuracy: Share | None = 0.95  # on the gate's messages; once it is reached, no further stage is trained
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
    names = [stage.name for stage in expanded(config.stages)]
    if len(set(names)) != len(names):
        raise ConfigError(f"{where}: two stages have the same name ({', '.join(names)})")
    if taken := set(names) & set(TAKEN):
        raise ConfigError(f"{where}: no stage can be named {min(taken)}, which has a meaning of its own")
    refuse_starts(config.stages, where)
    return config


def refuse_starts(stages: typing.Sequence[AnyStage], where: str) -> None:
    """ConfigError where a stage starts from what is not trained before it."""
    before: list[str] = []
    for stage in stages:
        follows = isinstance(stage, Rsf) and stage.follows is not None
        if stage.starts_from not in (None, "base", *before):
            raise ConfigError(
                f"{where}: {stage.name} starts from {stage.starts_from}: no stage before it that trains a policy"
            )
        if not isinstance(stage, Reward):
            before += [each.name for each in expanded([stage])]
            before += [stage.name, stage.name.rpartition("-")[0]] if follows else [stage.name]  # of its last iteration


def expanded(stages: typing.Sequence[AnyStage]) -> tuple[AnyStage, ...]:
    """The stages with every iteration of one as a stage of its own."""
    found: list[AnyStage] = []
    for stage in stages:
        if not isinstance(stage, Rsf) or stage.iterations == 1:
            found.append(stage)
            continue
        names = [f"{stage.name}-{number + 1}" for number in range(stage.iterations)]
        for name, before in zip(names, [None, *names], strict=False):
            begins = stage.starts_from if before is None else None
            found.append(msgspec.structs.replace(stage, name=name, iterations=1, follows=before, starts_from=begins))
    return tuple(found)


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
