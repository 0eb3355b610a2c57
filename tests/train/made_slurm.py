"""A Slurm of one machine for tests: sbatch, srun, sacct, scontrol and scancel that do what ours are asked to do.

They keep, in the folder of SLURM_FAKE: each batch script as `<job>.sh`, the state of each job as `<job>.state`, the
commands that came as `calls`. A job that is requeued is run again, with SLURM_RESTART_COUNT one higher.
"""

import os
import re
import subprocess
import sys
import time
from pathlib import Path

PROGRAMS = ("sbatch", "srun", "sacct", "scontrol", "scancel")


def make_slurm(folder: Path) -> Path:
    """The programs, in a folder for PATH."""
    programs = folder / "programs"
    programs.mkdir(parents=True)
    for name in PROGRAMS:
        path = programs / name
        path.write_text(f'#!/bin/sh\nSLURM_FAKE={folder} exec {sys.executable} {__file__} {name} "$@"\n')
        path.chmod(0o755)
    return programs


def main(name: str, arguments: list[str]) -> int:
    folder = Path(os.environ["SLURM_FAKE"])
    with (folder / "calls").open("a") as calls:
        calls.write(" ".join([name, *arguments]) + "\n")
    return {"sbatch": sbatch, "srun": srun, "sacct": sacct, "scontrol": scontrol, "scancel": scancel}[name](
        folder, arguments
    )


def flags(script: Path) -> dict[str, str]:
    found = re.findall(r"^#SBATCH --([\w-]+)(?:=(.*))?$", script.read_text(), re.MULTILINE)
    return {name: value.strip("'") for name, value in found}


def sbatch(folder: Path, arguments: list[str]) -> int:
    job = str(100 + len(list(folder.glob("*.sh"))))
    script = folder / f"{job}.sh"
    script.write_bytes(Path(arguments[-1]).read_bytes())
    array = re.match(r"0-(\d+)%(\d+)", flags(script).get("array", ""))
    for task in range(int(array[1]) + 1) if array else [None]:
        (folder / f"{job if task is None else f'{job}_{task}'}.state").write_text("PENDING")
    runner = [sys.executable, __file__, "run", job]
    subprocess.Popen(runner, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL, start_new_session=True)
    print(f"Submitted batch job {job}")
    return 0


def run(folder: Path, job: str) -> None:
    """The scheduler: a job's script, once its dependency is there; tasks of an array one after the other."""
    script = folder / f"{job}.sh"
    asked = flags(script)
    states = sorted(folder.glob(f"{job}.state")) + sorted(folder.glob(f"{job}_*.state"))
    before = asked.get("dependency", "").removeprefix("afterok:")
    while before and not all(state.read_text() == "COMPLETED" for state in folder.glob(f"{before}[._]*state")):
        if any(state.read_text() in ("FAILED", "CANCELLED") for state in folder.glob(f"{before}[._]*state")):
            for state in states:
                state.write_text("CANCELLED")
            return
        time.sleep(0.05)
    tasks = int(asked.get("nodes", 1)) * int(asked.get("ntasks-per-node", 1))
    for state in states:
        name = state.stem
        environment = {**os.environ, "SLURM_JOB_ID": name, "SLURM_NTASKS": str(tasks), "SLURM_JOB_NUM_NODES": "1"}
        if "_" in name:
            environment["SLURM_ARRAY_JOB_ID"], environment["SLURM_ARRAY_TASK_ID"] = name.split("_")
        for count in range(100):
            environment["SLURM_RESTART_COUNT"] = str(count)
            state.write_text("RUNNING")
            (folder / f"{name}.requeue").unlink(missing_ok=True)
            code = subprocess.run(["bash", str(script)], env=environment, check=False).returncode
            if not (folder / f"{name}.requeue").exists():
                state.write_text("FAILED" if code else "COMPLETED")
                break


def srun(folder: Path, arguments: list[str]) -> int:
    """The command in each rank, its output in the file that is named; the highest exit code."""
    options = {name: arguments[arguments.index(name) + 1] for name in ("--output",)}
    start = next(n for n, text in enumerate(arguments) if text == sys.executable)
    job = os.environ["SLURM_JOB_ID"]
    path = options["--output"].replace("%j", job).replace("%A_%a", job)
    ranks: list[subprocess.Popen[bytes]] = []
    for rank in range(int(os.environ["SLURM_NTASKS"])):
        environment = {**os.environ, "SLURM_PROCID": str(rank), "SLURM_LOCALID": str(rank), "SLURM_NODEID": "0"}
        with open(path.replace("%t", str(rank)), "ab") as output:
            command = arguments[start:]
            ranks.append(subprocess.Popen(command, env=environment, stdout=output, stderr=subprocess.STDOUT))
    (folder / f"{job}.ranks").write_text(" ".join(str(rank.pid) for rank in ranks))
    return max(code if (code := rank.wait()) >= 0 else 128 - code for rank in ranks)


def sacct(folder: Path, arguments: list[str]) -> int:
    print("JobID|State|NodeList")
    for job in arguments[arguments.index("-j") + 1].split(","):
        for state in (*folder.glob(f"{job}.state"), *folder.glob(f"{job}_*.state")):
            print(f"{state.stem}|{state.read_text()}|here")
    return 0


def scontrol(folder: Path, arguments: list[str]) -> int:
    assert arguments[0] == "requeue"
    (folder / f"{arguments[1]}.requeue").touch()
    return 0


def scancel(folder: Path, arguments: list[str]) -> int:
    for state in (*folder.glob(f"{arguments[-1]}.state"), *folder.glob(f"{arguments[-1]}_*.state")):
        state.write_text("CANCELLED")
    return 0


if __name__ == "__main__":
    if sys.argv[1] == "run":
        run(Path(os.environ["SLURM_FAKE"]), sys.argv[2])
    else:
        sys.exit(main(sys.argv[1], sys.argv[2:]))
