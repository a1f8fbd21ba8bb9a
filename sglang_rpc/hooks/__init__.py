"""What happens in a scheduler or forward step. The only code that touches SGLang's objects.

| module | the question it answers |
|---|---|
| `install` | how are hooks put on, all or none? |
| `runtime` | what does RPC hold per scheduler, and how do hooks reach it? |
| `model` | what do the forward pass and the scheduler share per model runner? |
| `agreement` | was every rank of the server started with the same settings? |
| `ranks` | what do the ranks of a server tell each other, so that all decide alike? |
| `dp_attention` | which steps may ranks that serve other requests replay together? |
| `markers` | which tokens begin and end thinking? |
| `plain_pool` | for which models with sliding windows is SGLang's plain KV pool chosen? |
| `window_pool` | what happens where sliding-window layers have a KV pool of their own? |
| `query_slots` | how many requests can be recorded, and what memory does that take from the KV pool? |
| `requests` | which options has a request, and is it served at all? |
| `endpoints` | how do options travel from endpoints whose request models drop them? |
| `alias` | how are options taken from where routers leave them? |
| `limits` | how many tokens may a request generate, so that it fits the pool alone? |
| `admission` | which waiting requests fit beside those that run? |
| `scheduling` | which rows are compressed before the next step? |
| `rows` | which rows may be touched between two steps? |
| `pressure` | what is recorded and compressed early when memory is short? |
| `decode_steps` | where does the decode server of prefill/decode disaggregation plan its steps? |
| `decode_admission` | which requests fit there beside those that run? |
| `decode_retraction` | how does a request that it retracts come back with its KV? |
| `compaction` | what changes in a batch when rows are compressed? |
| `positions` | which positions do compressed rows have? |
| `speculative` | where does a step that drafts end, and which positions has the draft? |
| `speculative_overlap` | when must a step that drafts wait for the last one, so that none begins on a due date? |
| `draft_queries` | how are a draft model's queries recorded, and its KV found? |
| `draft_layers` | what of a draft model does the scheduler need? |
| `draft_metadata` | how long are rows, where a position is taken for that? |
| `step` | what does one forward step carry for RPC? |
| `capture` | how do queries get into the query ring? |
| `accumulate` | how is the attention of every step added up, for policies that ask? |
| `reuse` | how does a request take over what an earlier one thought? |
| `texts` | how does a prompt that is text get the ids that were generated? |
| `publish` | what does a compressed request leave for later ones? |
| `own_copy` | what happens to a shared region before its request compresses it? |
| `recording` | which queries has a request that goes on close to a due date? |
| `last_date` | when is a request compressed as it ends? |
| `turns` | which ids does a session's turn have that replaces another? |
| `tree` | what may the prefix tree hold of a compressed request? |
| `recurrence` | what happens to recurrent states beside compressed KV? |
| `state_slots` | how many recurrent states are there, and do they bind before KV does? |
| `resume` | how does a retracted request come back with its KV? |
| `backup_memory` | how much host memory do backups get? |
| `backups` | when is a retracted request's KV saved, and when dropped? |
| `result_in_flight` | when does a retraction wait for a result? |
| `unresumable` | which retracted requests end, because they never fit again? |
| `reporting` | what do responses and /server_info say? |
| `metrics` | what does /metrics say? |
"""
