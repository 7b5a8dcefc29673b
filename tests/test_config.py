"""The configuration is strict, says where an error is, and survives a round trip."""

import re
import typing

import msgspec
import pytest

from mlx_email import config
from mlx_email.errors import ConfigError
from mlx_email.kernels import losses


@pytest.mark.parametrize("name", config.shipped())
def test_every_shipped_configuration_loads(name):
    chosen = config.load(name)
    assert chosen.stages
    assert msgspec.yaml.decode(config.dump(chosen))["model"] == chosen.model


def test_round_trip(tmp_path):
    chosen = config.load("quickstart", ["stages.sft.epochs=5", "lora.targets=[q_proj]", "compile=true"])
    (tmp_path / "c.yaml").write_text(config.dump(chosen))
    assert config.load(str(tmp_path / "c.yaml")) == chosen


def test_numbers_without_a_point_are_numbers(tmp_path):
    (tmp_path / "c.yaml").write_text("stages: [{algorithm: sft, learning_rate: 1e-5}]")
    assert config.load(str(tmp_path / "c.yaml")).stages[0].learning_rate == 1e-5


@pytest.mark.parametrize(
    ("override", "says"),
    [
        ("lora.rnk=3", "did you mean rank?"),
        ("lora.rank=many", "int"),
        ("lora.rank=0", ">= 1"),
        ("lora.dropout=1.0", "< 1"),
        ("stages.sftt.epochs=1", "there are sft"),
        ("stages=[]", "length >= 1"),
        ("stages.sft=1", "inside 'sft'"),
        ("gradient_clip=.inf", "finite"),
        ("model", "a.b=value"),
        ("lora.rank.deeper=1", "nothing inside 'rank'"),
        ("seed=-1", ">= 0"),
        ("stages.sft.name=../evil", "regex"),
        ("lora.targets=[]", ">= 1"),
    ],
)
def test_a_wrong_override_is_one_clear_line(override, says):
    with pytest.raises(ConfigError, match="--set") as caught:
        config.load(None, [override])
    assert says in str(caught.value)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("text", "says"),
    [
        ("modle: tiny", "no setting modle: did you mean model?"),
        ("stages: [{algorithm: sft, epoch: 1}]", "did you mean epochs?"),
        ("stages: [{algorithm: dpoo}]", "dpoo"),
        ("lora: [1]", "object"),
        ("- 1", "not a mapping"),
        ("a: [", "not YAML"),
        ("stages: [{algorithm: sft}, {algorithm: sft}]", "same name"),
        ("stages: [{algorithm: sft, name: data}]", "named data"),
        ("model: !!python/object/apply:os.system ['true']", "not YAML"),
    ],
)
def test_a_wrong_file_is_one_clear_line(text, says, tmp_path):
    path = tmp_path / "c.yaml"
    path.write_text(text)
    with pytest.raises(ConfigError) as caught:
        config.load(str(path))
    assert says in str(caught.value)
    assert "\n" not in str(caught.value)


def test_a_missing_file_names_the_shipped_ones():
    with pytest.raises(ConfigError, match="quickstart"):
        config.load("nowhere.yaml")


# The stages


def stages(*settings: str) -> list[str]:
    return ["stages=[{" + ", ".join(settings) + "}]"]


def test_the_defaults_are_the_source_s_where_it_names_them():
    dpo, kto, reward = config.Dpo(), config.Kto(), config.Reward()
    for stage in (dpo, kto):
        assert (stage.epochs, stage.batch_size, stage.accumulation, stage.learning_rate) == (2, 2, 16, 5e-6)
        assert (stage.beta, stage.warmup) == (0.1, 0.1)
    assert dpo.ld_alpha is None
    assert (reward.epochs, reward.learning_rate, reward.head_dropout) == (3, 1e-5, 0.1)
    big = config.load("qwen2.5-7b")
    rewards = tuple(
        config.RewardTerm(function=f, weight=w) for f, w in (("learned", 1), ("action", 1), ("format", 0.2))
    )
    online = config.Grpo(rewards=rewards), config.Rsf(rewards=rewards)
    halved = config.Reward(batch_size=2, accumulation=16)  # the same step, in less memory
    of_wishes = config.Dpo(), config.Kto(), config.Temporal()
    assert big.stages == (config.Sft(), halved, online[0], *of_wishes, online[1])
    temporal = config.Temporal()
    assert (temporal.window_days, temporal.lookahead_days, temporal.step_days) == (30, 7, 7)
    assert (temporal.beta, temporal.learning_rate) == (dpo.beta, dpo.learning_rate)
    assert big.target_accuracy == 0.95
    grpo, rsf = config.Grpo(), config.Rsf()
    assert (grpo.epochs, grpo.batch_size * grpo.accumulation, grpo.learning_rate, grpo.temperature) == (5, 8, 1e-5, 0.8)
    assert (grpo.beta, grpo.epsilon_low, grpo.high, grpo.stop_accuracy) == (0.1, 0.2, 0.2, 0.85)
    assert (rsf.samples, rsf.keep, rsf.epochs, rsf.batch_size, rsf.learning_rate) == (16, 4, 1, 4, 1e-6)
    assert (rsf.iterations, rsf.warmup, rsf.stop_accuracy) == (5, 0.1, 0.95)
    assert (big.lora.rank, big.lora.alpha, big.lora.dropout) == (64, 128.0, 0.05)


@pytest.mark.parametrize(("kind", "compute"), [(config.Dpo, losses.dpo), (config.Kto, losses.kto)])
def test_every_loss_there_is_can_be_chosen_and_no_other(kind, compute):
    (field,) = [field for field in msgspec.structs.fields(kind) if field.name == "loss_type"]
    chosen = set(typing.get_args(field.type))
    with pytest.raises(ValueError, match="known: ") as error:
        compute(*[None] * 6, loss_type="none of them")
    assert chosen == set(str(error.value).partition("known: ")[2].split(", "))


@pytest.mark.parametrize(
    ("settings", "says"),
    [
        (["algorithm: dpo", "beta: 0"], "> 0.0"),
        (["algorithm: dpo", "loss_type: sigmod"], "Invalid enum value 'sigmod'"),
        (["algorithm: dpo", "label_smoothing: 0.1"], "loss_type=sigmoid takes nothing but 0"),
        (["algorithm: dpo", "loss_type: exo_pair"], "label_smoothing=0.0: loss_type=exo_pair takes at least"),
        (["algorithm: dpo", "loss_type: robust", "label_smoothing: 0.5"], "below 0.5"),
        (["algorithm: dpo", "discopop_tau: 0.1"], "of loss_type=discopop"),
        (["algorithm: grpo", "kl: exact"], "kl='exact' does nothing with rollout=sample"),
        (
            ["algorithm: grpo", "rollout: enumerate", "group_size: 4"],
            "group_size=4 does nothing with rollout=enumerate",
        ),
        (
            ["algorithm: grpo", "loss_type: cispo", "epsilon_low: 0.1"],
            "epsilon_low=0.1 does nothing with loss_type=cispo",
        ),
        (["algorithm: grpo", "loss_type: sapo", "delta: 2"], "delta=2.0 does nothing with loss_type=sapo"),
        (["algorithm: grpo", "sapo_temperature_pos: 2"], "sapo_temperature_pos=2.0 does nothing with loss_type=grpo"),
        (["algorithm: grpo", "rollout: enumerate", "advantages: rloo"], "with rollout=enumerate none, or group"),
        (["algorithm: grpo", "updates: 4", "max_steps: 6"], "max_steps=6 leaves a rollout of 4 updates unfinished"),
        (["algorithm: rsf", "keep: 17"], "keep=17 of 16 samples"),
        (["algorithm: dpo", "loss_type: aot"], "accumulation=1"),
        (["algorithm: dpo", "loss_type: aot", "accumulation: 1", "batch_size: 1"], "a larger batch_size"),
        (["algorithm: dpo", "loss_type: sft", "ld_alpha: 0.5"], "loss_type=sft has one"),
        (["algorithm: dpo", "wrong_answers: 5"], "<= 4"),
        (["algorithm: kto", "batch_size: 1", "accumulation: 1"], "must be 2 or more"),
        (["algorithm: reward", "head_dropout: 0.2"], "of head=mlp"),
        (["algorithm: reward", "message_pairs: 2"], "<= 1"),
        (["algorithm: ppo"], "ppo"),
        (["algorithm: dpo", "betta: 0.2"], "did you mean beta?"),
        (["algorithm: kto", "desireable_weight: 2"], "did you mean desirable_weight?"),
    ],
)
def test_settings_that_no_stage_can_have_are_refused(settings, says):
    with pytest.raises(ConfigError, match=re.escape(says)):
        config.load(None, stages(*settings))


def test_settings_that_are_only_allowed_together_can_be_set_one_after_another():
    together = ["stages.dpo.loss_type=exo_pair", "stages.dpo.label_smoothing=0.1"]
    for order in (together, together[::-1]):
        (stage,) = config.load(None, ["stages=[{algorithm: dpo}]", *order]).stages
        assert (stage.loss_type, stage.label_smoothing) == ("exo_pair", 0.1)
    (stage,) = config.load(None, ["stages=[{algorithm: dpo, loss_type: exo_pair}]", together[1]]).stages
    assert (stage.name, stage.loss_type, stage.label_smoothing) == ("dpo", "exo_pair", 0.1)
    with pytest.raises(ConfigError, match=r"--set stages: Expected"):
        config.load(None, ["stages=[1]", "stages.sft.epochs=2"])
    with pytest.raises(ConfigError, match=r"--set stages\.dpo\.loss_type: .*exo_pair takes at least"):
        config.load(None, ["stages=[{algorithm: dpo}]", together[0], "stages.dpo.beta=0.2"])


def test_stages_of_several_kinds_are_written_and_read_back():
    chosen = config.load("qwen2.5-7b", ["stages.dpo.beta=0.3", "stages.reward.members=3", "stages.3.loss_type=ipo"])
    assert (chosen.stages[3].beta, chosen.stages[3].loss_type, chosen.stages[1].members) == (0.3, "ipo", 3)
    assert msgspec.yaml.decode(config.dump(chosen), type=config.Config) == chosen


def test_every_loss_of_grpo_can_be_chosen_and_no_other():
    (field,) = [field for field in msgspec.structs.fields(config.Grpo) if field.name == "loss_type"]
    with pytest.raises(ValueError, match="known: ") as error:
        losses.grpo(*[None] * 5, loss_type="none of them")
    assert set(typing.get_args(field.type)) == set(str(error.value).partition("known: ")[2].split(", "))
    assert config.Grpo(loss_type="cispo").high == 5.0


def test_iterations_are_stages_that_follow_each_other():
    stages = config.expanded((config.Sft(), config.Rsf(iterations=3), config.Rsf(name="more", iterations=1)))
    assert [stage.name for stage in stages] == ["sft", "rsf-1", "rsf-2", "rsf-3", "more"]
    assert [stage.follows for stage in stages[1:]] == [None, "rsf-1", "rsf-2", None]
    assert config.expanded(stages) == stages
    with pytest.raises(ConfigError, match="two stages have the same name"):
        config.load(None, ["stages=[{algorithm: sft, name: rsf-2}, {algorithm: rsf, iterations: 2}]"])
