"""What RPC cannot work with in a draft model: a compression moves its KV too, chosen by its own queries."""

from collections.abc import Callable
from dataclasses import dataclass

from sglang_rpc.contract.refusals.row import Row, named

#: Exactly these classes: a subclass may store K/V in another layout.
POOLS = ("MHATokenToKVPool", "MLATokenToKVPool")


@dataclass(frozen=True)
class DraftFacts:
    """A draft model's attention layers, and the pool of their KV."""

    pool: str = POOLS[0]  #: its class
    layout: str = "nhd"
    windows: int = 0  #: layers with sliding windows
    shapes: int = 1  #: distinct (query heads, head size) among the layers
    latents: bool = False  #: latent attention (MLA)
    own_dispatch: int = 0  #: latent attention that decides in another way than DeepSeek's when to expand latents
    rocm: bool = False


def _row(given: Callable[[DraftFacts], object], what: str, why: str, which: str) -> Row[[DraftFacts]]:
    """`what` a draft model has; filled in from the facts."""
    return Row(
        lambda f: given(f) and f"a draft model with {what.format(f=f)}",
        why,
        "use another --speculative-draft-model-path",
        which,
    )


DRAFT_ROWS: tuple[Row[[DraftFacts]], ...] = named(
    draft_pool=_row(
        lambda f: f.pool not in POOLS or f.layout != "nhd",
        "a KV pool of the class {f.pool}, laid out as {f.layout},",
        f"a compression moves its KV, and knows how {' and '.join(POOLS)} store it, laid out as nhd",
        "drafts with a KV pool of another kind, whole models with recurrent layers among them",
    ),
    draft_windows=_row(
        lambda f: f.windows,
        "{f.windows} sliding-window layers",
        "backends count the windows of a draft's steps in ways that have not been checked after a compression",
        "drafts with sliding windows",
    ),
    draft_shapes=_row(
        lambda f: f.shapes > 1,
        "attention layers of {f.shapes} shapes",
        "a query slot has room for queries of one shape",
        "drafts whose attention layers differ in heads or head size",
    ),
    draft_latents=_row(
        lambda f: f.own_dispatch,
        "latent attention (MLA) of its own kind",
        "of DeepSeek's layers alone RPC knows in which steps they read latents as they are stored",
        "drafts with latent attention (MLA) other than DeepSeek's",
    ),
    draft_latents_on_rocm=_row(
        lambda f: f.latents and f.rocm,
        "latent attention (MLA) on ROCm",
        "there SGLang expands latents in other steps, which has not been checked",
        "drafts with latent attention (MLA) on ROCm",
    ),
)
