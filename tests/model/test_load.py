"""Models and adapters that cannot be used right are refused, by name, before anything is computed with them."""

import json
import shutil
from datetime import date
from pathlib import Path

import mlx.core as mx
import pytest
from mlx_lm.models import cohere, granite
from mlx_lm.tokenizer_utils import load as load_tokenizer

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


def test_families_that_scale_their_logits_are_seen():
    mx.random.seed(0)
    scaled = cohere.Model(cohere.ModelArgs(model_type="cohere", logit_scale=0.0625, **SIZES))
    assert not forward.agrees_with_model(scaled)
    more = dict(attention_multiplier=0.3, embedding_multiplier=12.0, residual_multiplier=0.2, rms_norm_eps=1e-5)
    more |= dict(max_position_embeddings=64, attention_bias=False, mlp_bias=False, rope_theta=1e4, logits_scaling=8.0)
    assert not forward.agrees_with_model(granite.Model(granite.ModelArgs(model_type="granite", **SIZES, **more)))
    assert forward.agrees_with_model(load.load("tiny").model)


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
