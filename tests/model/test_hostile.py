"""Model folders that want to run code: none does, and none takes for ever (reliability test 31).

Every payload leaves a file, the canary, when it runs; that it does is shown by running it the way a careless program
would.
"""

import json
import pickle
import runpy
import shutil
import sys
from pathlib import Path

import jinja2
import pytest
from mlx_lm.tokenizer_utils import load as load_tokenizer

from mlx_email.cli import main
from mlx_email.errors import ModelError
from mlx_email.model import bounded, load, source
from mlx_email.model.render import renderer

TURNS = (
    "{% for m in messages %}<|im_start|>{{ m.role }}\n{{ m.content }}<|im_end|>\n{% endfor %}<|im_start|>assistant\n"
)


@pytest.fixture
def canary(tmp_path) -> Path:
    return tmp_path / "canary"


@pytest.fixture
def folder(tmp_path) -> Path:
    return shutil.copytree(source.resolve("tiny"), tmp_path / "model")


def change(file: Path, **values: object) -> None:
    file.write_text(json.dumps(json.loads(file.read_text()) | values))


@pytest.fixture(autouse=True)
def impatient(monkeypatch) -> None:
    monkeypatch.setattr(bounded, "SECONDS", 0.2)


def use(folder: Path) -> None:
    """Everything that is done with a model's folder before a prompt is computed."""
    renderer(load.load(str(folder)).tokenizer)


def refusal(folder: Path) -> str:
    """Why a folder's chat template is refused."""
    with pytest.raises(ModelError) as caught:
        renderer(load_tokenizer(folder))
    assert "\n" not in str(caught.value)
    return str(caught.value)


class Evil:
    """Touches a file when it is unpickled."""

    def __init__(self, canary: Path) -> None:
        self.canary = canary

    def __reduce__(self):
        return Path.touch, (self.canary,)


def test_python_files_and_pickles_lie_there_unread(folder, canary):
    code = f"from pathlib import Path\nPath({str(canary)!r}).touch()\nclass Model: ...\nclass ModelArgs: ...\n"
    for name in ("evil.py", "modeling_qwen2.py", "tokenization_evil.py", "__init__.py", "sitecustomize.py", "setup.py"):
        (folder / name).write_text(code)
    for name in ("pytorch_model.bin", "model.pkl", "training_args.bin", "model.pt"):
        (folder / name).write_bytes(pickle.dumps(Evil(canary)))
    (folder / "model.gguf").write_bytes(b"GGUF" + b"\xff" * 64)
    use(folder)
    assert not canary.exists()
    runpy.run_path(str(folder / "evil.py"))  # the planted faults: the payloads are live
    assert canary.exists()
    canary.unlink()
    pickle.loads((folder / "pytorch_model.bin").read_bytes())
    assert canary.exists()


@pytest.mark.parametrize(
    ("file", "values"),
    [
        ("config.json", {"model_file": "evil.py"}),
        ("config.json", {"auto_map": {"AutoModelForCausalLM": "evil.Model"}}),
        ("tokenizer_config.json", {"auto_map": {"AutoTokenizer": ["evil.Tokenizer", None]}}),
        ("tokenizer_config.json", {"tokenizer_class": "EvilTokenizer"}),
        ("tokenizer_config.json", {"chat_template_type": "evil"}),
        ("tokenizer_config.json", {"tool_parser_type": "evil"}),
        ("config.json", {"model_type": "evil"}),
        ("config.json", {"quantization_config": {"quant_method": "evil", "modules": ["evil"]}}),
    ],
    ids=lambda value: "" if isinstance(value, str) else next(iter(value)),
)
def test_a_name_of_code_is_not_followed(file, values, folder, canary, monkeypatch):
    """Refused, or of no effect; also where the folder is the current one."""
    code = f"from pathlib import Path\nPath({str(canary)!r}).touch()\nclass EvilTokenizer: ...\n"
    for name in ("evil.py", "tokenization_evil.py", "modeling_evil.py"):
        (folder / name).write_text(code)
    change(folder / file, **values)
    monkeypatch.chdir(folder)
    before = set(sys.modules)
    try:
        use(folder)
    except ModelError as error:
        assert "\n" not in str(error)
    assert not canary.exists()
    assert not [name for name in set(sys.modules) - before if "evil" in name]


def touching(canary: Path) -> dict[str, str]:
    """Templates that leave the sandbox where there is none."""
    call = f".system('touch {canary}')"
    return {
        "globals of a function": "{{ cycler.__init__.__globals__.os" + call + " }}",
        "a function of jinja": "{{ lipsum.__globals__.os" + call + " }}",
        "an attribute by name": "{{ (lipsum|attr('__globals__')).os" + call + " }}",
        "by format": "{{ '{0.__globals__[os].system}'.format(lipsum) }}{{ lipsum.__globals__['os']" + call + " }}",
        "by a macro": "{% macro m() %}{% endmacro %}{{ m.__init__.__globals__.sys.modules.os" + call + " }}",
    }


@pytest.mark.parametrize("kind", touching(Path()))
def test_a_template_does_not_leave_its_sandbox(kind, folder, canary):
    payload = touching(canary)[kind]
    change(folder / "tokenizer_config.json", chat_template=TURNS + payload)
    refusal(folder)
    (folder / "chat_template.jinja").write_text(TURNS + payload)
    refusal(folder)
    assert not canary.exists()


def test_out_of_no_sandbox_it_would(canary):
    """The planted fault."""
    live = []
    for payload in touching(canary).values():
        jinja2.Environment().from_string(payload).render()
        live.append(canary.exists())
        canary.unlink(missing_ok=True)
    assert all(live)


@pytest.mark.parametrize("payload", ["{% include 'secret' %}", "{% import 'secret' as s %}", "{% extends 'secret' %}"])
def test_a_template_reads_no_file(payload, folder, monkeypatch):
    (folder / "secret").write_text("{{ 'leaked' }}")
    monkeypatch.chdir(folder)
    change(folder / "tokenizer_config.json", chat_template=TURNS + payload)
    assert "leaked" not in refusal(folder)


ENDLESS = {
    "loops": "{% for a in range(90000) %}{% for b in range(90000) %}{% for c in range(90000) %}{{ '' }}"
    "{% endfor %}{% endfor %}{% endfor %}",
    "recursion": "{% macro f(n) %}{% if n %}{{ f(n - 1) }}{{ f(n - 1) }}{% endif %}{% endmacro %}{{ f(90) }}",
    "much in a call": "{% for a in range(90000) %}{{ range(90000)|sum }}{% endfor %}",
    "calls": "{% macro f() %}{% endmacro %}{% for a in range(90000) %}{% for b in range(90000) %}{{ f() }}"
    "{% endfor %}{% endfor %}",
    "a power": "{{ 9 ** 9 ** 9 ** 9 }}",
    "a power behind a text that looks like an end": "{{ '}}' ~ 9 ** 9 ** 9 ** 9 }}",
    "a power of names": "{% set a = 9 %}{% set b = a**a %}{{ (b)** b }}",
    "a long text": "{% for a in range(3000) %}{{ 'a' * 1000 }}{% endfor %}",
}


@pytest.mark.parametrize("kind", ENDLESS)
def test_a_template_comes_to_an_end(kind, folder):
    change(folder / "tokenizer_config.json", chat_template=TURNS + ENDLESS[kind])
    before = sys.gettrace()
    assert "chat template" in refusal(folder)
    assert sys.gettrace() is before


def test_a_number_that_is_squared_again_and_again_is_stopped(monkeypatch):
    """In a few lines, each of which takes longer than the one before: the clock is looked at in all of them."""
    monkeypatch.setattr(bounded, "SECONDS", 0.01)
    squares = "{% set n = namespace(x=9) %}{% for a in range(19) %}{% set n.x = n.x * n.x %}{% endfor %}"
    template = jinja2.Environment().from_string(squares)
    with pytest.raises(ModelError, match="does not come to an end"), bounded.bounded():
        template.render()


def test_templates_as_they_are_meant_are_not_bothered():
    for harmless in (
        TURNS,
        "{{ '**bold**' }}{# 2 ** 3 #}2 ** 3",
        '{{- "use ** as \\" in markdown" }}',
        "{{ f(**options) }}{{ f(a, ** options) }}",
        "{% raw %}{{ 2 ** 3 }}{% endraw %}",
        "{{ 3 * 4 }} {{ a * b }}",
    ):
        bounded.refuse_power(harmless)
    use(source.resolve("tiny"))


@pytest.mark.parametrize("broken", ["{{ a ? b }}", "{{ (a] }}", "{% raw %}{{ 1"])
def test_what_is_no_template_is_one_line(broken, folder):
    with pytest.raises(ModelError, match="TemplateSyntaxError"):
        bounded.refuse_power(broken)
    change(folder / "tokenizer_config.json", chat_template=TURNS + broken)
    assert "TemplateSyntaxError" in refusal(folder)


def test_nothing_of_it_is_seen_by_who_uses_the_model(folder, canary, capsys, tmp_path):
    """From the command line: one line, exit 2."""
    change(folder / "tokenizer_config.json", chat_template=TURNS + ENDLESS["loops"])
    (tmp_path / "mail").mkdir()
    assert main(["train", str(tmp_path / "mail"), "--model", str(folder), "--out", str(tmp_path / "run")]) == 2
    assert capsys.readouterr().err.count("\n") == 1
    assert not (tmp_path / "run").exists()
