"""When: per-request state, due dates, the think gate, receipts and the one orchestrator. No sglang."""
