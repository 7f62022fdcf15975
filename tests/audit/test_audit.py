"""``snc audit`` in real processes, on real files: numbers, verdicts, exit status, memory."""

import json
import math
import os
import pty
import re
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from spectra import gaussian, norm, planted, singular_values
from weight_files import write_index, write_safetensors

from snc_client.audit import main

DOCS = Path(__file__).resolve().parents[2] / "docs" / "audit.md"
HOSTILE = "a [red]\N{RIGHT-TO-LEFT OVERRIDE}\x1b[31m\n\ud800<b>.weight"
NARROW = planted([2.0, 1.0, 0.5], 6, seed=1).float()
WIDE = planted([5.0, 1.0], 9, seed=2).float().t().contiguous()
NO_RICH = (
    "import sys; sys.modules['rich'] = sys.modules['rich.console'] = None\n"
    "from snc_client.audit import main; sys.exit(main(sys.argv[1:]))"
)


@pytest.fixture
def file(tmp_path) -> Path:
    """Two matrices of spectral norm 2 and 5, a copy of the first, a bias."""
    tensors = {"a.weight": NARROW, "b.weight": WIDE, "c.weight": NARROW, "b.bias": torch.ones(2)}
    return write_safetensors(tmp_path / "w.safetensors", tensors)


def snc(*arguments: object, python: tuple[str, ...] = ("-m", "snc_service.cli", "audit")):
    return subprocess.run(
        [sys.executable, "-W", "error", *python, *map(str, arguments)],
        capture_output=True,
        text=True,
        timeout=100,
        env={**os.environ, "OMP_NUM_THREADS": "1", "COLUMNS": "60"},
    )


def report(capsys, *arguments: object, status: int = 0) -> dict:
    """Return the JSON of an audit in this process."""
    assert main([*map(str, arguments), "--json"]) == status
    said = capsys.readouterr()
    assert said.err == ""
    return json.loads(said.out)


def refused(capsys, *arguments: object) -> str:
    try:
        status = main(list(map(str, arguments)))
    except SystemExit as end:  # argparse ends the process itself
        status = end.code
    said = capsys.readouterr()
    assert (status, said.out, said.err.count("\n")) == (2, "", 1)
    assert said.err.startswith("snc audit: ")
    return said.err


def test_the_command_prints_a_table_and_what_was_skipped(file) -> None:
    done = snc(file)
    assert (done.returncode, done.stderr) == (0, "")
    for text in ("a.weight = c.weight", "b.weight", "6x3", "2x9", "linear", "sigma_upper"):
        assert text in done.stdout
    assert "skipped 1: a vector: no singular values to hold (b.bias)" in done.stdout
    assert done.stdout.endswith("(safetensors): 2 matrices, sigma_upper is certified\n")


def test_without_rich_the_table_is_plain_and_aligned(file) -> None:
    rich, plain = snc(file, "--threshold", 3), snc(file, "--threshold", 3, python=("-c", NO_RICH))
    assert (plain.returncode, plain.stderr) == (rich.returncode, "") == (1, "")
    words = [re.findall(r"[\w.]+", done.stdout) for done in (rich, plain)]
    assert words[0] == words[1]
    head, *rows = plain.stdout.splitlines()[:3]
    ends = head.index("sigma") + len("sigma")
    assert [row[:ends].split()[-1] for row in rows] == ["5", "2"]


def test_the_report_encloses_a_float64_svd_for_every_dtype_and_format(capsys, tmp_path) -> None:
    dtypes = (torch.float64, torch.float32, torch.float16, torch.bfloat16)
    tensors = {str(dtype)[6:]: gaussian(30, 40).to(dtype) for dtype in dtypes}
    tensors["experts"] = gaussian(60, 20, seed=5).view(3, 20, 20)
    tensors["conv.weight"] = gaussian(8, 27, seed=6).view(8, 3, 3, 3)
    write_safetensors(tmp_path / "w.safetensors", tensors)
    write_index(tmp_path / "i.json", dict.fromkeys(tensors, "w.safetensors"))
    torch.save({"model": tensors}, tmp_path / "zip.pt")
    torch.save(tensors, tmp_path / "legacy.pt", _use_new_zipfile_serialization=False)
    matrices = {
        **{name: tensors[name] for name in [str(dtype)[6:] for dtype in dtypes]},
        **{f"experts[{e}]": tensors["experts"][e] for e in range(3)},
        "conv.weight": tensors["conv.weight"].flatten(1),
    }
    for name in ("w.safetensors", "i.json", "zip.pt", "legacy.pt"):
        layers = {x["layer"]: x for x in report(capsys, tmp_path / name)["layers"]}
        assert layers.keys() == matrices.keys()
        for key, w in matrices.items():
            s, x = singular_values(w), layers[key]
            assert x["sigma"] == pytest.approx(float(s[0]), rel=1e-5)
            assert s[0] <= x["sigma_upper"] <= s[0] * 1.0011
            assert x["frobenius"] == pytest.approx(float(s.square().sum().sqrt()), rel=1e-12)
            assert x["stable_rank"] == pytest.approx(float((s / s[0]).square().sum()), rel=1e-4)
            assert x["shape"] == list(w.shape)


def test_the_json_is_what_the_docs_say(capsys, tmp_path) -> None:
    held = {"a.weight": NARROW, "bad.weight": torch.full((2, 3), math.nan), "z": torch.zeros(2, 2)}
    torch.save({"model": {**held, "n": torch.ones(3)}, "step": 5}, tmp_path / "w.pt")
    found = report(capsys, tmp_path / "w.pt", "--threshold", "a*=4", "--sort=name")
    first, bad, zero = found.pop("layers")
    assert found == {
        "file": str(tmp_path / "w.pt"),
        "format": "torch",
        "certified": True,
        "skipped": [
            {
                "name": "n",
                "shape": [3],
                "dtype": "float32",
                "reason": "a vector: no singular values to hold",
            }
        ],
        "left_out": ["step"],
        "summary": {
            "layers": 3,
            "skipped": 1,
            "breaches": 0,
            "unproven": 0,
            "not_finite": 1,
            "unsettled": 0,
            "worst_ratio": pytest.approx(0.5),
        },
    }
    assert first["verdict"] == "within"
    assert (first["threshold"], first["ratio"]) == (4.0, pytest.approx(0.5))
    assert (bad["sigma"], bad["sigma_upper"], bad["not_finite"]) == (None, None, 6)
    assert bad["threshold"] is bad["ratio"] is bad["verdict"] is None
    assert (zero["sigma"], zero["sigma_upper"], zero["stable_rank"]) == (0, 0, 0)
    documented = set(re.findall(r"`(\w+)`", DOCS.read_text()))
    assert documented >= {*first, *found, *found["summary"], *found["skipped"][0]}


def test_every_option_is_in_the_docs() -> None:
    options = set(re.findall(r"--[a-z-]+", snc("--help").stdout)) - {"--help"}
    assert options == {"--threshold", "--policy", "--json", "--sort", "--top", "--no-certify"}
    assert all(option in DOCS.read_text() for option in options)


# -- thresholds


@pytest.mark.parametrize(
    ("arguments", "status", "verdicts"),
    [
        ([], 0, [None, None]),
        (["--threshold", "5.1"], 0, ["within", "within"]),
        (["--threshold", "4.9"], 1, ["within", "breach"]),
        (["--threshold", "4.9", "--no-certify"], 1, ["within", "breach"]),
        (["--threshold", "5.00001"], 0, ["within", "within"]),  # below 1.001 sigma: proven anew
        (["--threshold", "b*=none", "--threshold", "1.9"], 1, ["breach", None]),
        (["--threshold", "b*=6", "--threshold", "*=3"], 0, ["within", "within"]),
        (["--threshold", "*=3", "--threshold", "b*=6"], 1, ["within", "breach"]),
        # rms of a: sqrt(6 / 3), of b: sqrt(2 / 9).
        (["--threshold", "1.42x rms"], 1, ["within", "breach"]),
        (["--threshold", "1.41x rms", "--threshold", "b*=none"], 1, ["breach", "breach"]),
        (["--threshold", "10.7x rms"], 0, ["within", "within"]),
    ],
)
def test_the_exit_status_says_whether_thresholds_hold(
    capsys, file, arguments, status, verdicts
) -> None:
    layers = report(capsys, file, *arguments, "--sort", "name", status=status)["layers"]
    assert [layer["verdict"] for layer in layers] == verdicts


def test_what_is_neither_broken_nor_proven_is_not_passed(capsys, tmp_path) -> None:
    # One direction above 799 equal ones: sigma ends 2e-4 low, the proof at the threshold fails.
    w = planted(torch.cat([torch.tensor([1.003]), torch.ones(799)])).float()
    file = write_safetensors(tmp_path / "w.safetensors", {"a": w})
    true = norm(w)
    found = report(capsys, file, "--threshold", true * (1 - 1e-5), status=1)
    (layer,) = found["layers"]
    assert layer["sigma"] < layer["threshold"] < true <= layer["sigma_upper"]
    assert (layer["verdict"], layer["settled"]) == ("unproven", False)
    assert (found["summary"]["unproven"], found["summary"]["unsettled"]) == (1, 1)
    assert "has not settled" in snc(file, "--no-certify").stdout
    (held,) = report(capsys, file, "--threshold", true * (1 + 1e-6))["layers"]
    assert (held["verdict"], held["sigma_upper"]) == ("within", true * (1 + 1e-6))


@pytest.mark.parametrize("options", [[], ["--no-certify"]])
def test_a_weight_that_is_not_finite_holds_no_threshold(capsys, tmp_path, options) -> None:
    w = NARROW.clone()
    w[0, 0] = math.inf
    file = write_safetensors(tmp_path / "w.safetensors", {"a": w, "b": NARROW})
    assert report(capsys, file, *options)["summary"]["not_finite"] == 1
    found = report(capsys, file, *options, "--threshold", "1e30", status=1)
    assert [layer["verdict"] for layer in found["layers"]] == ["breach", "within"]
    assert found["layers"][0]["layer"] == "a"  # the worst comes first
    assert "1 entries are not finite" in snc(file, *options).stdout


def test_a_policy_file_counts_like_thresholds(capsys, file, tmp_path) -> None:
    policy = tmp_path / "policy.json"
    entries = [
        {"pattern": "b.*", "threshold": "3x rms", "action": "rescale"},
        {"pattern": "*", "threshold": 2.5},
    ]
    policy.write_text(json.dumps({"entries": entries}))
    found = report(capsys, file, "--policy", policy, status=1)
    assert {x["layer"]: x["verdict"] for x in found["layers"]} == {
        "a.weight": "within",
        "b.weight": "breach",
    }


def test_equal_weights_are_one_row_unless_their_thresholds_differ(capsys, file) -> None:
    a, b = report(capsys, file, "--sort=name")["layers"]
    assert (a["layer"], a["names"], b["names"]) == (
        "a.weight",
        ["a.weight", "c.weight"],
        ["b.weight"],
    )
    layers = report(capsys, file, "--threshold", "c*=1.9", status=1)["layers"]
    assert {x["layer"]: x["verdict"] for x in layers} == {
        "a.weight": None,
        "b.weight": None,
        "c.weight": "breach",
    }


@pytest.mark.parametrize(
    ("arguments", "why"),
    [
        (["--threshold", "3x init"], "does not know its first sigma"),
        (["--threshold", "auto"], "does not know its first sigma"),
        (["--threshold", "3x rsm"], "must be a number"),
        (["--threshold", "-1"], "must be a number"),
        (["--threshold", "nan"], "must be a number"),
        (["--threshold", "d*=3"], "d* matches no measured weight"),
        (["--threshold", "b.bias=3"], "b.bias matches no measured weight"),
        (["--threshold", "a[q]=3"], "write [[] for a literal ["),
        (["--threshold", "=3"], "must be a non-empty string"),
        (["--threshold", "3", "--policy", "p"], "not allowed with"),
        (["--policy", "nowhere.json"], "No such file"),
        (["--top", "0"], "must be a whole number >= 1"),
        (["--top", "1.5"], "must be a whole number >= 1"),
        (["--sort", "size"], "must be one of name, sigma"),
        (["--fast\n"], "unrecognized arguments"),
        (["other"], "unrecognized arguments"),
    ],
)
def test_wrong_usage_is_one_sentence_and_status_two(capsys, file, arguments, why) -> None:
    assert why in refused(capsys, file, *arguments)


@pytest.mark.parametrize("text", ["[]", "{", '{"entries": [5]}', '{"entries": [], "x": 1}'])
def test_a_policy_file_that_is_none_is_refused(capsys, file, tmp_path, text: str) -> None:
    (tmp_path / "p.json").write_text(text)
    assert "must" in refused(capsys, file, "--policy", tmp_path / "p.json")


def test_a_threshold_for_a_file_without_a_matrix_is_refused(capsys, tmp_path) -> None:
    file = write_safetensors(tmp_path / "w.safetensors", {"ids": torch.arange(4).view(2, 2)})
    assert report(capsys, file)["layers"] == []
    assert "no weight that can be measured" in refused(capsys, file, "--threshold", "3")


def test_a_file_that_cannot_be_read_is_one_sentence(capsys, tmp_path) -> None:
    (tmp_path / "w.safetensors").write_bytes(b"\xff" * 40)
    for path in (tmp_path / "nothing", tmp_path, "no\nsuch\x1b[31m"):
        assert "\x1b" not in refused(capsys, path)
    done = snc(tmp_path / "w.safetensors")
    assert (done.returncode, done.stdout, done.stderr.count("\n")) == (2, "", 1)


# -- what is shown


def test_sort_and_top_choose_what_is_shown_and_not_what_counts(capsys, file) -> None:
    def shown(*options: str, status: int = 0) -> list[str]:
        found = report(capsys, file, *options, status=status)
        assert found["summary"]["layers"] == 2
        return [layer["layer"][0] for layer in found["layers"]]

    assert shown() == shown("--sort=name") == shown("--sort=sigma") == ["a", "b"]
    assert shown("--sort=-name") == shown("--sort=-sigma_upper") == ["b", "a"]
    assert shown("--sort=-stable_rank") == shown("--sort=frobenius") == ["a", "b"]
    assert shown("--threshold=3", status=1) == ["b", "a"]
    some = "--threshold=[ac]*=9"  # what has no ratio comes last either way
    assert shown(some, "--sort=ratio") == shown(some) == ["a", "b"]
    assert shown("--threshold=3", "--sort=sigma", "--top=1", status=1) == ["a"]
    assert "not shown: 1 matrix" in snc(file, "--top", 1).stdout


def test_no_certify_leaves_the_bound_out(capsys, file) -> None:
    found = report(capsys, file, "--no-certify")
    assert not found["certified"]
    assert [x["sigma_upper"] for x in found["layers"]] == [None, None]
    assert [x["sigma"] for x in found["layers"]] == pytest.approx([2, 5], rel=1e-5)
    said = snc(file, "--no-certify").stdout
    assert "sigma_upper" not in said
    assert "not certified" in said


def test_a_hostile_name_neither_drives_nor_floods_the_terminal(capsys, tmp_path) -> None:
    torch.save({HOSTILE: NARROW, "x" * 100_000: WIDE, "y\n" * 9: 5}, tmp_path / "w.pt")
    for python in (("-m", "snc_service.cli", "audit"), ("-c", NO_RICH)):
        done = snc(tmp_path / "w.pt", python=python)
        assert (done.returncode, done.stderr) == (0, "")
        assert "a [red]" in done.stdout
        assert not any(c in done.stdout for c in "\x1b\N{RIGHT-TO-LEFT OVERRIDE}\ud800")
        assert len(done.stdout) < 5_000
    assert report(capsys, tmp_path / "w.pt")["layers"][0]["layer"] == HOSTILE


def test_progress_is_shown_on_a_terminal_only(file) -> None:
    ours, theirs = pty.openpty()
    done = subprocess.run(
        [sys.executable, "-m", "snc_service.cli", "audit", str(file), "--json"],
        stdout=subprocess.PIPE,
        stderr=theirs,
        timeout=100,
        env={**os.environ, "TERM": "xterm", "OMP_NUM_THREADS": "1"},
    )
    os.close(theirs)
    with os.fdopen(ours, "rb", buffering=0) as terminal:
        assert b"auditing" in terminal.read(4096)
    assert json.loads(done.stdout)["summary"]["layers"] == 2
    assert snc(file, "--json").stderr == ""


@pytest.mark.timeout(300)
@pytest.mark.skipif(sys.platform != "linux", reason="reads the peak from /proc")
def test_memory_is_that_of_a_matrix_and_not_of_the_file(tmp_path, file) -> None:
    # 24 matrices of 16 MiB. Rank one, so that few iterations settle them.
    row, column = gaussian(1, 16_384), gaussian(256, 1)
    tensors = {f"{i}.weight": (i + 1) * column @ row for i in range(24)}
    write_safetensors(tmp_path / "big.safetensors", tensors)
    torch.save(tensors, tmp_path / "big.pt")
    size = (tmp_path / "big.pt").stat().st_size
    least = peak(file, layers=2)
    for name in ("big.safetensors", "big.pt"):
        more = peak(tmp_path / name, layers=24) - least
        assert 16 << 20 < more < size / 2


# Not ru_maxrss: it starts with the size of the process that starts this one.
PEAK = """
import sys
from pathlib import Path
from snc_client.audit import main
status = main([sys.argv[1], "--json"])
lines = Path("/proc/self/status").read_text().splitlines()
print(*[line for line in lines if line.startswith("VmHWM")], file=sys.stderr)
sys.exit(status)
"""


def peak(path: Path, *, layers: int) -> int:
    """Return the largest resident size, in bytes, of a process that audits ``path``."""
    done = snc(path, python=("-c", PEAK))
    assert done.returncode == 0
    assert json.loads(done.stdout)["summary"]["layers"] == layers
    return 1024 * int(done.stderr.split()[1])
