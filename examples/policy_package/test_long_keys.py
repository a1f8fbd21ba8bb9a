from sglang_rpc.testing import check_policy


def test_it_keeps_the_rules():
    check_policy("long_keys:scores")
