"""From an example to token ids.

A prompt is three pieces: the chat template before the user's words, the user's words, the template after them. Only
the template is encoded with control tokens; the words, mail included, go through a tokenizer that has none, so no text
in a mail can become one. The ids of harmless mail are what the template applied to the whole text would give.
"""

import json
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any

from mlx_lm.tokenizer_utils import TokenizerWrapper
from tokenizers import Tokenizer

from mlx_email.errors import ModelError
from mlx_email.labels.schema import ACTIONS, Action, Row
from mlx_email.model import bounded
from mlx_email.model.wording import BODY_CHARACTERS, Answer, action_text, answer_text, prompt_text

MARK = "user words stand here"  # replaced by the words; any text that a template leaves alone would do
PROBE = "What now?\nFrom: ann@x.example\n\nReady."
ANSWER_LINES = 3
TEMPLATE_DATE = "26 Jul 2024"  # the date that Llama 3's own template falls back to


@dataclass(frozen=True)
class Renderer:
    """A tokenizer, taken apart so that text and control tokens cannot mix."""

    words: Tokenizer  # without special and added tokens
    before: tuple[int, ...]  # the template up to the user's words
    after: tuple[int, ...]  # from there to where the answer begins
    end: tuple[int, ...]  # what ends an answer
    actions: dict[Action, tuple[int, ...]]  # `Action: X` with its newline, as in an answer
    stops: frozenset[int]  # tokens that end a completion
    history: bool = True  # whether a prompt shows what the owner did with the sender's earlier mail


def renderer(tokenizer: TokenizerWrapper, *, history: bool = True) -> Renderer:
    """Take a tokenizer apart; `history` as in the configuration's `sender_history`.

    Raises ModelError where it cannot keep text and control tokens apart, or where an action's line does not have the
    same ids alone as inside an answer (closed-set scoring would then measure something else).
    """
    words = _without_added_tokens(tokenizer)
    before, after = _template(tokenizer, [{"role": "user", "content": MARK}], add_generation_prompt=True)
    answered = [{"role": "user", "content": "?"}, {"role": "assistant", "content": MARK}]
    _, closing = _template(tokenizer, answered, add_generation_prompt=False)
    if not tokenizer.eos_token_ids:
        raise ModelError("this model's tokenizer has no token that ends an answer")
    stops = [i for i, token in enumerate(closing) if token in tokenizer.eos_token_ids]
    end = closing[: stops[0] + 1] if stops else (min(tokenizer.eos_token_ids),)

    control = set(tokenizer.added_tokens_decoder)
    for token in tokenizer.added_tokens_decoder.values():
        if control & set(words.encode(f"a {token.content} b", add_special_tokens=False).ids):
            raise ModelError(f"this tokenizer turns the plain text {token.content!r} into a control token")

    actions = {}
    for action in ACTIONS:
        ids = _ids(words, action_text(action))
        if _ids(words, answer_text(Answer(action, 0.5, "none")))[: len(ids)] != ids:
            raise ModelError(f"this tokenizer joins the line {action_text(action)!r} with the text after it")
        actions[action] = ids
    stops_at = frozenset({end[-1], *tokenizer.eos_token_ids})
    taken_apart = Renderer(words, before, after, end, actions, stops_at, history)
    if tokenizer.has_chat_template and _user_turn(taken_apart, PROBE) != _whole(tokenizer, PROBE):
        raise ModelError("this tokenizer gives other ids to a text in one piece than to its parts (a space is added)")
    return taken_apart


def prompt_ids(renderer: Renderer, row: Row, limit: int) -> list[int]:
    """A message's prompt, at most `limit` tokens: the body's middle gives way, never a header or the question.

    Raises ModelError where the rest alone is longer than the limit.
    """
    return fitted(renderer, row, limit)[0]


def fitted(renderer: Renderer, row: Row, limit: int) -> tuple[list[int], bool]:
    """`prompt_ids`, and whether the body had to give way."""

    def ids(body_characters: int) -> list[int]:
        return _user_turn(renderer, prompt_text(row, body_characters, history=renderer.history))

    whole = ids(BODY_CHARACTERS)
    if len(whole) <= limit:
        return whole, False
    found, fits, too_long = ids(0), 0, min(len(row.body), BODY_CHARACTERS)
    if len(found) > limit:
        raise ModelError(f"a prompt's headers and question alone are longer than max_prompt_tokens={limit}: raise it")
    while too_long - fits > 1:
        middle = (fits + too_long) // 2
        tried = ids(middle)
        if len(tried) <= limit:
            found, fits = tried, middle
        else:
            too_long = middle
    return found, True


def answer_ids(renderer: Renderer, answer: Answer) -> list[int]:
    """An answer and what ends it: a completion."""
    return [*_ids(renderer.words, answer_text(answer)), *renderer.end]


def text_of(renderer: Renderer, tokens: Iterable[int]) -> str:
    """A completion's text up to the token that ends it. A control token, which no text can be, is U+FFFD."""
    runs: list[list[int]] = [[]]
    for token in map(int, tokens):
        if token in renderer.stops:
            break
        if renderer.words.id_to_token(token) is None:
            runs.append([])
        else:
            runs[-1].append(token)
    return "\ufffd".join(renderer.words.decode(run, skip_special_tokens=False) for run in runs)


def is_over(renderer: Renderer, tokens: Sequence[int]) -> bool:
    """Whether an answer has come to its end: by a token that says so, or by the line after its last one."""
    return tokens[-1] in renderer.stops or text_of(renderer, tokens).count("\n") >= ANSWER_LINES


def _ids(words: Tokenizer, text: str) -> tuple[int, ...]:
    return tuple(words.encode(text, add_special_tokens=False).ids)


def _without_added_tokens(tokenizer: TokenizerWrapper) -> Tokenizer:
    description: dict[str, Any] = json.loads(tokenizer.backend_tokenizer.to_str())
    description["added_tokens"] = []
    description["post_processor"] = None
    description["truncation"] = description["padding"] = None
    return Tokenizer.from_str(json.dumps(description))


def _user_turn(renderer: Renderer, text: str) -> list[int]:
    return [*renderer.before, *_ids(renderer.words, text), *renderer.after]


def _whole(tokenizer: TokenizerWrapper, text: str) -> list[int]:
    """The ids of a user's turn with harmless words, by the chat template in one piece."""
    rendered = _apply(tokenizer, [{"role": "user", "content": text}], add_generation_prompt=True)
    return tokenizer.encode(rendered, add_special_tokens=False)


def _template(
    tokenizer: TokenizerWrapper, messages: list[dict[str, str]], *, add_generation_prompt: bool
) -> tuple[tuple[int, ...], tuple[int, ...]]:
    """The ids of the chat template before and after MARK. Without a template: a beginning token, and a new line."""
    if not tokenizer.has_chat_template:
        first = () if tokenizer.bos_token_id is None else (tokenizer.bos_token_id,)
        return first, tuple(tokenizer.encode("\n", add_special_tokens=False))
    text = _apply(tokenizer, messages, add_generation_prompt=add_generation_prompt)
    if text.count(MARK) != 1:
        raise ModelError("this model's chat template does not repeat the user's words as they are")
    before, after = text.split(MARK)
    return (
        tuple(tokenizer.encode(before, add_special_tokens=False)),
        tuple(tokenizer.encode(after, add_special_tokens=False)),
    )


def _apply(tokenizer: TokenizerWrapper, messages: list[dict[str, str]], *, add_generation_prompt: bool) -> str:
    """The chat template's text. The date that some templates (Llama 3) put into it is a fixed one: a prompt that knew
    the day of the run would differ from run to run, and would know something later than the mail."""
    try:
        for template in _templates(tokenizer.chat_template):
            bounded.refuse_power(template)
        with bounded.bounded():
            text = tokenizer.apply_chat_template(
                messages,
                tokenize=False,
                add_generation_prompt=add_generation_prompt,
                enable_thinking=False,
                date_string=TEMPLATE_DATE,
            )
    except ModelError:
        raise
    except Exception as error:  # whatever a template's own code raises
        first_line = next(iter(str(error).strip().splitlines()), "")
        raise ModelError(f"this model's chat template fails: {type(error).__name__} {first_line}") from error
    if len(text) > bounded.CHARACTERS:
        raise ModelError(f"this model's chat template makes {len(text)} characters of a short question")
    return text


def _templates(held: Any) -> list[str]:
    """A tokenizer has one, or several by name."""
    named = held.values() if isinstance(held, dict) else [held]
    return [template for template in named if isinstance(template, str)]
