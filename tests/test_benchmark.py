"""The benchmark's arithmetic, its table, and (slowly) the whole of it beside torch."""

import json

import pytest

from dit.benchmark import __main__ as benchmark
from dit.benchmark import report
from dit.models import sizes
from dit.types import UserError


def make_report(**ratios):
    rows = [report.row("train step, ours", [0.5, 0.4, 0.9], images=8, flops=10**9, peak=1e10)]
    return {
        "model": "DiT-S/2, 32x32x4",
        "dtype": "float32",
        "batch": 8,
        "sample_batch": 2,
        "device": "CPU, 2 cores",
        "memory": 3 * 2**29,
        "peak_flops": 1e10,
        "peak_source": "measured matmul",
        "versions": {"jax": "0"},
        "rows": rows,
        "ratios": ratios,
    }


def test_a_row_is_the_median_and_what_follows_from_it():
    (row,) = make_report()["rows"]
    assert row["median_s"] == 0.5
    assert (row["min_s"], row["max_s"]) == (0.4, 0.9)
    assert row["images_per_s"] == 16
    assert row["utilisation"] == pytest.approx(0.2)


def test_ratios_are_taken_pair_by_pair_and_only_of_the_same_work():
    ours = {"train step, ours": [1.0, 2.0, 9.0], "draw, ours": [1.0, 1.0, 1.0]}
    theirs = {"train step, torch": [2.0, 8.0, 9.0]}
    found = report.ratios(ours, theirs)
    assert list(found) == ["train step, ours / train step, torch"]
    assert found["train step, ours / train step, torch"] == {"median": 0.5, "min": 0.25, "max": 1.0}


def test_the_table_in_a_readme_is_renewed_in_place(tmp_path):
    readme = tmp_path / "README.md"
    start, end = report.START.format("cpu"), report.END
    readme.write_text(f"before\n{start}\nold\n{end}\nafter\n")
    made = make_report(x={"median": 0.9, "min": 0.8, "max": 1.0})
    report.insert(readme, "cpu", report.table(made))
    report.insert(readme, "cpu", report.table(made))
    text = readme.read_text()
    assert text == f"before\n{start}\n{report.table(made)}\n{end}\nafter\n"
    assert "| train step, ours | 500 ms | 400 ms to 900 ms | 16 | 1.0 | 20% |" in text
    assert "| x | 0.90 | 0.80 to 1.00 |" in text
    assert "on CPU, 2 cores, 1.5 GiB at most (ours); 3 interleaved" in text
    with pytest.raises(UserError, match="has no line"):
        report.insert(readme, "gpu", report.table(made))


@pytest.mark.parametrize("argument", ["--batch=0", "--config.steps=3", "--readme=README.md"])
def test_bad_arguments_are_refused_before_anything_is_compiled(argument):
    with pytest.raises(UserError):
        benchmark.main([argument])


@pytest.mark.torch
@pytest.mark.exhaustive
def test_the_whole_of_it_beside_torch(tmp_path, capsys, monkeypatch):
    pytest.importorskip("torch")
    monkeypatch.setitem(sizes.SIZES, "tiny", (1, 64, 2))  # torch compiles layer by layer
    out = tmp_path / "cpu.json"
    options = [
        "--size=tiny/8",
        "--side=16",
        "--batch=8",
        "--sample-batch=1",
        "--steps=2",
        "--runs=2",
    ]
    benchmark.main([*options, "--torch", f"--out={out}"])
    made = json.loads(out.read_text())
    assert len(made["rows"]) == 6
    assert len(made["ratios"]) == 4
    assert all(r["median_s"] > 0 for r in made["rows"])
    same = {r["flops"] for r in made["rows"] if r["name"].startswith("train step")}
    assert len(same) == 1
    assert "torch eager" in capsys.readouterr().out
