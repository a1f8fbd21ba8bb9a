"""A tokenizer for the pages of traces."""

import pytest
from tokenizers import Tokenizer, decoders, models, pre_tokenizers
from transformers import PreTrainedTokenizerFast

from tests.unit.trace.pages import ODD


@pytest.fixture(scope="module")
def bytewise() -> PreTrainedTokenizerFast:
    """A byte-level vocabulary in which every byte is a token of its own, and so an emoji is four."""
    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    model = Tokenizer(models.BPE({letter: index for index, letter in enumerate(alphabet)}, []))
    model.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    model.decoder = decoders.ByteLevel()
    built = PreTrainedTokenizerFast(tokenizer_object=model)
    built.add_tokens(ODD)
    return built
