"""The table "paper | ours": filled from result directories, and honest where there are none."""

import csv
import json

from eval.compare import paper


def comparison(path, model, task, arms, measure="pass@1"):
    path.mkdir()
    (path / "conditions.json").write_text(json.dumps({"all": {"measure": measure}}))
    (path / "comparison.json").write_text(json.dumps({"model_path": f"models/{model}", "task": task}))
    with (path / "summary.csv").open("w", newline="") as file:
        writer = csv.DictWriter(file, ["policy", "interval", "window", "ratio", "accuracy", "error"])
        writer.writeheader()
        writer.writerows(arms)
    return path


def arm(policy, interval, accuracy, window=32, ratio=4):
    return dict(policy=policy, interval=interval, window=window, ratio=ratio, accuracy=accuracy, error=0.031)


def by_setting(result, model="DeepSeek-R1-Distill-Qwen-7B"):
    return {row.setting: (row.paper, row.ours) for row in result if row.model == model}


def test_nothing_was_run(tmp_path, capsys):
    assert paper.main(["--out", str(tmp_path / "out")]) == 0
    result = list(csv.DictReader((tmp_path / "out" / "paper.csv").open()))
    assert len(result) == 5 * 6 + 3 + 6
    assert {row["ours"] for row in result} == {paper.NOT_RUN}
    text = (tmp_path / "out" / "paper.md").read_text()
    assert "| DeepSeek-R1-Distill-Qwen-7B | aime24, rpc, P=4096 | 52.9 | not run here |" in text
    assert "| QwQ-32B | 16384 tokens out | 1.60x (118 -> 188) | not run here |" in text


def test_what_was_run_stands_beside_the_papers_number(tmp_path):
    seven = comparison(
        tmp_path / "seven",
        "DeepSeek-R1-Distill-Qwen-7B",
        "aime24",
        [
            *(arm("full", 4096, 0.55), arm("rpc", 4096, 0.53), arm("rpc", 1024, 0.5), arm("h2o", 1024, 0.4)),
            *(arm("tova", 1024, 0.9, ratio=8), arm("rpc", 2048, 0.99), arm("h2o", 64, 0.7), arm("h2o", 512, 0.8)),
        ],
    )
    other = comparison(tmp_path / "other", "something-else", "aime24", [arm("full", 64, 0.1)])
    result = by_setting(paper.rows([seven, other]))
    assert result["aime24, full"] == ("55.5", "55.0 +- 3.1")
    assert result["aime24, rpc, P=4096"] == ("52.9", "53.0 +- 3.1")
    assert result["aime24, rpc, P=1024"] == ("50.4", "50.0 +- 3.1")
    assert result["aime24, h2o"] == ("42.5", "40.0 +- 3.1")
    assert result["aime24, tova"][1] == result["ifeval, full"][1] == paper.NOT_RUN  # c = 8 is not the paper's
    assert by_setting(paper.rows([seven]), "QwQ-32B")["aime24, full"][1] == paper.NOT_RUN


def test_speeds_are_of_the_tight_pool_in_pairs(tmp_path):
    path = tmp_path / "gpu"
    path.mkdir()
    with (path / "results.csv").open("w", newline="") as file:
        writer = csv.writer(file)
        method = [f"rpc_{name}" for name in paper.METHOD]
        writer.writerow(["arm", "model", "output_tokens", "pool_fraction", "tok_s", *method])
        stock = ["stock", "shape:qwen-7b", 8192, 0.25]
        writer.writerows([[*stock, 100, "", "", ""], [*stock, 200, "", "", ""]])
        for fraction, speed, *asked in ((0.252, 300, 1024, 32, 4), (1.25, 9999, 1024, 32, 4), (0.25, 9999, 64, 32, 8)):
            writer.writerow(["rpc", "shape:qwen-7b", 8192, fraction, speed, *asked])
        writer.writerow(["stock", "shape:qwq-32b", 8192, 0.25, 100, "", "", ""])
    result = paper.rows([path])
    assert by_setting(result)["8192 tokens out"] == ("1.09x (653 -> 709)", "2.00x (150 -> 300)")
    assert by_setting(result)["16384 tokens out"][1] == paper.NOT_RUN
    assert by_setting(result, "QwQ-32B")["8192 tokens out"][1] == paper.NOT_RUN


def test_a_directory_that_is_not_there(tmp_path, capsys):
    assert paper.main(["--results", str(tmp_path / "none"), "--out", str(tmp_path)]) == 1
    assert "is none" in capsys.readouterr().err


def test_what_is_not_the_papers_setting_is_not_run(tmp_path):
    full = [arm("full", 4096, 0.9)]
    preview = comparison(tmp_path / "a", "QwQ-32B-Preview", "aime24", full)
    samples = comparison(tmp_path / "b", "QwQ-32B", "livecodebench", full, measure="public-sample rate")
    assert {ours for _, ours in by_setting(paper.rows([preview, samples]), "QwQ-32B").values()} == {paper.NOT_RUN}


def test_of_several_directories_the_largest_interval_counts(tmp_path):
    large = comparison(tmp_path / "a", "QwQ-32B", "aime24", [arm("tova", 4096, 0.5)])
    small = comparison(tmp_path / "b", "QwQ-32B", "aime24", [arm("tova", 1024, 0.7)])
    for order in ([large, small], [small, large]):
        assert by_setting(paper.rows(order), "QwQ-32B")["aime24, tova"][1] == "50.0 +- 3.1"
