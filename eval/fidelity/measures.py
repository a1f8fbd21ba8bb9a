"""What one predicted distribution says of another, and of the token that came.

    KL    = sum over tokens v of p(v) (log p(v) - log q(v))    p with the full KV cache, q with a compressed one; nats
    agree = 1 where both put the same token first, else 0
    loss  = -log q(t)    of the text's next token t; nats

In float64, whatever the model's dtype: differences of predictions may be small.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch


@dataclass(frozen=True)
class Measured:
    """One token of a text under a compressed KV cache."""

    kl: float
    agree: float
    loss: float


def measure(logits: torch.Tensor, full: torch.Tensor, token: int) -> Measured:
    """Compare two predictions of one token.

    Args:
        logits: [vocabulary], with the KV cache that is measured.
        full: [vocabulary], with the full one.
        token: the id of the token that the text has there.

    Raises ValueError if a prediction is no distribution.
    """
    ours, theirs = (x.double().log_softmax(-1) for x in (logits, full))
    if ours.isnan().any() or theirs.isnan().any():
        raise ValueError("the model's logits are no numbers: its dtype may be too narrow, or its weights are damaged")
    # A token that has no probability adds nothing, where 0 times the infinite logarithm would be no number.
    terms = torch.where(theirs > -torch.inf, theirs.exp() * (theirs - ours), 0.0)
    return Measured(float(terms.sum()), float(ours.argmax() == theirs.argmax()), -float(ours[token]))
