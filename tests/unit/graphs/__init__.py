"""Recording under CUDA graphs, on a CPU: SGLang's decode graph runner over a stand-in for the graphs.

`stand_in` is the graph: it keeps the captured operators and replays them on the captured memory. `memory` is that
memory: a graph owns what was allocated in its capture, and only knows the address of everything else. `small_model` and
`runner` are what SGLang's runner captures, `served` plays a server's decode steps, and says what the ring must hold.
"""
