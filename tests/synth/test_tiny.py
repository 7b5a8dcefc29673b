"""The model that ships with the package: it loads, it is small, its tokenizer loses nothing."""

import json
import unicodedata
from pathlib import Path
from random import Random

import mlx_email  # loads the fast BLAS, which must come before mlx

# isort: split
import mlx.core as mx
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from mlx.utils import tree_flatten
from mlx_lm import generate, load
from tokenizers import Tokenizer

from mlx_email.model.wording import action_text
from mlx_email.synth.lessons import lessons
from mlx_email.synth.pretrain import encode
from mlx_email.synth.tokenizer import IM_END, PAD, SPECIAL_TOKENS

TINY = Path(mlx_email.__file__).parent / "model" / "tiny"

texts = st.lists(st.one_of(st.text(), st.sampled_from(SPECIAL_TOKENS)), max_size=5).map("".join)


@pytest.fixture(scope="module")
def tiny():
    return load(str(TINY))


@pytest.fixture(scope="module")
def plain_tokenizer():
    """The tokenizer that reads control tokens in a text as text."""
    tokenizer = Tokenizer.from_file(str(TINY / "tokenizer.json"))
    tokenizer.encode_special_tokens = True
    return tokenizer


def test_the_folder_is_small_and_complete():
    sizes = {path.name: path.stat().st_size for path in TINY.iterdir()}
    assert {"config.json", "model.safetensors", "tokenizer.json", "tokenizer_config.json"} <= set(sizes)
    assert sum(sizes.values()) < 3_000_000


def test_it_is_a_4_bit_qwen2_in_float32(tiny):
    model, _ = tiny
    config = json.loads((TINY / "config.json").read_text())
    assert (config["model_type"], config["quantization"]["bits"]) == ("qwen2", 4)
    assert {value.dtype for _, value in tree_flatten(model.parameters())} == {mx.float32, mx.uint32}


def test_control_tokens_and_chat_form(tiny):
    _, tokenizer = tiny
    assert tokenizer.eos_token_ids == {tokenizer.convert_tokens_to_ids(IM_END)}
    assert tokenizer.pad_token == PAD
    text = tokenizer.apply_chat_template(
        [{"role": "user", "content": "Hello"}], add_generation_prompt=True, tokenize=False
    )
    assert text == "<|im_start|>user\nHello<|im_end|>\n<|im_start|>assistant\n"


@settings(max_examples=200, deadline=None)
@given(text=texts)
def test_any_text_comes_back_and_holds_no_control_token(plain_tokenizer, text):
    ids = plain_tokenizer.encode(text).ids
    assert plain_tokenizer.decode(ids, skip_special_tokens=False) == unicodedata.normalize("NFC", text)
    assert not {plain_tokenizer.token_to_id(token) for token in SPECIAL_TOKENS} & set(ids)


def test_transformers_and_pre_training_agree_on_tokens(tiny, plain_tokenizer):
    """transformers builds a Qwen2 tokenizer's splitting itself: a difference would undo the pre-training."""
    _, tokenizer = tiny
    trained = Tokenizer.from_file(str(TINY / "tokenizer.json"))
    source = lessons(Random(0))
    for _ in range(20):
        ids = encode(trained, next(source)).ids
        assert tokenizer.encode(tokenizer.decode(ids), add_special_tokens=False) == ids
    for text in ("0.50 and 1234", "a\r\n\r\nb  c", "it's naïve — 東京", " x"):
        assert tokenizer.encode(text, add_special_tokens=False) == plain_tokenizer.encode(text).ids


def test_action_lines_end_in_a_token_of_their_own(tiny):
    _, tokenizer = tiny
    for action in ("reply_now", "delete"):
        line = tokenizer.encode(action_text(action), add_special_tokens=False)
        answer = tokenizer.encode(action_text(action) + "Priority: 0.50", add_special_tokens=False)
        assert answer[: len(line)] == line


def test_it_answers_in_the_asked_form(tiny):
    model, tokenizer = tiny
    question = next(lessons(Random(7))).turns[0].question
    prompt = f"<|im_start|>user\n{question}<|im_end|>\n<|im_start|>assistant\n"
    answer = generate(model, tokenizer, prompt, max_tokens=40)
    assert [line.split(":")[0] for line in answer.splitlines()] == ["Action", "Priority", "Reasoning"]
