"""The configuration is strict, says where an error is, and survives a round trip."""

import msgspec
import pytest

from mlx_email import config
from mlx_email.errors import ConfigError


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
