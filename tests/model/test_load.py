"""Models and adapters that cannot be used right are refused, by name, before anything is computed with them."""

import json
import shutil
from datetime import date
from pathlib import Path

import mlx.core as mx
import mlx.nn as nn
import numpy as np
import pytest
from mlx_lm.models import cohere, mamba
from mlx_lm.tokenizer_utils import load as load_tokenizer
from mlx_lm.utils import save_model

from mlx_email.errors import ModelError
from mlx_email.model import forward, load, lora, source
from mlx_email.model.render import renderer

LORA = lora.Lora(4, 8.0, 0.0, ("q_proj", "v_proj"))
SIZES = dict(
    hidden_size=32,
    num_hidden_layers=2,
    intermediate_size=64,
    num_attention_heads=4,
    num_key_value_heads=2,
    vocab_size=61,
)


def folder_of(model: nn.Module, config: dict, folder: Path) -> str:
    """A model as an mlx-lm folder, with the tokenizer of the tiny one."""
    shutil.copytree(source.resolve("tiny"), folder)
    (folder / "model.safetensors").unlink()
    save_model(folder, model)
    (folder / "config.json").write_text(json.dumps(config))
    return str(folder)


def logged(caplog) -> list[str]:
    return [record.getMessage() for record in caplog.records if record.name.startswith("mlx_email")]


def test_a_model_that_cannot_share_prompts_is_loaded_and_says_so(tmp_path, caplog):
    config = dict(model_type="mamba", vocab_size=4096, hidden_size=16, intermediate_size=32, state_size=4)
    config |= dict(num_hidden_layers=2, conv_kernel=3, use_bias=False, use_conv_bias=True, time_step_rank=2)
    model = load.load(folder_of(mamba.Model(mamba.ModelArgs(**config)), config, tmp_path / "mamba")).model
    assert not forward.shares_prompts(model)
    ids = mx.array([[1, 5, 3, 2]])
    logps = forward.completion_logps(model, ids, mx.array([4]), mx.array([[[7, 8]]]), mx.ones((1, 1, 2)))
    theirs = nn.log_softmax(model(mx.array([[1, 5, 3, 2, 7]]))[0, 3:], axis=-1)
    np.testing.assert_allclose(logps[0, 0], [theirs[0, 7].item(), theirs[1, 8].item()], atol=1e-5)
    (line,) = logged(caplog)
    assert "ArraysCache" in line and "slower" in line


def test_the_models_meant_for_it_share_prompts_without_a_word(caplog):
    assert forward.shares_prompts(load.load("tiny").model)
    assert logged(caplog) == []


def test_a_family_that_scales_its_logits_is_refused(tmp_path, caplog):
    config = dict(model_type="cohere", logit_scale=0.0625, **SIZES)
    folder = folder_of(cohere.Model(cohere.ModelArgs(**config)), config, tmp_path / "cohere")
    with pytest.raises(ModelError, match="cohere models do more after their head") as caught:
        load.load(folder)
    assert folder in str(caught.value) and logged(caplog) == []


@pytest.mark.parametrize("change", [{"num_attention_heads": 0}, {"vocab_size": 0}, {"model_type": "cache"}])
def test_a_config_that_makes_no_model_is_one_line(change, tmp_path):
    folder = shutil.copytree(source.resolve("tiny"), tmp_path / "model")
    config = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps(config | change))
    with pytest.raises(ModelError, match="cannot be loaded as a model") as caught:
        load.load(str(folder))
    assert "\n" not in str(caught.value)


def with_template(template: str):
    tokenizer = load_tokenizer(source.resolve("tiny"))
    tokenizer.chat_template = template
    return tokenizer


def test_the_day_of_the_run_is_in_no_prompt():
    turn = "{% for m in messages %}<|im_start|>{{ m.role }}\n{{ m.content }}<|im_end|>\n{% endfor %}<|im_start|>"
    dated = "{% if not date_string %}{% set date_string = strftime_now('%d %b %Y') %}{% endif %}{{ date_string }}\n"
    tokenizer = with_template(dated + turn)
    shown = tokenizer.decode(list(renderer(tokenizer).before))
    assert date.today().strftime("%d %b %Y") not in shown
    assert "26 Jul 2024" in shown


@pytest.mark.parametrize(
    "template", ["{{ raise_exception('no') }}", "{% if %}", "{{ messages[0].content | upper }}", "x"]
)
def test_a_template_that_fails_or_changes_the_words_is_refused(template):
    with pytest.raises(ModelError) as caught:
        renderer(with_template(template))
    assert "\n" not in str(caught.value)


@pytest.fixture
def adapters(tmp_path) -> Path:
    base = load.load("tiny")
    lora.apply(base.model, LORA, seed=1)
    lora.save(tmp_path, base.model, LORA, "tiny")
    return tmp_path


def test_adapters_come_back_as_they_were(adapters):
    base, fresh = load.load("tiny"), load.load("tiny")
    lora.load(base.model, adapters)
    lora.apply(fresh.model, LORA, seed=1)
    ours, theirs = lora.adapter_arrays(base.model), lora.adapter_arrays(fresh.model)
    assert ours.keys() == theirs.keys()
    assert all(mx.array_equal(ours[name], theirs[name]).item() for name in ours)


def rewrite(folder: Path, change) -> None:
    arrays = mx.load(str(folder / lora.ADAPTERS))
    mx.eval(arrays)
    (folder / lora.ADAPTERS).unlink()
    mx.save_safetensors(str(folder / lora.ADAPTERS), change(dict(arrays)))


DAMAGE = {
    "not complete": lambda folder: rewrite(folder, lambda a: dict(list(a.items())[1:])),
    "not finite": lambda folder: rewrite(folder, lambda a: a | {min(a): a[min(a)] * float("nan")}),
    "cannot be used": lambda folder: rewrite(folder, lambda a: {f"{name}x": array for name, array in a.items()}),
    "damaged": lambda folder: (folder / lora.ADAPTERS).write_bytes(b"\0" * 100),
    "no LoRA adapters": lambda folder: (folder / lora.ADAPTER_CONFIG).write_text('{"fine_tune_type": "full"}'),
    "the adapters cannot": lambda folder: (folder / lora.ADAPTER_CONFIG).write_text("[]"),
}


@pytest.mark.parametrize("says", DAMAGE)
def test_damaged_adapters_are_refused(says, adapters):
    DAMAGE[says](adapters)
    with pytest.raises(ModelError, match=says) as caught:
        lora.load(load.load("tiny").model, adapters)
    assert "\n" not in str(caught.value)
    assert str(adapters) in str(caught.value)
