"""The reward model: rewards read at the right token, heads, and folders that load back."""

import json

import mlx.core as mx
import numpy as np
import pytest

from mlx_email import files
from mlx_email.algorithms.reward import fitting as fitted
from mlx_email.config import Reward
from mlx_email.errors import ModelError
from mlx_email.model import forward, lora, reward, source
from mlx_email.model.batch import collate, example
from mlx_email.model.forward import width
from mlx_email.model.frozen import Frozen
from mlx_email.model.load import Base
from mlx_email.model.reward import HeadKind, new_head, rewards

NAMES = ["llama", "llama-sliding", "llama-4bit", "qwen2", "qwen3", "phi3", "deepseek", "mamba"]


def one_by_one(model, head, prompts, lengths, completions, mask) -> mx.array:
    """Each prompt with each completion as one sequence without padding, read at its last token."""
    body, _ = forward.split(model)
    rows = []
    for b, length in enumerate(lengths.tolist()):
        for g in range(completions.shape[1]):
            real = int(mask[b, g].sum().item())
            ids = mx.concatenate([prompts[b, :length], completions[b, g, :real]])[None]
            rows.append(head(body(ids, cache=None)[:, -1])[0])
    return mx.stack(rows).reshape(*completions.shape[:2], -1)


@pytest.fixture
def head_of():
    def make(model, **options):
        return new_head(HeadKind(**{"kind": "linear", "members": 2, "width": width(model), **options}), 3)

    return make


def columns(inputs) -> dict[str, mx.array]:
    return dict(zip(("prompts", "prompt_lengths", "completions", "completion_mask"), inputs, strict=True))


@pytest.mark.parametrize("branches", [1, 3])
@pytest.mark.parametrize("name", NAMES)
def test_equals_full_sequences(name, branches, small, head_of):
    """Ragged prompts and completions, some of them empty: those are read at their prompt's end."""
    model, inputs = small.build(name), small.batch(branches)
    head = head_of(model)
    ours = rewards(model, head, columns(inputs))
    assert ours.shape == (3, branches, 2) and ours.dtype == mx.float32
    np.testing.assert_allclose(ours, one_by_one(model, head, *inputs), atol=1e-5)


@pytest.mark.parametrize("off", [-1, 1])
def test_a_token_too_early_or_late_is_seen(off, small, head_of, monkeypatch):
    model, inputs = small.build("llama"), small.batch(3)
    head = head_of(model)
    honest = mx.take_along_axis
    monkeypatch.setattr(
        mx, "take_along_axis", lambda a, at, axis: honest(a, mx.maximum(at + off, 0) if axis == 2 else at, axis=axis)
    )
    found = rewards(model, head, columns(inputs))
    monkeypatch.undo()
    assert mx.abs(found - one_by_one(model, head, *inputs)).max().item() > 1e-2


def test_padding_of_any_amount_changes_nothing(small, head_of):
    model, (prompts, lengths, completions, mask) = small.build("qwen2"), small.batch(2)
    head = head_of(model)
    wide = columns(
        (
            mx.pad(prompts, [(0, 0), (0, 4)], constant_values=3),
            lengths,
            mx.pad(completions, [(0, 0), (0, 0), (0, 3)], constant_values=5),
            mx.pad(mask, [(0, 0), (0, 0), (0, 3)]),
        )
    )
    plain = rewards(model, head, columns((prompts, lengths, completions, mask)))
    np.testing.assert_allclose(rewards(model, head, wide), plain, atol=1e-5)


def test_heads(small):
    """The linear one is a product; the source's has a GELU between two layers; members begin differently."""
    hidden = mx.random.normal((2, 3, 8), key=mx.random.key(0))
    linear = new_head(HeadKind("linear", 8, members=3), 1)
    by_hand = mx.stack([hidden @ member.weight[0] for member in linear.members], axis=-1)
    np.testing.assert_allclose(linear(hidden), by_hand, atol=1e-6)
    mlp = new_head(HeadKind("mlp", 8, dropout=0.5), 1)
    mlp.eval()
    first, _, _, last = mlp.members[0].layers
    assert first.weight.shape == (4, 8)
    inner = hidden @ first.weight.T + first.bias
    gelu = inner * (1 + mx.erf(inner / 2**0.5)) / 2
    np.testing.assert_allclose(mlp(hidden), gelu @ last.weight.T + last.bias, atol=1e-6)
    assert len({member.weight[0, 0].item() for member in linear.members}) == 3
    again = new_head(HeadKind("linear", 8, members=3), 1)
    np.testing.assert_array_equal(linear(hidden), again(hidden))


def test_half_precision_is_read_in_float32():
    hidden = mx.ones((1, 4), mx.bfloat16)
    assert new_head(HeadKind("linear", 4), 0)(hidden).dtype == mx.float32


# While it is trained


def test_only_the_last_layers_and_the_head_are_trained_and_the_policy_comes_back(small):
    model = small.build("llama")
    before = {name: np.array(array) for name, array in lora.adapter_arrays(model).items()}
    with fitted(model, Reward(trained_layers=1, members=2), 5):
        from mlx.utils import tree_flatten

        trained = dict(tree_flatten(model.trainable_parameters()))
        assert {name.split(".")[2] for name in trained if name.startswith("model.layers")} == {"1"}
        assert {name for name in trained if not name.startswith("model.")} == {
            f"reward_head.members.{number}.weight" for number in range(2)
        }
        assert lora.adapter_arrays(model).keys() == before.keys()
        model.update({"model": {"layers": [{}, {"mlp": {"down_proj": {"lora_b": mx.ones((4, 32))}}}]}})
    assert reward.attached(model) is None
    after = lora.adapter_arrays(model)
    assert all(np.array_equal(after[name], array) for name, array in before.items())
    assert dict(tree_flatten(model.trainable_parameters())).keys() == before.keys()


# Folders


@pytest.fixture
def saved(small, tmp_path, head_of):
    """A base, a reward model on it, and its folder; the base's own adapters are others."""
    model = small.build("llama")
    head = head_of(model, kind="mlp", dropout=0.1)
    (tmp_path / "base").mkdir()
    for name in ("model.safetensors", *source.REQUIRED):
        (tmp_path / "base" / name).write_text(name)
    base = Base(model, None, {}, tmp_path / "base")
    trained = reward.RewardModel(model, Frozen.of(model), head)
    folder = tmp_path / "reward"
    folder.mkdir()
    lora.save(folder, model, lora.Lora(4, 8.0, 0.0, ("q_proj", "v_proj", "down_proj")), "base")
    mx.save_safetensors(str(folder / reward.HEAD), reward.head_arrays(head))
    reward.describe(folder, head.kind, source.fingerprint(base.folder))
    Frozen({name: 2 * array for name, array in trained.adapters.arrays.items()}).put_on(model)
    return base, trained, folder


def test_what_was_saved_loads_back_and_the_policy_keeps_its_adapters(saved):
    base, trained, folder = saved
    policy = {name: np.array(array) for name, array in lora.adapter_arrays(base.model).items()}
    loaded = reward.load(base, folder)
    prompt, completions = [1, 5, 3], [[2, 4], [3], []]
    for ours, theirs in zip(loaded.score(prompt, completions), trained.score(prompt, completions), strict=True):
        np.testing.assert_array_equal(ours, theirs)
    now = lora.adapter_arrays(base.model)
    assert all(np.array_equal(now[name], array) for name, array in policy.items())


def test_a_base_without_adapters_gets_them(saved, small):
    base, trained, folder = saved
    fresh = Base(small.bare("llama"), None, {}, base.folder)
    ours, _ = reward.load(fresh, folder).score([1, 5, 3], [[2, 4], [3]])
    np.testing.assert_allclose(ours, trained.score([1, 5, 3], [[2, 4], [3]])[0], atol=1e-6)
    ids = mx.array([[1, 5, 3]])
    np.testing.assert_allclose(fresh.model(ids), small.bare("llama")(ids), atol=1e-6)


def test_scores_are_means_and_spreads_of_the_members_in_the_given_order(saved):
    _, trained, _ = saved
    rng = np.random.default_rng(0)
    examples = [
        example(str(n), rng.integers(0, 60, 1 + 3 * (n % 3)).tolist(), [n + 1, 4], [n + 2, 5, 6]) for n in range(7)
    ]
    scored = trained.score_all(examples, batch_size=3)
    assert scored.shape == (7, 2, 2)
    for each, found in zip(examples, scored, strict=True):
        mean, spread = trained.score(each.prompt.tolist(), [ids.tolist() for ids in each.completions])
        np.testing.assert_allclose(found.mean(axis=-1), mean, atol=1e-5)
        np.testing.assert_allclose(np.abs(found[:, 0] - found[:, 1]) / 2, spread, atol=1e-5)


def damage(folder, what):
    about = json.loads((folder / reward.HEAD_CONFIG).read_bytes())
    if what in (reward.HEAD, lora.ADAPTERS):  # one byte of its numbers
        data = bytearray((folder / what).read_bytes())
        data[-2] ^= 1
        (folder / what).write_bytes(data)
        return
    if what == "gone":
        (folder / reward.HEAD).unlink()
        return
    if what == "no sums":
        files.write_json(folder / reward.HEAD_CONFIG, {key: value for key, value in about.items() if key != "sha256"})
        return
    changes = {"base": {"base": "0" * 64}, "kind": {"kind": 3, "width": "x"}, "members": {"members": 3}}
    files.write_json(folder / reward.HEAD_CONFIG, {**about, **changes[what]})


@pytest.mark.parametrize(
    ("what", "says"),
    [
        ("base", "another base model"),
        (reward.HEAD, "reward_head.safetensors is damaged"),
        (lora.ADAPTERS, "adapters.safetensors is damaged"),
        ("gone", "is damaged"),
        ("no sums", "is damaged"),
        ("kind", "does not describe"),
        ("members", "does not describe"),
    ],
)
def test_a_folder_that_cannot_be_used_is_refused(what, says, saved):
    base, _, folder = saved
    damage(folder, what)
    with pytest.raises(ModelError, match=says):
        reward.load(base, folder)


def test_a_policy_s_folder_is_no_reward_model(saved):
    base, _, folder = saved
    (folder / reward.HEAD_CONFIG).unlink()
    with pytest.raises(ModelError, match=r"no reward model: it has no reward_head\.json"):
        reward.load(base, folder)


def test_adapters_of_another_scale_are_refused(saved, small):
    """Of the same shapes they would load and mean something else."""
    base, _, folder = saved
    other = small.bare("llama")
    lora.apply(other, lora.Lora(4, 32.0, 0.0, ("q_proj", "v_proj", "down_proj")), seed=1)
    with pytest.raises(ModelError, match=r"alpha=32.*cannot go on with rank=4, alpha=8"):
        reward.load(Base(other, None, {}, base.folder), folder)


def test_more_layers_than_there_are_cannot_be_trained(small):
    trained = fitted(small.build("llama"), Reward(trained_layers=3), 0)
    with pytest.raises(ModelError, match="trained_layers=3: this model has 2 layers"), trained:
        raise AssertionError("it was accepted")


def test_numbers_become_columns():
    rows = [example("a", [1], [2], [3], numbers={"margin": [0.5], "desirable": 1.0}) for _ in range(2)]
    arrays = collate(rows, rows=3, prompt_width=1, completion_width=1).arrays
    assert arrays["margin"].tolist() == [[0.5], [0.5], [0.0]] and arrays["desirable"].tolist() == [1, 1, 0]
