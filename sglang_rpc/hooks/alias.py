"""`chat_template_kwargs.rpc`, another place for `custom_params.rpc`: some routers drop the one and pass on the other.

It is moved to `custom_params` before anything else reads the request, so that no chat template is given it.
"""

from collections.abc import Callable
from typing import Any, TypeVar

from sglang_rpc.contract.settings import config_of
from sglang_rpc.contract.sglang.endpoints import ChatRequest, ResponsesRequest, Serving
from sglang_rpc.contract.targets import AROUND, hook
from sglang_rpc.errors import ConfigError
from sglang_rpc.hooks.reporting import KEY, Json

PLACE = "chat_template_kwargs"

R = TypeVar("R", ChatRequest, ResponsesRequest)


@hook(
    AROUND,
    "sglang.srt.entrypoints.openai.serving_chat.OpenAIServingChat._validate_request",
    "the first to read a chat, streamed or not, before its template is rendered; its sentence becomes HTTP 400",
)
def move_alias(original: Callable[..., str | None], serving: Serving, request: ChatRequest) -> str | None:
    """AROUND OpenAIServingChat._validate_request: changes `request`, which is this one's own, if it has the alias."""
    if config_of(serving.tokenizer_manager.server_args) is not None:
        try:
            custom_params = with_alias(request.custom_params, request.chat_template_kwargs)
        except ConfigError as error:
            return str(error)
        request.custom_params = custom_params
        drop_alias(request)
    return original(serving, request)


def with_alias(custom_params: Any, template_kwargs: Any) -> Any:
    """`custom_params` with the options that `chat_template_kwargs` may have. Raises ConfigError if both differ."""
    if not isinstance(template_kwargs, dict) or KEY not in template_kwargs:
        return custom_params
    given: Json = custom_params if isinstance(custom_params, dict) else {}
    alias = template_kwargs[KEY]
    if given.get(KEY, alias) != alias:
        raise ConfigError(
            f"custom_params.{KEY} and {PLACE}.{KEY} are one and the same, and here they differ; send one of them",
            "request.alias",
        )
    return {**given, KEY: alias}


def drop_alias(request: R) -> None:
    """Take the alias from what the chat template is given; all that stands beside it stays."""
    kwargs = request.chat_template_kwargs
    if kwargs is not None and KEY in kwargs:
        request.chat_template_kwargs = {name: value for name, value in kwargs.items() if name != KEY} or None
