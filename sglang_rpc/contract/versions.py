"""Where the SGLang versions that RPC supports differ for it, an entry for each, and the choice between them.

The rest of RPC asks `current()` for what differs, and nowhere compares versions. `patches/README.md` says how another
version is added.
"""

from collections.abc import Mapping
from dataclasses import dataclass, field, replace

from sglang_rpc.contract.pins import public
from sglang_rpc.contract.targets import Hook


@dataclass(frozen=True)
class Version:
    """One SGLang version, where it is not like the others. All else that RPC needs is the same in all of them."""

    name: str
    #: Arguments that the refusals read and this version lacks, with the value of a server that does not use them.
    absent_arguments: Mapping[str, object] = field(default_factory=dict)
    #: Environment variables that the refusals name and this version does not read.
    absent_variables: frozenset[str] = frozenset()
    #: Targets of hooks, as declared, that this version has elsewhere -> where.
    moved_targets: Mapping[str, str] = field(default_factory=dict)

    def here(self, hook: Hook) -> Hook:
        """The hook with the target that it has in this version."""
        return replace(hook, target=self.moved_targets.get(hook.target, hook.target))


#: By name, the newest last. `patches/` has pins for each of them.
VERSIONS = {
    version.name: version
    for version in (
        Version(
            "0.5.22",
            # The kernels that these switch on came with 0.5.23.
            absent_arguments={"enable_nvidia_megakernel": False, "enable_amd_monokernel": False},
            # HTTP workers always import SGLang's own app.
            absent_variables=frozenset({"SGLANG_HTTP_SERVER_APP_PATH"}),
            moved_targets={
                # Responses are made here, those without tokens yet too, which have no receipt to show.
                "sglang.srt.entrypoints.openai.serving_responses.OpenAIServingResponses._build_response": (
                    "sglang.srt.entrypoints.openai.protocol.ResponsesResponse.from_request"
                ),
            },
        ),
        Version("0.5.23"),
    )
}
#: For a sentence: "0.5.22 or 0.5.23".
SUPPORTED = " or ".join(VERSIONS)


def of(version: str) -> Version:
    """What differs in this version of SGLang; of one that is not supported, what differs in the newest that is."""
    return VERSIONS.get(public(version)) or list(VERSIONS.values())[-1]


def current() -> Version:
    """What differs in the SGLang that is installed. Imports `sglang`, nothing of `sglang.srt`."""
    import sglang

    return of(sglang.__version__)
