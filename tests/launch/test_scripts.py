"""The launchers as files: clean, alike, and in step with the exit codes."""

from __future__ import annotations

import re
import subprocess

import pytest
import yaml

from lsp.core import exit_codes
from tests.launch.scripts import LAUNCH, ROOT, missing

SHELL = sorted([*LAUNCH.glob("*.sh"), *LAUNCH.glob("*.sbatch"), *(ROOT / "tests").rglob("*.sh")])
LAUNCHERS = ["local.sh", "torchrun.sh", "slurm.sbatch", "kubernetes.yaml", "skypilot.yaml"]
AGAIN = {exit_codes.INTERRUPTED, exit_codes.STALLED}
NEVER = {exit_codes.BUG, exit_codes.USER_ERROR, exit_codes.DIVERGED, exit_codes.LEAK}


def documents(name: str) -> list[dict]:
    return list(yaml.safe_load_all((LAUNCH / name).read_text()))


@pytest.mark.skipif(missing("shellcheck") is not None, reason="shellcheck is not installed")
@pytest.mark.parametrize("path", SHELL, ids=lambda path: path.name)
def test_shellcheck(path):
    done = subprocess.run(["shellcheck", "-x", path], cwd=ROOT, capture_output=True, text=True)
    assert done.returncode == 0, done.stdout


@pytest.mark.parametrize("name", LAUNCHERS)
def test_says_how_to_use_it_in_few_lines(name):
    lines = (LAUNCH / name).read_text().splitlines()
    lines = lines[1:] if lines[0].startswith("#!") else lines
    header = [line for line in lines[:8] if line.startswith("#") and not line.startswith("#SBATCH")]
    assert 3 <= len([line for line in header if line.strip("# ")]) <= 6
    assert any(re.search(r"launch/" + re.escape(name), line) for line in header)
    assert (LAUNCH / name).stat().st_mode & 0o111 or name.endswith(".yaml")


@pytest.mark.parametrize("name", LAUNCHERS)
def test_shares_its_settings_and_ends_in_lsp_train(name):
    text = (LAUNCH / name).read_text()
    if name.endswith(".yaml"):
        assert "launch/torchrun.sh" in text
    else:
        assert "launch/env.sh" in text
        assert '-m lsp train "$@"' in text


def test_shell_and_python_agree_on_exit_codes():
    text = (LAUNCH / "env.sh").read_text()
    assert f"INTERRUPTED={exit_codes.INTERRUPTED} " in text
    assert f"STALLED={exit_codes.STALLED} " in text


def test_kubernetes():
    service, job = documents("kubernetes.yaml")
    spec = job["spec"]
    pod = spec["template"]["spec"]
    (container,) = pod["containers"]
    given = {entry["name"]: entry["value"] for entry in container["env"]}
    assert spec["completionMode"] == "Indexed"
    assert spec["completions"] == spec["parallelism"] == int(given["NNODES"])
    # The name of the first pod: <job>-<index>.<subdomain>, which has to be the service.
    assert given["RDZV_ENDPOINT"] == f"{job['metadata']['name']}-0.{pod['subdomain']}:29400"
    assert service["metadata"]["name"] == pod["subdomain"]
    assert service["spec"]["selector"] == {"job-name": job["metadata"]["name"]}
    assert pod["terminationGracePeriodSeconds"] > int(given["GRACE_SECONDS"])
    actions = {
        code: rule["action"]
        for rule in spec["podFailurePolicy"]["rules"]
        for code in rule.get("onExitCodes", {"values": []})["values"]
    }
    assert {code for code, action in actions.items() if action == "FailJob"} == NEVER
    assert {code for code, action in actions.items() if action != "FailJob"} >= AGAIN
    assert {volume["name"] for volume in pod["volumes"]} == {
        mount["name"] for mount in container["volumeMounts"]
    }


def test_skypilot():
    (task,) = documents("skypilot.yaml")
    assert set(task["resources"]["job_recovery"]["recover_on_exit_codes"]) == AGAIN
    done = subprocess.run(
        ["bash", "-n"], input=task["run"] + task["setup"], capture_output=True, text=True
    )
    assert done.returncode == 0, done.stderr


@pytest.mark.skipif(missing("bash") is not None, reason="bash is not installed")
def test_skypilot_passes_overrides_on(tmp_path):
    (task,) = documents("skypilot.yaml")
    (tmp_path / "launch").mkdir()
    script = tmp_path / "launch" / "torchrun.sh"
    script.write_text('#!/bin/sh\necho "$NNODES $NPROC $RDZV_ENDPOINT"\nprintf "%s\\n" "$@"\n')
    script.chmod(0o755)
    given = {
        "PATH": "/usr/bin:/bin",
        "SKYPILOT_NUM_NODES": "2",
        "SKYPILOT_NUM_GPUS_PER_NODE": "8",
        "SKYPILOT_NODE_IPS": "10.0.0.7\n10.0.0.8",
        "OVERRIDES": "run_name=long 'data.paths=[a b]'",
    }
    done = subprocess.run(
        ["bash", "-c", task["run"]], cwd=tmp_path, env=given, capture_output=True, text=True
    )
    assert done.stdout.splitlines() == [
        "2 8 10.0.0.7:29400",
        "checkpoint.root=/shared/runs",
        "data.cache_root=/shared/prepared",
        "run_name=long",
        "data.paths=[a b]",
    ]
