"""A prompt that is text is given the ids that were generated, where it begins as a text that is known here.

The process that tokenizes sees text and ids of each prompt and of each output. It remembers them
(`runtime.known_texts`) and gives their ids to later prompts (`runtime.known_ids`), which the schedulers then know. What
SGLang makes of a text stays where nothing is known, and where the ids would not say that text.
"""

from __future__ import annotations

import logging
import re
from collections.abc import Awaitable, Callable, Hashable, Sequence
from contextvars import ContextVar
from typing import Any

from sglang_rpc.contract.settings import config_of
from sglang_rpc.contract.sglang.endpoints import ChatRequest, Serving
from sglang_rpc.contract.sglang.requests import GenerateReqInput, TokenizedGenerateReqInput
from sglang_rpc.contract.sglang.server import BatchOutput, ReqState, Tokenizer, TokenizerManager
from sglang_rpc.contract.targets import AFTER, AROUND, TEXTS, hook
from sglang_rpc.hooks.reporting import KEY, Json, prompt_of
from sglang_rpc.runtime.known_ids import NO_CHARACTER, before_hidden, ids_of, with_output
from sglang_rpc.runtime.known_texts import KnownTexts, Mark, Prompt

logger = logging.getLogger(__name__)

#: Fields of `internal_states[i].rpc` in /server_info that the process which answers adds, and what they mean. Of
#: several HTTP workers each has its own.
TEXT_FIELDS = {
    "known_texts": "texts whose ids are known, in the process that answered",
    "known_text_bytes": "memory that they take",
    "reused_texts": "prompts that were given ids of a known text",
    "reused_text_tokens": "tokens of these ids",
}


class Texts:
    """What one tokenizer manager knows, and its tokenizer."""

    def __init__(self, tokenizer: Tokenizer, limit: float):
        self._tokenizer = tokenizer
        self.known = KnownTexts(limit)
        self.reused, self.reused_tokens = 0, 0
        self.specials = frozenset(tokenizer.all_special_ids)
        self._put_first = tokenizer.encode("")
        self._added = tokenizer.get_added_vocab()
        self._added_ids = frozenset(self._added.values())
        longest_first = sorted(self._added, key=len, reverse=True)
        self._written = re.compile("|".join(map(re.escape, longest_first)) or "(?!)")

    def encode(self, text: str) -> list[int]:
        """The ids of a text, without the special tokens that the tokenizer puts around it."""
        # Some tokenizers take no argument there, and put none.
        return (
            self._tokenizer.encode(text, add_special_tokens=False) if self._put_first else self._tokenizer.encode(text)
        )

    def decode(self, ids: Sequence[int]) -> str:
        """The text of ids, with special tokens written out."""
        return self._tokenizer.decode(ids, skip_special_tokens=False, spaces_between_special_tokens=False)

    def say(self, ids: Sequence[int], text: str) -> bool:
        """Whether ids are those of a text, and of special tokens that the tokenizer puts in front."""
        first, rest = self._put_first, ids
        if first and list(ids[: len(first)]) == first and not text.startswith(self.decode(first)):
            rest = ids[len(first) :]
        return self.decode(rest) == text and self.added_in(rest) == [
            self._added[found] for found in self._written.findall(text)
        ]

    def added_in(self, ids: Sequence[int]) -> list[int]:
        """Special tokens and their like, which must be where the tokenizer puts them. A model may write the name of one
        in other tokens, and a user who has it do so must not take the delimiters out of another's prompt."""
        return [each for each in ids if each in self._added_ids]


def texts_of(manager: TokenizerManager) -> Texts | None:
    """What this manager knows; None without --rpc-reuse-text, or where ids and text can't be compared."""
    if not hasattr(manager, "rpc_texts"):
        config, manager.rpc_texts = config_of(manager.server_args), None
        if config is not None and config.reuse_text and manager.tokenizer is not None:
            if getattr(manager.tokenizer, "is_fast", False):  # SGLang's own tokenizers don't say
                manager.rpc_texts = Texts(manager.tokenizer, config.reuse_text * 1e6)
            else:
                logger.warning("RPC: --rpc-reuse-text does nothing: it needs a fast tokenizer, and this model has none")
    texts: Texts | None = manager.rpc_texts
    return texts


#: The text that a chat has been rendered to, and its ids, while SGLang makes a request of it.
_rendered: ContextVar[tuple[str, list[int]] | None] = ContextVar("rpc_rendered", default=None)


@hook(
    AROUND,
    "sglang.srt.entrypoints.openai.parallel_prompt_encode.parallel_prompt_encode",
    "the text of a chat, which is gone afterwards",
    TEXTS,
)
def note_rendered(
    original: Callable[..., list[int]], tokenizer: object, text: str, *args: Any, **kwargs: Any
) -> list[int]:
    """AROUND parallel_prompt_encode, once per chat, in the task that serves it."""
    ids = original(tokenizer, text, *args, **kwargs)
    _rendered.set((text, ids))
    return ids


@hook(
    AROUND,
    "sglang.srt.entrypoints.openai.serving_chat.OpenAIServingChat._append_assistant_prefix_to_prompt_ids",
    "a chat that goes on with an answer of its own has that after the rendered text",
    TEXTS,
)
def note_prefix(
    original: Callable[..., list[int]], serving: Serving, prompt_ids: list[int], assistant_prefix: str
) -> list[int]:
    """AROUND OpenAIServingChat._append_assistant_prefix_to_prompt_ids, after the chat is rendered."""
    rendered, ids = _rendered.get(), original(serving, prompt_ids, assistant_prefix)
    if rendered is not None and rendered[1] == prompt_ids:
        # Where SGLang puts more in between, the ids will not say this text, and it is of no use to anybody.
        _rendered.set((rendered[0] + assistant_prefix, ids))
    return ids


@hook(
    AROUND,
    "sglang.srt.entrypoints.openai.serving_chat.OpenAIServingChat._convert_to_internal_request",
    "the request that is made of a chat has ids alone: their text is put beside them",
    TEXTS,
)
def keep_rendered(
    original: Callable[..., tuple[GenerateReqInput, ChatRequest]], serving: Serving, *args: Any, **kwargs: Any
) -> tuple[GenerateReqInput, ChatRequest]:
    """AROUND OpenAIServingChat._convert_to_internal_request, which renders and tokenizes; sets `rpc_text`."""
    _rendered.set(None)
    request, chat = original(serving, *args, **kwargs)
    rendered = _rendered.get()
    if rendered is not None and request.input_ids == rendered[1]:
        request.rpc_text = rendered[0]
    return request, chat


@hook(
    AFTER,
    "sglang.srt.managers.io_struct.GenerateReqInput.__getitem__",
    "samples of one chat are requests of their own",
    TEXTS,
)
def hand_on(one: GenerateReqInput, several: GenerateReqInput, _number: int) -> None:
    """AFTER GenerateReqInput.__getitem__: the text beside the ids goes along."""
    one.rpc_text = _rendered_of(several)


@hook(
    AROUND,
    "sglang.srt.managers.tokenizer_manager.TokenizerManager._tokenize_one_request",
    "where a prompt's text is known, and may still get other ids",
    TEXTS,
)
async def take_known_ids(
    original: Callable[..., Awaitable[TokenizedGenerateReqInput]], manager: TokenizerManager, obj: GenerateReqInput
) -> TokenizedGenerateReqInput:
    """AROUND TokenizerManager._tokenize_one_request, once per prompt. `obj.input_ids` are others during the call.

    Sets `obj.rpc_prompt`, which samples of n > 1 get a copy of.
    """
    texts, text, own = texts_of(manager), _text_of(obj), obj.input_ids
    if texts is None or text is None:
        return await original(manager, obj)
    # What a chat is rendered to has all special tokens in it; the tokenizer puts some around other text.
    namespace = (obj.extra_key, obj.cache_salt, obj.lora_path, obj.text is None)
    found = await _known_ids(manager, texts, namespace, obj, text)
    if found is not None:
        obj.input_ids = found[0]
    try:
        tokenized = await original(manager, obj)
    finally:
        obj.input_ids = own
    ids = tokenized.input_ids
    if len(ids) >= manager.context_len:
        return tokenized  # SGLang may have cut it short
    marks, reused = ((), 0) if found is None else (found[1], found[1][-1].ids)
    if not marks or marks[-1].ids < len(ids):
        marks = (*marks, Mark(len(text), len(ids)))
    texts.reused += reused > 0
    texts.reused_tokens += reused
    obj.rpc_prompt = Prompt(namespace, text, ids, marks, reused, found is not None and found[2])
    return tokenized


def _text_of(obj: GenerateReqInput) -> str | None:
    """The text of a prompt that may take and leave known ids."""
    if not _generates(obj) or obj.contains_mm_input() or obj.input_embeds is not None or obj.session_params:
        return None
    # Places in the prompt are counted in ids, by who asks.
    if obj.positional_embed_overrides is not None or (obj.return_logprob and obj.logprob_start_len not in (None, -1)):
        return None
    custom = obj.sampling_params.get("custom_params") if isinstance(obj.sampling_params, dict) else None
    rpc = custom.get(KEY) if isinstance(custom, dict) else None
    if isinstance(rpc, dict) and (rpc.get("enabled") is False or rpc.get("reuse") == "off"):
        return None
    text = _rendered_of(obj) if obj.text is None else obj.text
    return text if isinstance(text, str) and text else None


def _generates(obj: object) -> bool:
    """Embeddings are tokenized in the same place."""
    from sglang.srt.managers.io_struct import GenerateReqInput as Generate

    return isinstance(obj, Generate)


def _rendered_of(obj: GenerateReqInput) -> str | None:
    """What a chat's ids are of."""
    text: str | None = vars(obj).get("rpc_text")
    return text


async def _known_ids(
    manager: TokenizerManager, texts: Texts, namespace: Hashable, obj: GenerateReqInput, text: str
) -> tuple[list[int], tuple[Mark, ...], bool] | None:
    """Ids that say `text`, where tokens of the known text end in it, and whether that was compressed; None if SGLang's
    own are to stay."""
    # A custom logit processor reads the prompt's ids: it gets those that it was written for.
    near = None if obj.custom_logit_processor else texts.known.find(namespace, text)
    found = None if near is None else ids_of(text, *near, texts)
    if found is None:
        return None
    ids, marks = found
    if not texts.say(ids, text):
        # Some tokenizers don't give a text back as it was. Then SGLang's own ids must say the same.
        own = obj.input_ids or (await manager._tokenize_texts(text))[0]
        if texts.decode(ids) != texts.decode(own) or texts.added_in(ids) != texts.added_in(own):
            return None
    assert near is not None
    return list(ids), marks, near[0].compressed


@hook(
    AROUND,
    "sglang.srt.managers.tokenizer_manager.TokenizerManager._handle_batch_output",
    "text and ids of an output meet here",
    TEXTS,
)
async def learn_outputs(
    original: Callable[..., Awaitable[None]], manager: TokenizerManager, recv_obj: BatchOutput
) -> None:
    """AROUND TokenizerManager._handle_batch_output, which appends to outputs, and forgets requests that have ended."""
    texts = texts_of(manager)
    ended: list[tuple[ReqState, Json]] = []
    if texts is not None:
        for rid, reason in zip(recv_obj.rids, recv_obj.finished_reasons, strict=True):
            state = manager.rid_to_state.get(rid)
            if reason is not None and state is not None and prompt_of(state) is not None:
                ended.append((state, reason))
    await original(manager, recv_obj)
    for state, reason in ended:
        prompt = prompt_of(state)
        assert texts is not None and prompt is not None
        try:
            _learn(texts, prompt, state, reason)
        except Exception:  # what a tokenizer cannot do must not end the loop that all responses come through
            logger.exception("RPC: a text is not remembered")


def _learn(texts: Texts, prompt: Prompt, state: ReqState, reason: Json) -> None:
    sampling, text = state.obj.sampling_params, state.get_text()
    assert isinstance(sampling, dict), "one request, no batch"
    matched, ids = reason.get("matched"), state.output_ids
    if isinstance(matched, int):
        ids = ids[:-1]
    shown = ids if sampling.get("skip_special_tokens") is False else before_hidden(ids, texts.specials)
    # Only then the ids end where the text does: nothing was trimmed or hidden, and no character is left in the middle.
    exact = reason.get("type") in ("stop", "length") and not isinstance(matched, str) and len(shown) == len(ids)
    exact = exact and not sampling.get("no_stop_trim") and not text.endswith(NO_CHARACTER)
    known = with_output(prompt.text, prompt.ids, prompt.marks, text, shown, exact, texts, prompt.compressed)
    if known is not None:
        texts.known.learn(prompt.namespace, known)


@hook(
    AROUND,
    "sglang.srt.managers.tokenizer_manager.TokenizerManager.get_internal_state",
    "/server_info shows what this process knows",
    TEXTS,
)
async def add_text_info(original: Callable[..., Awaitable[list[Json]]], manager: TokenizerManager) -> list[Json]:
    """AROUND TokenizerManager.get_internal_state, once per /server_info."""
    states, texts = await original(manager), texts_of(manager)
    if texts is not None:
        values = len(texts.known), texts.known.nbytes, texts.reused, texts.reused_tokens
        for state in states:
            state[KEY].update(zip(TEXT_FIELDS, values, strict=True))
    return states
