"""How a server is started: command line, arguments, plugin entry point, child processes, CPU reference mode."""
