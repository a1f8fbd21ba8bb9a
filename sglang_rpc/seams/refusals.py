def refuse_server_args(server_args, config): pass
def refuse_model_runner(facts, config): pass
def gather_facts(model_runner): return None
