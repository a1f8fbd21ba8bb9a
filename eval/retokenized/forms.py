"""Ways in which a generated text comes back, and where its ids then part from those that were generated.

`ids` are the generated ones, `k` of them come back. What comes back is text, tokenised with the prompt before it:

    text       prompt | text of ids[:k]                                   a fork, or a rollout that goes on
    more       prompt | text of ids[:k] | other text                      an agent, or a program, that appends
    chat       the chat template's rendering: question, text of ids[:k] as the answer, the next question
    stop       prompt | text of ids[:k], trimmed where a stop string began
    cut        a text that nobody generated, cut after one of the tokenizer's own tokens
    cut_inside as cut, where the cut is inside of a character, whose bytes are then no text
    cut_more   as cut | other text
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

from eval.retokenized.samples import Sample
from eval.retokenized.tokenizers import Tokenizer

LENGTHS = (16, 32, 64, 128, 256, 320)
MORE = "\n\nWait, check this again."
STOPS = (". ", "\n\n")
#: A stop string is looked for after so many tokens.
BEFORE_STOP = 64
#: Of a text, every so many cuts; a prime, so that lines of equal length are cut at other places.
STEP = 7
NO_CHARACTER = "\ufffd"


@dataclass(frozen=True)
class Row:
    """One text that came back."""

    source: str
    temperature: str
    form: str
    name: str
    tokens: int  #: of the generated ids, those whose text came back
    same: int  #: of these, leading ones that came back as they were


def of_sample(sample: Sample, tokenizer: Tokenizer, source: str) -> Iterator[Row]:
    """All forms of one output, without the special token that ended it."""
    ids = sample.output_ids
    if ids and not tokenizer.text(ids[-1:]):
        ids = ids[:-1]

    def row(form: str, tokens: int, again: str) -> Row:
        known = [*sample.prompt_ids, *ids[:tokens]]
        same = max(0, same_ids(known, tokenizer.ids(again)) - len(sample.prompt_ids))
        return Row(source, f"{sample.temperature:g}", form, sample.problem, tokens, same)

    for tokens in (length for length in LENGTHS if length <= len(ids)):
        text = tokenizer.text(ids[:tokens]).rstrip(NO_CHARACTER)
        yield row("text", tokens, sample.prompt + text)
        yield row("more", tokens, sample.prompt + text + MORE)
        talk = [("user", sample.question), ("assistant", text), ("user", MORE.strip())]
        rendered = tokenizer.chat([{"role": role, "content": content} for role, content in talk], True)
        yield row("chat", tokens, rendered)
    for stop in STOPS:
        trimmed = _trimmed(tokenizer.text(ids), len(tokenizer.text(ids[:BEFORE_STOP])), stop)
        if trimmed is not None:
            yield row("stop", _tokens_of(trimmed, ids, tokenizer), sample.prompt + trimmed)


def of_text(text: str, tokenizer: Tokenizer, source: str, name: str, most: int) -> Iterator[Row]:
    """A text cut after its tokens, up to the `most`-th."""
    ids = tokenizer.ids(text)
    for tokens in range(LENGTHS[0], min(len(ids), most) + 1, STEP):
        cut = tokenizer.text(ids[:tokens])
        whole = cut.rstrip(NO_CHARACTER)
        form = "cut" if cut == whole else "cut_inside"
        yield Row(source, "", form, name, tokens, same_ids(ids[:tokens], tokenizer.ids(whole)))
        if form == "cut":
            yield Row(source, "", "cut_more", name, tokens, same_ids(ids[:tokens], tokenizer.ids(cut + MORE)))


def same_ids(ids: Sequence[int], again: Sequence[int]) -> int:
    """Leading ids that both have."""
    return next((i for i, (a, b) in enumerate(zip(ids, again, strict=False)) if a != b), min(len(ids), len(again)))


def _trimmed(text: str, after: int, stop: str) -> str | None:
    at = text.find(stop, after)
    return text[:at] if at > 0 else None


def _tokens_of(text: str, ids: Sequence[int], tokenizer: Tokenizer) -> int:
    """Of `ids`, those whose text `text` begins with."""
    fitting = (k for k in range(len(ids), 0, -1) if text.startswith(tokenizer.text(ids[:k])))
    return next(fitting, 0)
