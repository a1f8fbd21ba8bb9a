"""Rows as a run stores them."""


def row(problem="a", sample=0, **others):
    plain = dict(correct=True, answer="1", finish="stop", tokens=10, looping=False, receipt=None)
    return {"problem": problem, "sample": sample, **plain, **others}
