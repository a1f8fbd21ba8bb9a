"""A decode loop without a model or an engine: what `Compressor` meets in a server, and an oracle of what it must keep.

Every KV entry's value is its logical position, so what a row holds can be read back from the pool. Keys and queries
are random by position, so that the oracle can follow positions, not slots.
"""

from __future__ import annotations

import itertools
from collections.abc import Callable
from dataclasses import dataclass, field, replace

import torch

from sglang_rpc.config import RequestOptions, RPCConfig
from sglang_rpc.memory.host_backup import HostBackup
from sglang_rpc.memory.query_ring import QueryRing
from sglang_rpc.memory.speculative_rows import SpeculativeRows
from sglang_rpc.policy.lightthinker import Gists
from sglang_rpc.runtime.compressor import Compressor
from sglang_rpc.runtime.request_state import RequestState
from sglang_rpc.runtime.segment import ThinkMarkers, TokenMarker
from sglang_rpc.types import NEVER, Compression, KVLayer
from tests.loops.oracle import Oracle
from tests.loops.rule_oracle import RuleOracle

torch.set_num_threads(1)  # more threads on these tiny tensors only wait for each other

POOL, LENGTH, DIM, LAYERS = 1024, 640, 8, 2
WORD, START, END = 1, 900, 901  #: a token that is no marker, and the markers
MARKERS = ThinkMarkers(TokenMarker(START), TokenMarker(END))


def config(interval=16, window=4, ratio=4, scope="all", **others) -> RPCConfig:
    return RPCConfig(interval=interval, window=window, ratio=ratio, scope=scope, **others)


@dataclass
class Request:
    row: int
    prompt: list[int]
    output: list[int]  #: what the model will say
    state: RequestState
    generated: int = 0  #: logical entries after the prompt
    length: int = 0  #: physical length of the row, prompt included
    done: list[tuple[int, int, bool]] = field(default_factory=list)  #: (generated, event, late) of each compression
    early: list[tuple[int, int]] = field(default_factory=list)  #: (generated, entries kept) of each before its due date
    polls: list[int] = field(default_factory=list)  #: `generated` at each poll


class Loop:
    """Several requests on one rank. `heads_of` cuts this rank's share (KV heads) out of the whole model."""

    def __init__(
        self,
        config: RPCConfig,
        *,
        slots: int = 8,
        rows: int = 4,
        heads: int = 4,
        kv_heads: int = 2,
        heads_of: slice = slice(None),
        markers: ThinkMarkers | None = None,
        gists: Gists | None = None,
        reduce: Callable[[torch.Tensor], torch.Tensor] | None = None,
        logit_cap: float = 0.0,
        latent: bool = False,
        keys_as: torch.dtype = torch.float32,
        check: bool = True,
        oracle: type[Oracle] | type[RuleOracle] = Oracle,
        device: str | torch.device = "cpu",
        reach: int = 0,
        drafts: int = 0,
    ):
        """`latent`: values are a part of the keys, one KV head for all. `device` is where the pool, the rows and the
        ring are; what the oracle knows stays on the CPU. `reach`: if not 0, there are window layers too, before, among
        and after the others, whose tokens see so many entries before their own. `drafts`: if not 0, requests may verify
        so many rows in a step (`draft`)."""
        self.device = device
        self.config, self.check, self.keys_as = config, check, keys_as
        self.per_group, self.scaling = heads // kv_heads, DIM**-0.5
        generator = torch.Generator().manual_seed(7)
        keys = torch.randn(rows, LAYERS, LENGTH, kv_heads, DIM, generator=generator)
        queries = torch.randn(rows, LAYERS, LENGTH, kv_heads, self.per_group, DIM, generator=generator)
        if latent:
            assert kv_heads == 1
            assert keys_as == torch.float32, "positions must be read back from keys"
            keys[..., 0] = torch.arange(LENGTH)[:, None]
            queries[..., 0] = 0.0
        self.keys = keys[:, :, :, heads_of].to(keys_as).float()  # [row, layer, position, KV head, dim]
        self.queries = queries[:, :, :, heads_of].flatten(3, 4)
        self.oracle = oracle(config, self.keys, self.queries, self.scaling, logit_cap)
        own = self.keys.shape[3]
        noise = torch.randn(LAYERS, POOL, own, DIM, generator=generator)
        self.layers = [self._layer(keys, latent, logit_cap) for keys in noise]
        windows = LAYERS + 1 if reach else 0
        self.windows = [replace(self._layer(noise[0] + 1, latent, logit_cap), window=reach) for _ in range(windows)]
        both = itertools.zip_longest(self.windows, self.layers)
        self.req_to_token = torch.zeros(rows, LENGTH, dtype=torch.int32, device=device)
        self.free = torch.randperm(POOL, generator=generator).tolist()
        self.ring = QueryRing(
            layers=LAYERS,
            slots=slots,
            rows=rows,
            window=config.window,
            heads=own * self.per_group,
            head_dim=DIM,
            dtype=torch.float32,
            device=device,
            drafts=drafts,
        )
        self.compressor = Compressor(
            config,
            [layer for pair in both for layer in pair if layer is not None] if reach else self.layers,
            self.ring,
            self.req_to_token,
            markers=markers,
            gists=gists,
            reduce=reduce,
            speculative=SpeculativeRows(rows, drafts, device) if drafts else None,
        )
        self.requests: list[Request] = []

    def _layer(self, noise: torch.Tensor, latent: bool, logit_cap: float) -> KVLayer:
        """A layer of the pool, whose slots hold `noise` until they are written."""
        keys = self._stored(noise).to(self.device)
        values = keys[..., :1] if latent else torch.full((*noise.shape[:2], 1), -1.0, device=self.device)
        return KVLayer(keys, values, self.keys_as, self.scaling, logit_cap)

    def add(self, row: int = 1, prompt: int | list[int] = 5, output: list[int] | None = None, **options) -> Request:
        params = {"rpc": options} if options else None
        knows_markers = self.compressor.markers is not None
        state = RequestState(RequestOptions.from_custom_params(params, self.config, knows_markers=knows_markers))
        prompt = [WORD] * prompt if isinstance(prompt, int) else prompt
        self.compressor.begin(state, prompt)
        request = Request(row, prompt, output or [WORD] * LENGTH, state)
        for position in range(len(prompt)):
            self._write(request, position)
        self.requests.append(request)
        return request

    def run(self, steps: int) -> None:
        for _ in range(steps):
            self.poll()
            for request in self.requests:
                self._decode(request)
        self.poll()

    def draft(self, accepts: Callable[[], int]) -> None:
        """A step that verifies drafts; `accepts` says of how many rows of a request, at most."""
        self.poll()
        self._verify(accepts)

    def _verify(self, accepts: Callable[[], int]) -> None:
        table, n = self.compressor.speculative, self.ring.drafts
        assert table is not None
        for request in self.requests:
            assert request.length < table.stops.get(request.row, NEVER), "a row is never launched on its stop"
            position = len(request.prompt) + request.generated
            where = self.ring.where(torch.tensor([request.row] * n), torch.arange(position, position + n))
            for layer in range(LAYERS):  # of rejected rows they stay
                self.ring.store(layer, where, torch.full((n, *self.ring.buffer.shape[3:]), 1e3))
            index = torch.arange(n, dtype=torch.int32)[None]
            lens, _ = table.cut(
                torch.tensor([request.row]), torch.tensor([request.length]), torch.tensor([accepts()]), index
            )
            for _ in range(int(lens)):
                self._decode(request)

    def poll(self) -> None:
        """What the scheduler does before each step."""
        due: list[tuple[Request, Compression]] = []
        for r in sorted(self.requests, key=lambda r: r.state.recording.turn):
            if r.length >= r.state.clock.check_at:
                r.polls.append(r.generated)
                c = self.compressor.poll(r.state, r.row, r.prompt, r.generated, r.output)
                due += [(r, c)] if c is not None else []
        if due:
            self._compress(due)

    def record_ahead(self, request: Request) -> bool:
        """What the scheduler does when memory may run out."""
        return self.compressor.record_ahead(request.state, request.row, request.generated)

    def evict_early(self, request: Request, ratio: float) -> Compression | None:
        """What the scheduler does when memory has run out."""
        r = request
        r.state.read(r.output, r.generated)
        c = self.compressor.early(r.state, r.row, r.prompt, r.generated, r.output, ratio)
        if c is not None:
            self._compress([(r, c)])
        return c

    def retract(self, request: Request) -> None:
        """The row is freed, and refilled from the request's tokens, uncompressed."""
        self.compressor.release_slot(request.state)
        request.state.reset()
        self.free += self.slots(request).tolist()
        request.length = 0
        for position in range(len(request.prompt) + request.generated):
            self._write(request, position)

    def leave(self, request: Request, backups: HostBackup) -> None:
        """The row is freed, and kept on the host but for its newest entry."""
        state, recording = request.state, request.state.recording
        queries = None if recording.slot is None or recording.ahead else self.ring.of(recording.slot)
        row = self.slots(request)
        backup = backups.save(row[:-1], len(request.prompt), tuple(request.prompt), queries)
        assert backup is not None
        state.hooks.saved = state.save(backup)
        self.compressor.release_slot(state)
        state.reset()
        self.free += row.tolist()
        request.length = 0
        self.requests.remove(request)

    def come_back(self, request: Request, row: int, backups: HostBackup) -> None:
        """Into another row, beside nothing in the tree; then the newest token is computed again."""
        state, saved = request.state, request.state.hooks.saved
        assert saved is not None
        backup = saved.backup
        slots = [self.free.pop(0) for _ in range(backup.tokens)]
        self.keys[row], self.queries[row] = self.keys[request.row].clone(), self.queries[request.row].clone()
        request.row, request.length = row, backup.tokens
        self.req_to_token[row, : backup.tokens] = torch.tensor(slots, dtype=torch.int32)
        backups.load(backup, 0, torch.tensor(slots))
        state.restore(saved)
        if backup.queries is not None:
            slot = self.compressor.recorder.resume(state.recording, row, saved.recorded_since)
            backups.load_queries(backup, self.ring.of(slot))
        backups.drop(backup)
        state.hooks.saved = None
        self.requests.append(request)
        request.generated -= 1
        self._decode(request)
        self._consistent(request)

    def finish(self, request: Request) -> None:
        self.compressor.release_slot(request.state)
        self.free += self.slots(request).tolist()
        self.requests.remove(request)

    def slots(self, request: Request) -> torch.Tensor:
        return self.req_to_token[request.row, : request.length].long()

    def held(self, request: Request) -> list[list[list[int]]]:
        """Logical positions after the prompt that the row holds, read from the pool: [layer][KV head][entries]."""
        own = self.slots(request)[len(request.prompt) :]
        return [(layer.values[own, :, 0].T.long() - len(request.prompt)).tolist() for layer in self.layers]

    def _stored(self, keys: torch.Tensor) -> torch.Tensor:
        """As SGLang's pool stores them: FP8 as bytes."""
        keys = keys.to(self.keys_as)
        return keys.view(torch.uint8) if self.keys_as.itemsize == 1 else keys

    def _write(self, request: Request, position: int) -> None:
        slot = self.free.pop()
        self.req_to_token[request.row, request.length] = slot
        for index, layer in enumerate(self.layers):
            layer.keys[slot] = self._stored(self.keys[request.row, index, position])
            layer.values[slot] = position
        for layer in self.windows:
            layer.keys[slot] = self._stored(self.keys[request.row, 0, position])
            layer.values[slot] = position
        request.length += 1

    def _decode(self, request: Request) -> None:
        position = len(request.prompt) + request.generated
        row, at = torch.tensor([[request.row], [position]], device=self.device)
        where = self.ring.where(row, at)
        for index in range(LAYERS):
            self.ring.store(index, where, self.queries[request.row, index, position][None].to(self.device))
        self._write(request, position)
        request.generated += 1

    def _compress(self, due: list[tuple[Request, Compression]]) -> None:
        wanted = [self.oracle.expected(r.row, len(r.prompt), self.held(r), c) for r, c in due] if self.check else None
        layers = [*self.layers, *self.windows]
        before = [(layer.keys.clone(), layer.values.clone()) for layer in layers]
        table = self.req_to_token.clone()
        self.compressor.compress([c for _, c in due])
        assert torch.equal(self.req_to_token, table)
        may_change = torch.cat([table[c.row, c.begin : c.new_end].long() for _, c in due])
        fixed = torch.ones(POOL, dtype=torch.bool, device=self.device)
        fixed[may_change] = False
        for layer, (keys, values) in zip(layers, before, strict=True):
            assert torch.equal(layer.keys[fixed], keys[fixed])
            assert torch.equal(layer.values[fixed], values[fixed])
        for request, c in due:
            assert c.end == request.length
            assert c.row == request.row
            assert c.keep < c.candidates
            self.free += self.slots(request)[c.new_end :].tolist()
            request.length = c.new_end
            self.compressor.commit(request.state, c, c.evicted)
            if c.early:
                request.early.append((c.generated, request.length - len(request.prompt)))
            else:
                request.done.append((c.generated, c.event, c.late))
            self._consistent(request)
        for (request, _), layers in zip(due, wanted or [], strict=wanted is not None):
            for heads, choices in zip(self.held(request), layers, strict=True):
                for held, choice in zip(heads, choices, strict=True):
                    choice.check(held)

    def check_windows(self, request: Request) -> None:
        """The next token sees in window layers what it would have seen uncompressed."""
        own, logical = self.slots(request), len(request.prompt) + request.generated
        for layer in self.windows:
            seen = list(range(logical))[-layer.window :]
            for head in range(layer.keys.shape[1]):
                newest = own[-layer.window :]
                assert layer.values[newest, head, 0].tolist() == seen, "a window has lost entries"
                keys = layer.keys[newest, head].view(self.keys_as).float().cpu()
                assert torch.equal(keys, self.keys[request.row, 0, seen, head])

    def _consistent(self, request: Request) -> None:
        """Each key still lies beside its value, and the lengths agree."""
        own = self.slots(request)
        for index, layer in enumerate(self.layers):
            for head in range(layer.keys.shape[1]):
                positions = layer.values[own, head, 0].long().cpu()
                assert (positions.diff() > 0).all()
                keys = layer.keys[own, head].view(self.keys_as).float().cpu()
                assert torch.equal(keys, self.keys[request.row, index, positions, head])
        self.check_windows(request)
        assert request.length == len(request.prompt) + request.generated - request.state.evicted
        assert len(self.free) + sum(r.length for r in self.requests) == POOL
