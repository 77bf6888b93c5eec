"""Calls of a script as jobs: of Slurm, or processes of this machine, by submitit (the extra `jobs`).

submitit pickles a `Call`, which is strings alone, into the directory of its logs, and the job reads it there. Nothing
else is unpickled: what came out of a job is read from the workdir of its run.
"""

import importlib
import importlib.util
import json
import shutil
import signal
import sys
import time
from collections.abc import Callable, Mapping
from contextlib import suppress
from dataclasses import asdict, dataclass
from pathlib import Path
from types import FrameType
from typing import Any, Literal

from research.core.console import say
from research.core.errors import NotInstalled, RunError, UserError, positive
from research.core.files import failing, write_json
from research.training import locks
from research.training.signals import Interrupted, on_signal

Cluster = Literal["slurm", "local"]
"""Where jobs run."""

SAVING = 120
"""Seconds before the end of a job's time at which its run is told to save itself."""

REQUEUES = 100
"""How often a job whose time is up is queued again."""

DELAY = 15.0
"""Seconds until a file that another host has written is surely seen on a shared disk."""


@dataclass(frozen=True)
class JobOptions:
    """What one job asks for. Slurm's own variables hold for the rest, such as SBATCH_ACCOUNT and SBATCH_QOS.

    Attributes:
        partition: the partition, of Slurm alone
        timeout_min: minutes of a job; shortly before they are over, its run saves itself, and is queued again
        gpus_per_node: GPUs of a job; none where it isn't given
        cpus_per_task: cores of a job, of Slurm alone
        mem_gb: GiB of memory of a job, of Slurm alone
    """

    partition: str | None = None
    timeout_min: int = 240
    gpus_per_node: int | None = None
    cpus_per_task: int | None = None
    mem_gb: int | None = None

    def __post_init__(self) -> None:
        positive(self, "job", "gpus_per_node", "cpus_per_task", "mem_gb")
        if self.timeout_min < 5:
            raise UserError(f"job.timeout_min must be at least 5, not {self.timeout_min}: saving takes a part of it")


@dataclass(frozen=True)
class Call:
    """The call of a script's `main` in a job: what `python -m module arguments` does.

    module  the script, as it is imported: "experiments.sweep"
    """

    module: str
    arguments: tuple[str, ...]

    def __call__(self) -> None:
        """Runs in the job. Exits with the status of the script, where it isn't 0.

        Before the time is up, SIGUSR2 comes. A run is then stopped as by SIGTERM, which saves it, and the job is queued
        again by submitit's own handler, at once where no run has begun. The next start resumes from the workdir.
        """
        requeue, before = signal.getsignal(signal.SIGUSR2), signal.getsignal(signal.SIGTERM)
        assert callable(requeue), "submitit handles it"
        asked: list[int] = []

        def stop(number: int, frame: FrameType | None) -> None:
            if signal.getsignal(signal.SIGTERM) is before:
                requeue(number, frame)
            asked.append(number)
            signal.raise_signal(signal.SIGTERM)

        signal.signal(signal.SIGUSR2, stop)
        status = importlib.import_module(self.module).main(list(self.arguments))
        if asked and status == 128 + signal.SIGTERM:
            requeue(asked[0], None)
        if status:
            sys.exit(status)

    def checkpoint(self) -> Any:
        """What submitit queues again: the same call."""
        from submitit.helpers import DelayedSubmission

        return DelayedSubmission(self)


def check_installed(cluster: Cluster) -> None:
    """Raises UserError where jobs can't be submitted from here. submitit is not imported."""
    if importlib.util.find_spec("submitit") is None:
        raise NotInstalled("--submit needs the package submitit: pip install -e .[jobs]")
    if cluster == "slurm" and not (shutil.which("sbatch") and shutil.which("srun")):
        raise UserError("--submit slurm: there is no sbatch here: give the command on a host that submits to Slurm")


def executor(folder: Path, cluster: Cluster, options: JobOptions, name: str) -> Any:
    """submitit's executor of jobs with these options.

    folder  for the jobs' logs
    name    of the jobs, as Slurm shows it
    """
    import submitit

    limits = {"slurm_max_num_timeout": REQUEUES, "local_max_num_timeout": REQUEUES}
    found = submitit.AutoExecutor(folder, cluster=cluster, **limits)
    asked = asdict(options)
    asked["slurm_partition"] = asked.pop("partition")
    signals = {"slurm_signal_delay_s": SAVING, "slurm_additional_parameters": {"requeue": True}}
    found.update_parameters(name=name, stderr_to_stdout=True, **asked, **signals)
    return found


def finish(
    calls: Mapping[str, Call],
    finished: Callable[[str], bool],
    directory: Path,
    cluster: Cluster,
    options: JobOptions,
    poll: float = 1.0,
) -> dict[str, Path]:
    """Submits the calls that are neither finished nor running, and waits until no job runs.

    Returns the log file of each call that has ended unfinished, by name; its workdir, where it ran in another process
    than a job.

    calls      by the names of their workdirs, which are in `directory`
    finished   whether the call of a name is finished, by the files of its workdir
    directory  keeps the number of each job, by which the next call of this function finds it, in jobs.json, and the
               logs in jobs/
    poll       seconds between two looks

    Raises Interrupted after SIGTERM or SIGINT, UserError where jobs.json is damaged, and RunError where a job can't be
    submitted.
    """
    import submitit

    folder, record = (directory / "jobs").absolute(), directory / "jobs.json"
    kinds = {"slurm": submitit.SlurmJob, "local": submitit.LocalJob}
    known = _known(record) if record.exists() else {}
    unfinished = [name for name in calls if not finished(name)]
    jobs = {name: kinds[known[name]["cluster"]](folder, known[name]["id"]) for name in unfinished if name in known}

    def running(name: str) -> bool:
        """Whether its job is queued or runs. A local job of an earlier command is known by the lock of its workdir."""
        submitted = not finished(name) and name in jobs and not jobs[name].done()
        return submitted or locks.in_use(directory / name)

    def stop(number: int) -> None:
        raise Interrupted(number, "; the same command finds the jobs that run, and submits the others")

    new = [name for name in unfinished if not running(name)]
    submit = executor(folder, cluster, options, directory.name).submit
    for name in new:
        try:
            jobs[name] = submit(calls[name])
        except (submitit.core.utils.FailedJobError, submitit.core.utils.FailedSubmissionError, OSError) as error:
            raise RunError(f"{name} can't be submitted: {' '.join(str(error).split())}") from error
        known[name] = {"cluster": cluster, "id": jobs[name].job_id}
        write_json(record, known)  # at once: a command that is stopped here leaves no unknown job
    counts = f"{len(calls) - len(unfinished)} finished, {len(unfinished) - len(new)} running, {len(new)} submitted now"
    say(f"{directory}: {len(calls)} jobs: {counts}; their logs are in {folder}; the same command finds them again")
    with on_signal(stop, lambda: "waiting for the jobs"):
        while any(running(name) for name in unfinished):
            time.sleep(poll)
        if cluster == "slurm" and not all(finished(name) for name in unfinished):
            time.sleep(DELAY)
    place = lambda name: jobs[name].paths.stdout if name in jobs else directory / name
    return {name: place(name) for name in unfinished if not finished(name)}


def _known(record: Path) -> dict[str, Any]:
    """The jobs in jobs.json, by name. Raises UserError where it is damaged."""
    known: Any = None
    with failing("read", record), suppress(ValueError, RecursionError):
        known = json.loads(record.read_text())
    if not isinstance(known, dict) or not all(map(_is_job, known.values())):
        raise UserError(f"{record} is damaged: see that no job of it runs, then delete it")
    return known


def _is_job(job: Any) -> bool:
    """Whether `job` is what jobs.json has of a job."""
    match job:
        case {"cluster": "slurm" | "local", "id": str()}:
            return True
    return False
