"""A real Slurm on this machine: controller, accounting and virtual nodes on loopback, without systemd.

examples:
  python -m tests.helpers.slurm_cluster up /tmp/slurm      # installs what is missing (apt, as root), starts it, prints the nodes
  SLURM_CONF=/tmp/slurm/slurm.conf sinfo
  python -m tests.helpers.slurm_cluster down /tmp/slurm
"""

from __future__ import annotations

import argparse
import contextlib
import os
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Sequence
from pathlib import Path

import psutil

from tests.helpers import apt

PACKAGES = ("slurm-wlm", "slurmdbd", "munge", "mariadb-server")
PROGRAMS = ("slurmctld", "slurmd", "slurmdbd", "munged", "mariadbd")
ACCOUNT, PARTITION, URGENT = "research", "batch", "urgent"
START_SECONDS = 60.0

SLURM_CONF = """\
ClusterName=test
SlurmctldHost={host}(127.0.0.1)
SlurmctldPort={ctld_port}
SlurmUser=root
SlurmdUser=root
AuthType=auth/munge
# A requeued job waits until the credential of its last start has expired: two minutes by default.
AuthInfo=socket={folder}/run/munge.sock,cred_expire=5
CredType=cred/munge
StateSaveLocation={folder}/state
SlurmdSpoolDir={folder}/spool/%n
SlurmctldPidFile={folder}/run/slurmctld.pid
SlurmdPidFile={folder}/run/slurmd.%n.pid
SlurmctldLogFile={folder}/log/slurmctld.log
SlurmdLogFile={folder}/log/slurmd.%n.log
ProctrackType=proctrack/linuxproc
TaskPlugin=task/none
JobAcctGatherType=jobacct_gather/linux
JobAcctGatherFrequency=task=1
SelectType=select/cons_tres
SelectTypeParameters=CR_CPU
MpiDefault=none
SwitchType=switch/none
# A node that comes back is used again, whyever it was down.
ReturnToService=2
# More CPUs than the machine has.
SlurmdParameters=config_overrides
MailProg=/bin/true
SlurmctldTimeout=30
# Seconds without an answer after which a node is down and its jobs are requeued.
SlurmdTimeout=10
KillWait=3
SchedulerParameters=sched_interval=1,bf_interval=1,batch_sched_delay=0
JobRequeue=1
AccountingStorageType=accounting_storage/slurmdbd
AccountingStorageHost={host}
AccountingStoragePort={dbd_port}
AccountingStorageEnforce=associations
AccountingStoragePass={folder}/run/munge.sock
JobCompType=jobcomp/none
{nodes}
PreemptType=preempt/partition_prio
PreemptMode=REQUEUE
PartitionName={partition} Nodes=ALL Default=YES MaxTime=INFINITE State=UP PriorityTier=1
# Its jobs take nodes from those of the other partition.
PartitionName={urgent} Nodes=ALL MaxTime=INFINITE State=UP PriorityTier=10
"""
SLURMDBD_CONF = """\
AuthType=auth/munge
AuthInfo={folder}/run/munge.sock
DbdHost={host}
DbdAddr=127.0.0.1
DbdPort={dbd_port}
SlurmUser=root
LogFile={folder}/log/slurmdbd.log
PidFile={folder}/run/slurmdbd.pid
StorageType=accounting_storage/mysql
StorageHost=127.0.0.1
StoragePort={sql_port}
StorageUser=slurm
StoragePass=slurm
StorageLoc=slurm_acct_db
"""


def install() -> None:
    """Installs Slurm, munge and MariaDB where they are missing. Raises RuntimeError where that can't be done."""
    apt.install(PACKAGES, PROGRAMS)


class Cluster:
    """Slurm in `folder`, with virtual nodes node1, node2, ..."""

    def __init__(self, folder: Path, nodes: int = 2, cpus: int = 4) -> None:
        self.folder, self.nodes, self.cpus = folder, [f"node{n}" for n in range(1, nodes + 1)], cpus
        self.conf = folder / "slurm.conf"
        self.environment = {**os.environ, "SLURM_CONF": str(self.conf)}

    def start(self) -> None:
        """Starts everything and waits until the nodes are idle."""
        for name in ("run", "log", "state", "mysql", *(f"spool/{node}" for node in self.nodes)):
            (self.folder / name).mkdir(parents=True, exist_ok=True)
        # Munge asks that nobody else can write to the folders above its socket.
        self.folder.chmod(0o755)
        ports = _free_ports(3 + len(self.nodes))
        self._configure(ports)
        self._start_munge()
        self._start_accounting(ports[2])
        self.start_controller()
        for node in self.nodes:
            self.start_node(node)
        self.wait_for(lambda: self.states() == dict.fromkeys(self.nodes, "idle"), "idle nodes")

    def stop(self) -> None:
        """Ends every daemon, and the jobs that still run."""
        for node in self.nodes:
            self._end(f"slurmd.{node}")
        for name in ("slurmctld", "slurmdbd", "mysqld", "munged"):
            self._end(name)

    def start_controller(self) -> None:
        """Starts slurmctld."""
        self.run(apt.program("slurmctld"))

    def kill_controller(self) -> None:
        """Ends slurmctld at once."""
        self._end("slurmctld", signal.SIGKILL)

    def start_node(self, node: str, *wrapper: str) -> None:
        """Starts a node's slurmd; `wrapper`: a command that runs it, such as unshare."""
        self.run(*wrapper, apt.program("slurmd"), "-N", node)

    def kill_daemon(self, node: str) -> None:
        """Ends a node's slurmd at once; what it started runs on."""
        self._end(f"slurmd.{node}", signal.SIGKILL)

    def stop_node(self, node: str) -> None:
        """Ends a node's slurmd."""
        self._end(f"slurmd.{node}")

    def recover(self) -> None:
        """Starts again what isn't running, and waits until the nodes are idle."""
        if not self._runs("slurmctld"):
            self.start_controller()
        for node in self.nodes:
            if not self._runs(f"slurmd.{node}"):
                self.start_node(node)
        down = [node for node, state in self._states_once_there().items() if state.startswith(("down", "drain"))]
        for node in down:
            self.run("scontrol", "update", f"nodename={node}", "state=resume")
        self.wait_for(lambda: self.states() == dict.fromkeys(self.nodes, "idle"), "idle nodes")

    def _states_once_there(self) -> dict[str, str]:
        self.wait_for(lambda: bool(self.states()), "controller")
        return self.states()

    def _runs(self, name: str) -> bool:
        try:
            return psutil.Process(int((self.folder / "run" / f"{name}.pid").read_text())).is_running()
        except (OSError, ValueError, psutil.Error):
            return False

    def kill_node(self, node: str) -> None:
        """A node that is lost: slurmd and whatever ran under it end at once."""
        self.kill_daemon(node)
        spool = str(self.folder / "spool" / node)
        for process in psutil.process_iter():
            with contextlib.suppress(psutil.Error):
                steps = process.name() == "slurmstepd" and spool in " ".join(process.cmdline() + _open_files(process))
                if steps or process.environ().get("SLURMD_NODENAME") == node:
                    process.kill()

    def states(self) -> dict[str, str]:
        """Node -> its state, as sinfo has it."""
        lines = self.run("sinfo", "-h", "-N", "-o", "%N %T").split("\n")
        return dict(line.split() for line in lines if line)

    def run(self, *command: str | None) -> str:
        """A command's output. Raises RuntimeError with its message where it fails."""
        done = subprocess.run(
            [str(part) for part in command], env=self.environment, capture_output=True, text=True, timeout=60
        )
        if done.returncode:
            raise RuntimeError(f"{command}: {done.stderr or done.stdout}")
        return done.stdout.strip()

    def wait_for(self, condition: Callable[[], bool], what: str, seconds: float = START_SECONDS) -> None:
        """Polls until `condition`. Raises RuntimeError when it takes longer than `seconds`."""
        deadline = time.monotonic() + seconds
        while True:
            with contextlib.suppress(RuntimeError):
                if condition():
                    return
            if time.monotonic() > deadline:
                raise RuntimeError(f"no {what} after {seconds:.0f} s; see {self.folder}/log")
            time.sleep(0.2)

    def _configure(self, ports: Sequence[int]) -> None:
        values = {
            "folder": self.folder,
            "host": socket.gethostname().partition(".")[0],
            "ctld_port": ports[0],
            "dbd_port": ports[1],
            "sql_port": ports[2],
            "partition": PARTITION,
            "urgent": URGENT,
        }
        nodes = "\n".join(
            f"NodeName={node} NodeHostname={values['host']} NodeAddr=127.0.0.1 Port={port} CPUs={self.cpus} "
            "RealMemory=8000 State=UNKNOWN"
            for node, port in zip(self.nodes, ports[3:], strict=True)
        )
        self.conf.write_text(SLURM_CONF.format(nodes=nodes, **values))
        database = self.folder / "slurmdbd.conf"
        database.touch(mode=0o600)
        database.write_text(SLURMDBD_CONF.format(**values))

    def _start_munge(self) -> None:
        key = self.folder / "munge.key"
        if not key.exists():
            key.touch(mode=0o600)
            key.write_bytes(os.urandom(1024))
        run = self.folder / "run"
        self.run(
            apt.program("munged"),
            "--force",
            f"--key-file={key}",
            f"--socket={run}/munge.sock",
            f"--pid-file={run}/munged.pid",
            f"--log-file={self.folder}/log/munged.log",
            f"--seed-file={run}/munged.seed",
        )

    def _start_accounting(self, port: int) -> None:
        data, sock = self.folder / "mysql", self.folder / "run" / "mysql.sock"
        if not (data / "mysql").is_dir():
            self.run(
                "mysql_install_db",
                "--no-defaults",
                "--user=root",
                f"--datadir={data}",
                "--auth-root-authentication-method=normal",
                "--skip-test-db",
            )
        arguments = ["--no-defaults", "--user=root", f"--datadir={data}", f"--socket={sock}", f"--port={port}"]
        arguments += ["--bind-address=127.0.0.1", f"--pid-file={self.folder}/run/mysqld.pid"]
        arguments += ["--innodb-buffer-pool-size=64M", "--innodb-lock-wait-timeout=900", "--performance-schema=off"]
        with (self.folder / "log" / "mysqld.log").open("wb") as log:
            subprocess.Popen([str(apt.program("mariadbd")), *arguments], stdout=log, stderr=log, start_new_session=True)
        client = ["mysql", "--no-defaults", "-S", str(sock)]
        self.wait_for(lambda: self.run(*client, "-e", "select 1") != "", "database")
        for host in ("127.0.0.1", "localhost"):
            self.run(*client, "-e", f"create user if not exists 'slurm'@'{host}' identified by 'slurm'")
            self.run(*client, "-e", f"grant all on slurm_acct_db.* to 'slurm'@'{host}'")
        self.run(*client, "-e", "create database if not exists slurm_acct_db")
        self.run(apt.program("slurmdbd"))
        self.wait_for(lambda: bool(self.run("sacctmgr", "-n", "list", "user")), "accounting")
        for added in (
            ["cluster", "test"],
            ["account", ACCOUNT, "cluster=test"],
            ["user", "root", f"account={ACCOUNT}"],
        ):
            with contextlib.suppress(RuntimeError):  # it was added when this folder was started before
                self.run("sacctmgr", "-i", "add", *added)

    def _end(self, name: str, number: signal.Signals = signal.SIGTERM) -> None:
        with contextlib.suppress(OSError, ValueError, psutil.Error):
            process = psutil.Process(int((self.folder / "run" / f"{name}.pid").read_text()))
            process.send_signal(number)
            process.wait(20)


def _open_files(process: psutil.Process) -> list[str]:
    return [file.path for file in process.open_files()]


def _free_ports(count: int) -> list[int]:
    sockets = [socket.create_server(("127.0.0.1", 0)) for _ in range(count)]
    ports = [opened.getsockname()[1] for opened in sockets]
    for opened in sockets:
        opened.close()
    return ports


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("action", choices=("up", "down"))
    parser.add_argument("folder", type=Path)
    parser.add_argument("--nodes", type=int, default=2)
    args = parser.parse_args()
    cluster = Cluster(args.folder.resolve(), args.nodes)
    try:
        if args.action == "down":
            cluster.stop()
        else:
            install()
            cluster.start()
            print(f"{cluster.run('sinfo', '-N', '-l')}\nexport SLURM_CONF={cluster.conf}")
    except RuntimeError as error:
        print(f"error: {error}", file=sys.stderr)
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main())
