"""The endpoints that RPC carries a request's options through, and their responses."""

from typing import Any, Protocol

from sglang_rpc.contract.sglang.server import TokenizerManager
from sglang_rpc.contract.targets import assumed

_ENTRYPOINTS = "sglang.srt.entrypoints"


@assumed(f"{_ENTRYPOINTS}.openai.serving_base.OpenAIServingBase", "what an endpoint sends its requests to")
@assumed(f"{_ENTRYPOINTS}.ollama.serving.OllamaServing", "what an endpoint sends its requests to")
class Serving(Protocol):
    tokenizer_manager: TokenizerManager


@assumed(f"{_ENTRYPOINTS}.anthropic.serving.AnthropicServing", "stands on the chat endpoint")
class AnthropicServing(Protocol):
    openai_serving_chat: Serving


@assumed(f"{_ENTRYPOINTS}.openai.protocol.ResponsesResponse", "has a place for the receipt")
class ResponsesResponse(Protocol):
    metadata: dict[str, Any] | None


@assumed(f"{_ENTRYPOINTS}.openai.protocol.ChatCompletionRequest", "where a chat has RPC options, and where an alias")
class ChatRequest(Protocol):
    chat_template_kwargs: dict[str, Any] | None
    custom_params: dict[str, Any] | None


@assumed(f"{_ENTRYPOINTS}.openai.protocol.ResponsesRequest", "what the chat template is given")
class ResponsesRequest(Protocol):
    chat_template_kwargs: dict[str, Any] | None
