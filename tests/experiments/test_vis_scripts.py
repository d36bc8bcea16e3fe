"""The scripts that run a visualising tool for one class here, or for every class through a fake Slurm."""

import os
import subprocess
from collections.abc import Callable
from pathlib import Path

import pytest

from tests.helpers.project_copy import TELLER, VIS_SCRIPTS, copy_project, make_program, sh, vis_folders

CLASSES = ("bottle", "Prüfling zwei", "metal nut")
OVERRIDES = ("saver.save_dir=my results", "random_seed=3")

# A PYTHON that lists the configuration's classes, and an srun that fails for two of them.
LISTER = f"""#!/bin/sh
case " $* " in *" --list_classes "*) printf '%s\\n' {" ".join(f"'{name}'" for name in CLASSES)} ;; esac
"""
FAILING_SRUN = """#!/bin/sh
case "$*" in
    *"=bottle"*) echo "much before"; echo "error: no features"; echo "srun: error: n1: task 0: Exited with exit code 3"; exit 3 ;;
    *"=metal nut"*) exit 4 ;;
esac
"""
# Succeeds only after the srun of every class has begun.
MEETING_SRUN = f"""#!/bin/sh
echo >>"$MEETING"
for second in 1 2 3 4 5 6 7 8 9 10 11 12 13 14 15 16 17 18 19 20; do
    [ "$(wc -l <"$MEETING")" -lt {len(CLASSES)} ] || exit 0
    sleep 1
done
exit 1
"""

HERE = [(tool, here) for tool, (here, _) in VIS_SCRIPTS.items()]
SLURM = [(tool, slurm) for tool, (_, slurm) in VIS_SCRIPTS.items()]


def first(tool: str, script: str) -> tuple[str, ...]:
    """The positional arguments of a script; its class is the last of CLASSES."""
    wanted = {"train_torch.sh": ("1", "cpu", CLASSES[-1]), "train.sh": ("2", "big")}
    return wanted.get(script) or ((CLASSES[-1],) if script.endswith("_torch.sh") else ("big",))


@pytest.fixture(scope="module")
def project(tmp_path_factory) -> Path:
    root = tmp_path_factory.mktemp("scripts") / "a folder for Prüfung"
    copy_project(root)
    return root


@pytest.fixture
def slurm(tmp_path) -> Callable[..., dict[str, str]]:
    """The environment of a cluster with GPUs, with LISTER as the Python and the given program as srun."""

    def settings(srun: str = TELLER, python: str = LISTER) -> dict[str, str]:
        make_program(tmp_path / "bin" / "srun", srun)
        make_program(tmp_path / "bin" / "sinfo", "#!/bin/sh\necho gpu:8\n")
        return {
            "PATH": f"{tmp_path / 'bin'}:{os.environ['PATH']}",
            "PYTHON": make_program(tmp_path / "python", python),
            "MEETING": str(tmp_path / "meeting"),
        }

    return settings


def slurm_log(folder: Path, clsname: str) -> list[str]:
    return (folder / "log" / f"slurm_{clsname}.log").read_text().splitlines()


# --- one class on this machine ---


@pytest.mark.parametrize("number", range(6))
def test_one_class_is_worked_on_here_with_the_folders_own_configuration(project, tmp_path, number):
    folder = vis_folders(project)[number]
    script, _ = VIS_SCRIPTS[folder.name]
    teller = make_program(tmp_path / "python")
    done = sh(folder / script, *first(folder.name, script), "--flag", *OVERRIDES, cwd=tmp_path, PYTHON=teller)
    tool, *arguments = done.stdout.splitlines()[3:]
    assert tool == str(project / "tools" / f"{folder.name}.py")
    assert arguments[:2] == ["--config", str(folder / "config.yaml")]
    assert sorted(arguments[2:]) == sorted(["--flag", *OVERRIDES, f"--class_name={CLASSES[-1]}"])


def test_a_decoder_trains_in_several_processes(project, tmp_path):
    teller = make_program(tmp_path / "python")
    script = project / "experiments" / "train_vis_decoder" / "train_torch.sh"
    started = sh(script, "2", "1,3", "a class", "--overwrite", cwd=tmp_path, PYTHON=teller).stdout.splitlines()
    assert started[3:5] == [str(project / "utils" / "process" / "launch.py"), "2"]
    assert {"gpus=1,3", "--class_name=a class", "--overwrite"} <= set(started)


@pytest.mark.parametrize("tool", ["vis_recon", "vis_query"])
@pytest.mark.parametrize("shown", ["2", ""])
def test_pictures_are_drawn_on_the_gpus_that_the_environment_shows(project, tmp_path, tool, shown):
    teller = make_program(tmp_path / "python")
    done = sh(f"{tool}_torch.sh", "bottle", cwd=project / "experiments" / tool, PYTHON=teller, CUDA_VISIBLE_DEVICES=shown)
    assert f"gpus={shown}" in done.stdout.splitlines()


# --- every class through Slurm ---


@pytest.mark.parametrize(("tool", "script"), SLURM)
def test_every_class_gets_a_job_and_a_log_of_its_own(project, tmp_path, slurm, tool, script):
    folder = project / "experiments" / "demo" / tool
    done = sh(folder / script, *first(tool, script), "--flag", *OVERRIDES, cwd=tmp_path, **slurm())
    assert done.returncode == 0, done.stderr
    count = "2" if script == "train.sh" else "1"
    for clsname in CLASSES:
        assert f"{clsname}: started, log in {folder / 'log' / f'slurm_{clsname}.log'}" in done.stdout.splitlines()
        assert f"{clsname}: done" in done.stdout.splitlines()
        asked = slurm_log(folder, clsname)
        assert asked[0] == "program=srun"
        assert {"--partition=big", f"--job-name={clsname} {tool}", f"--ntasks={count}", f"--gres=gpu:{count}"} <= set(asked)
        started = asked[asked.index(str(tmp_path / "python")) + 1 :]
        assert started[:3] == [str(project / "tools" / f"{tool}.py"), "--config", str(folder / "config.yaml")]
        assert sorted(started[3:]) == sorted(["--flag", *OVERRIDES, f"--class_name={clsname}"])


def test_a_decoder_of_every_class_is_queued_as_a_job_of_its_own(project, tmp_path, slurm):
    folder = project / "experiments" / "demo" / "train_vis_decoder"
    settings = slurm()
    make_program(tmp_path / "bin" / "sbatch", TELLER.replace('"$@"', '"$@" >&2; echo 7'))
    done = sh(folder / "train_sbatch.sh", "2", "big", *OVERRIDES, cwd=tmp_path, **settings)
    assert done.returncode == 0, done.stderr
    assert done.stdout.splitlines() == [f"{clsname}: job 7 is queued, log in {folder}/log/slurm_7.log" for clsname in CLASSES]
    for clsname, asked in zip(CLASSES, done.stderr.split("program=sbatch\n")[1:], strict=True):
        tool = ("--config", f"{folder}/config.yaml", *OVERRIDES, f"--class_name={clsname}")
        assert {f"--job-name={clsname} train_vis_decoder", "--ntasks=2", "--gres=gpu:2", *tool} <= set(asked.splitlines())


def test_the_classes_are_those_of_the_configuration_with_the_replaced_values(project, tmp_path, slurm):
    folder = project / "experiments" / "vis_recon"
    lister = '#!/bin/sh\nfor item in "$@"; do [ "${item%%=*}" != data.feature_dir ] || echo "${item#*=}"; done\n'
    done = sh(folder / "vis_recon.sh", "big", "data.feature_dir=other", cwd=tmp_path, **slurm(python=lister))
    assert done.stdout.splitlines() == [f"other: started, log in {folder}/log/slurm_other.log", "other: done"]


def test_jobs_run_side_by_side(project, tmp_path, slurm):
    done = sh(project / "experiments" / "vis_query" / "vis_query.sh", "big", cwd=tmp_path, **slurm(MEETING_SRUN))
    assert done.returncode == 0, done.stderr


def test_jobs_do_not_share_the_port_that_the_environment_names(project, tmp_path, slurm):
    folder = project / "experiments" / "train_vis_decoder"
    teller = '#!/bin/sh\necho "port=${MASTER_PORT-unset}"\n'
    sh(folder / "train.sh", "2", "big", cwd=tmp_path, MASTER_PORT="31234", MASTER_ADDR="elsewhere", **slurm(teller))
    assert [slurm_log(folder, clsname) for clsname in CLASSES] == [["port=unset"]] * len(CLASSES)


def test_the_others_finish_when_a_class_fails_and_the_end_names_those_that_failed(project, tmp_path, slurm):
    done = sh(project / "experiments" / "vis_recon" / "vis_recon.sh", "big", cwd=tmp_path, **slurm(FAILING_SRUN))
    assert done.returncode == 3  # the code of the first class that failed
    assert "Prüfling zwei: done" in done.stdout.splitlines()
    assert "bottle: done" not in done.stdout
    told = done.stderr.splitlines()
    assert told[0] == "bottle: failed with exit code 3; its log ends with"
    assert told[1:] == [
        "    much before",
        "    error: no features",
        "metal nut: failed with exit code 4; its log ends with",
        "error: failed for bottle, metal nut",
    ]


def test_nothing_starts_when_the_classes_cannot_be_listed(project, tmp_path, slurm):
    refusing = '#!/bin/sh\necho "error: config.yaml: no such key" >&2\nexit 2\n'
    started = '#!/bin/sh\ntouch "$MEETING"\n'
    done = sh(project / "experiments" / "vis_recon" / "vis_recon.sh", "big", cwd=tmp_path, **slurm(started, refusing))
    assert (done.returncode, done.stdout, done.stderr) == (2, "", "error: config.yaml: no such key\n")
    assert not (tmp_path / "meeting").exists()


# --- arguments ---


@pytest.mark.parametrize(("tool", "script"), HERE + SLURM)
def test_a_missing_argument_gives_one_line_with_the_usage_and_exit_code_2(project, tmp_path, slurm, tool, script):
    wanted = first(tool, script)
    for given in range(len(wanted)):
        for more in ((), ("--overwrite",), ("random_seed=3",)):
            refused = sh(script, *wanted[:given], *more, cwd=project / "experiments" / tool, **slurm())
            assert_refused(refused, f"usage: sh {script} ")


@pytest.mark.parametrize("script", VIS_SCRIPTS["train_vis_decoder"])
def test_a_number_of_processes_that_is_none_is_refused(project, slurm, script):
    arguments = ("all", *first("train_vis_decoder", script)[1:])
    refused = sh(script, *arguments, cwd=project / "experiments" / "train_vis_decoder", **slurm())
    assert_refused(refused, "error: 'all' is not a number of processes; usage: ")


@pytest.mark.parametrize(("tool", "script"), SLURM)
def test_without_slurm_one_line_names_the_script_that_needs_none(project, tmp_path, tool, script):
    for name in ("sh", "dirname", "basename"):  # nothing else is on this PATH
        (tmp_path / name).symlink_to(f"/bin/{name}")
    refused = sh(script, *first(tool, script), cwd=project / "experiments" / tool, PATH=str(tmp_path))
    assert_refused(refused, f"needs Slurm; without it use {VIS_SCRIPTS[tool][0]}")


def assert_refused(done: subprocess.CompletedProcess[str], reason: str) -> None:
    assert (done.returncode, done.stdout) == (2, "")
    assert len(done.stderr.splitlines()) == 1
    assert reason in done.stderr
