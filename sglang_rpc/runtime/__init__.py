"""When: per-request state, due dates, reasoning segments, admission arithmetic, memory pressure. No sglang."""
