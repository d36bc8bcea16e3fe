"""A real Slurm in one folder: its daemons are children of the test, its two nodes are both this machine.

Needs root, the packages slurmctld, slurmd, slurm-client and munge, and a machine without GPU. The nodes pretend to have GPUs,
which changes what Slurm does, not what CUDA finds.
"""

import contextlib
import getpass
import os
import secrets
import shutil
import socket
import subprocess
import tempfile
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

PROGRAMS = ("munged", "slurmctld", "slurmd", "srun", "sinfo", "scontrol", "scancel", "squeue", "unshare")
PARTITION = "test"
SECONDS_TO_START = 30

SETTINGS = """\
ClusterName=test
SlurmctldHost=localhost
SlurmUser={user}
SlurmdUser={user}
AuthType=auth/munge
CredType=cred/munge
AuthInfo=socket={folder}/munge/munge.socket
MailProg=/bin/true
MpiDefault=none
ProctrackType=proctrack/linuxproc
TaskPlugin=task/none
JobAcctGatherType=jobacct_gather/none
AccountingStorageType=accounting_storage/none
JobCompType=jobcomp/none
SelectType=select/cons_tres
SelectTypeParameters=CR_Core
SchedulerType=sched/builtin
EnforcePartLimits=ALL
ReturnToService=2
SlurmdParameters=config_overrides
GresTypes=gpu
InactiveLimit=10
FirstJobId={port}
KillWait=20
SlurmctldPort={port}
SlurmctldPidFile={folder}/slurmctld.pid
SlurmdPidFile={folder}/slurmd.%n.pid
SlurmctldLogFile={folder}/slurmctld.log
SlurmdLogFile={folder}/slurmd.%n.log
StateSaveLocation={folder}/state
SlurmdSpoolDir={folder}/spool.%n
{nodes}
PartitionName={partition} Nodes=ALL Default=YES MaxTime=INFINITE State=UP
"""
NODE = "NodeName={name} NodeHostname=localhost NodeAddr=127.0.0.1 Port={port} CPUs=64 RealMemory=1000 Gres=gpu:8 State=UNKNOWN"


class SlurmUnavailable(Exception):
    """This machine cannot run the cluster; the message says why."""


@dataclass(frozen=True)
class Cluster:
    """A running cluster: its partition, its nodes, and the environment variables that its clients need."""

    partition: str
    nodes: tuple[str, ...]
    environment: dict[str, str]


@contextlib.contextmanager
def slurm_cluster() -> Iterator[Cluster]:
    """Start the cluster, and stop it at the end. Raises SlurmUnavailable if this machine cannot run it."""
    if absent := [name for name in PROGRAMS if shutil.which(name) is None]:
        raise SlurmUnavailable(f"not installed: {', '.join(absent)}")
    if os.geteuid() != 0:
        raise SlurmUnavailable("only root can start its daemons")
    if list(Path("/dev").glob("nvidia[0-9]*")):
        raise SlurmUnavailable("its two nodes are both this machine: their tasks would share its first GPU")
    with tempfile.TemporaryDirectory(prefix="slurm") as name, contextlib.ExitStack() as daemons:
        folder = Path(name)
        cluster = write_settings(folder)
        start_munge(folder, daemons)
        start_daemon(["slurmctld", "-D", "-c", "-f", folder / "slurm.conf"], daemons)
        for node in cluster.nodes:
            start_daemon([*private_hosts(folder), "slurmd", "-D", "-N", node, "-f", folder / "slurm.conf"], daemons)
        wait_until_idle(cluster, folder)
        try:
            yield cluster
        finally:
            end_jobs(cluster)


def write_settings(folder: Path) -> Cluster:
    """Write slurm.conf and the files that it names into `folder`, with free ports."""
    nodes = ("n1", "n2")
    port, *node_ports = free_ports(1 + len(nodes))
    lines = "\n".join(NODE.format(name=node, port=number) for node, number in zip(nodes, node_ports, strict=True))
    settings = SETTINGS.format(user=getpass.getuser(), folder=folder, port=port, nodes=lines, partition=PARTITION)
    (folder / "slurm.conf").write_text(settings)
    (folder / "gres.conf").write_text(f"Name=gpu File={folder}/dev/nvidia[0-7]\n")
    for name in ("dev", "munge", "state"):
        (folder / name).mkdir(mode=0o755)
    for i in range(8):
        (folder / "dev" / f"nvidia{i}").symlink_to(os.devnull)
    # tasks look up the name of their node, which no name server knows
    (folder / "hosts").write_text(f"{Path('/etc/hosts').read_text()}\n127.0.0.1 {' '.join(nodes)}\n")
    return Cluster(PARTITION, nodes, {"SLURM_CONF": str(folder / "slurm.conf")})


def free_ports(count: int) -> list[int]:
    with contextlib.ExitStack() as stack:
        sockets = [stack.enter_context(socket.socket()) for _ in range(count)]
        for each in sockets:
            each.bind(("127.0.0.1", 0))
        return [each.getsockname()[1] for each in sockets]


def private_hosts(folder: Path) -> list[str]:
    """A command prefix: the command sees `folder`/hosts as /etc/hosts, the machine's own stays unchanged."""
    return ["unshare", "--mount", "sh", "-c", 'mount --bind "$0" /etc/hosts && exec "$@"', str(folder / "hosts")]


def start_munge(folder: Path, daemons: contextlib.ExitStack) -> None:
    """Start the daemon that authenticates Slurm's programs to each other, with its own key."""
    munge = folder / "munge"
    folder.chmod(0o755)
    key = munge / "munge.key"
    key.write_bytes(secrets.token_bytes(1024))
    key.chmod(0o400)
    files = {"socket": "munge.socket", "key-file": key.name, "log-file": "log", "pid-file": "pid", "seed-file": "seed"}
    start_daemon(["munged", "--foreground", *(f"--{option}={munge / name}" for option, name in files.items())], daemons)
    wait_for(lambda: (munge / "munge.socket").exists(), munge / "log")


def start_daemon(command: list, daemons: contextlib.ExitStack) -> None:
    process = subprocess.Popen(list(map(str, command)), stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    daemons.callback(stop_daemon, process)


def stop_daemon(process: subprocess.Popen) -> None:
    process.terminate()
    try:
        process.wait(timeout=10)
    except subprocess.TimeoutExpired:
        process.kill()
        process.wait()


def wait_until_idle(cluster: Cluster, folder: Path) -> None:
    def idle() -> bool:
        states = ask(cluster, "sinfo", "--noheader", "--Node", "--format=%T").split()
        return states == ["idle"] * len(cluster.nodes)

    wait_for(idle, folder / f"slurmd.{cluster.nodes[0]}.log")


def wait_for(condition: Callable[[], bool], log: Path) -> None:
    deadline = time.monotonic() + SECONDS_TO_START
    while not condition():
        if time.monotonic() > deadline:
            last = log.read_text().strip().splitlines()[-1:] if log.exists() else []
            raise SlurmUnavailable(f"it did not start within {SECONDS_TO_START} s; the end of {log.name}: {' '.join(last)}")
        time.sleep(0.1)


def end_jobs(cluster: Cluster) -> None:
    """Cancel the remaining jobs, and wait until they are gone."""
    ask(cluster, "scancel", f"--user={getpass.getuser()}")
    deadline = time.monotonic() + 10
    while ask(cluster, "squeue", "--noheader") and time.monotonic() < deadline:
        time.sleep(0.1)


def ask(cluster: Cluster, *command: str) -> str:
    """What one of Slurm's programs prints; empty if it fails."""
    environment = {**os.environ, **cluster.environment}
    return subprocess.run(command, env=environment, capture_output=True, text=True, timeout=20).stdout
