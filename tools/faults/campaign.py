#!/usr/bin/env python3
"""Disturbs runs of a small experiment in every way that docs/faults.md names and compares what they leave, bit by bit,
with an undisturbed run. Exits with 0 if every run left the same bits, at once or after the remedy that its error names.
Linux, Python 3, cc."""
import argparse, hashlib, json, os, random, re, shutil, signal, subprocess, sys, tempfile, time
from pathlib import Path

sys.dont_write_bytecode = True
HERE = Path(__file__).resolve().parent
sys.path.insert(0, str(HERE))
import power

ROOT = HERE.parents[1]
TIMEOUT = 300  # seconds of a run
EXPERIMENT = """
name = "faults"
title = "Methods with state, an adapter"
kind = "table"
row_key = "method"
paper = "table2.csv"
datasets = ["dolly"]
seeds = [10]
references = true
[[rows]]
label = "DistiLLM"
method = "distillm"
[[rows]]
label = "MiniLLM"
method = "minillm"
[[rows]]
label = "SeqKD"
method = "seqkd"
[[rows]]
label = "KD"
method = "kd"
train = { lora = { r = 4, alpha = 8 } }
"""
MODEL = """llama]
vocab_size = 1024
max_position_embeddings = 96
num_attention_heads = 2
hidden_size = WIDTH
intermediate_size = WIDTH
num_hidden_layers = 1
"""
PROFILE = f"""
name = "micro"
description = "seconds"
jobs = 2
[data]
source = "embedded"
train = 300
test = 4
max_prompt_length = 48
max_length = 96
[teacher.{MODEL.replace("WIDTH", "16")}
[student.{MODEL.replace("WIDTH", "8")}
[teacher_sft]
epochs = 1
batch_size = 20
learning_rate = RATE
[student_sft]
epochs = 1
batch_size = 20
learning_rate = RATE
[distill]
epochs = 2
batch_size = 20
learning_rate = RATE
validate_every = 10
[validation]
examples = 4
max_new_tokens = 4
[evaluation]
max_new_tokens = 4
[methods.minillm.settings]
rollouts = 40
max_new_tokens = 4
[methods.distillm.settings]
capacity = 60
max_new_tokens = 4
[methods.seqkd.settings]
max_new_tokens = 4
"""


class Failure(Exception):
    pass


class Run:
    """How a run ended."""
    def __init__(self, code, text):
        self.code, self.text = code, text


class Project:
    """A folder with runs, results and figures."""
    def __init__(self, folder, abkd, rate="1e-3"):
        self.folder, self.abkd = Path(folder), abkd
        self.folder.mkdir(parents=True)
        (self.folder / "faults.toml").write_text(EXPERIMENT)
        (self.folder / "micro.toml").write_text(PROFILE.replace("RATE", rate))
        self.out = self.folder / "out"
        self.out.mkdir()

    @property
    def runs(self):
        return self.out / "runs" / "micro"

    def words(self):
        folders = [word for name in ("runs", "results", "figures") for word in (f"--{name}", str(self.out / name))]
        return [self.abkd, "run", str(self.folder / "faults.toml"), "--profile", str(self.folder / "micro.toml"),
                "--root", str(ROOT), *folders]

    def start(self, stderr=subprocess.PIPE, **env):
        # With the variable a build with libtorch does not replace itself, which would take the faults off.
        return subprocess.Popen(self.words(), stdin=subprocess.DEVNULL, stdout=subprocess.DEVNULL, stderr=stderr,
                                env={**os.environ, "GOMP_SPINCOUNT": "10000", **env})

    def run(self, **env):
        child = self.start(**env)
        try:
            _, text = child.communicate(timeout=TIMEOUT)
        except subprocess.TimeoutExpired:
            child.kill()
            child.wait()
            raise Failure(f"hangs: more than {TIMEOUT} s")
        return Run(child.returncode, text.decode(errors="replace"))

    def snapshot(self):
        """Everything below the folder but for times: {path: hash}."""
        found = {}
        for path in sorted(self.out.rglob("*")):
            if path.is_file() and path.name != ".lock":
                content = normal(path)
                found[str(path.relative_to(self.out))] = hashlib.sha256(content).hexdigest()
            elif path.is_dir():
                found[str(path.relative_to(self.out)) + "/"] = ""
        return found

    def copy(self, folder):
        other = object.__new__(Project)
        other.folder, other.abkd, other.out = Path(folder), self.abkd, Path(folder) / "out"
        shutil.copytree(self.folder, other.folder)
        return other


def normal(path):
    """A file's content without times, and without checksums of files that hold times."""
    content = path.read_bytes()
    timeless = lambda value: {k: v for k, v in value.items() if k != "seconds"}
    if path.name == "steps.jsonl":
        return json.dumps([timeless(json.loads(line)) for line in content.splitlines()]).encode()
    if path.name in ("hidden.json", "result.json"):
        return json.dumps(timeless(json.loads(content))).encode()
    if path.name == "seal.json":
        value = json.loads(content)
        return json.dumps([value["task"], sorted(value["files"])]).encode()
    return content


def difference(found, wanted):
    lines = [f"only there: {name}" for name in sorted(found.keys() - wanted.keys())]
    lines += [f"missing: {name}" for name in sorted(wanted.keys() - found.keys())]
    lines += [f"other bits: {name}" for name in sorted(found.keys() & wanted.keys()) if found[name] != wanted[name]]
    return "; ".join(lines[:6]) + (f"; {len(lines) - 6} more" if len(lines) > 6 else "")


class Campaign:
    def __init__(self, options):
        self.random = random.Random(options.seed)
        self.small, self.abkd = options.small, str(Path(options.abkd).resolve())
        self.work = Path(os.path.realpath(options.keep or tempfile.mkdtemp(prefix="abkd-faults-")))
        self.work.mkdir(parents=True, exist_ok=True)
        if any(self.work.iterdir()):
            sys.exit(f"{self.work}: not empty")
        self.keeps = bool(options.keep)
        self.library = str(self.work / "preload.so")
        subprocess.run(["cc", "-shared", "-fPIC", "-O1", "-U_FORTIFY_SOURCE", "-o", self.library,
                        str(HERE / "preload.c"), "-lpthread"], check=True)
        self.number, self.failures, self.lines = 0, [], []
        self.reference = self.project()
        begun = time.monotonic()
        run = self.reference.run(**self.fault(self.reference, ABKD_FAULT_COUNT=str(self.work / "count")))
        self.seconds = time.monotonic() - begun
        if run.code != 0:
            sys.exit(f"an undisturbed run fails: {run.text}")
        self.changes = int((self.work / "count").read_text())
        self.wanted = self.reference.snapshot()
        print(f"an undisturbed run: {self.changes} changes of files, {self.seconds:.1f} s", flush=True)

    def project(self, **more):
        self.number += 1
        return Project(self.work / str(self.number), self.abkd, **more)

    def fault(self, project, **env):
        return {"LD_PRELOAD": self.library, "ABKD_FAULT_ROOT": str(project.out), **env}

    def done(self, project):
        if not self.keeps:
            shutil.rmtree(project.folder)

    def finish(self, project):
        """Runs to the end; how it ended, which is `same` or refused with remedies that work. Raises Failure."""
        refusals = 0
        while True:
            run = project.run()
            if run.code == 0:
                break
            if run.code < 0 or run.code == 101:
                raise Failure(f"ends with {run.code}: {run.text[-600:]}")
            refusals += 1
            self.refusal = run.text.strip()[-600:]
            if refusals > 4:
                raise Failure(f"the remedies do not help: {run.text[-600:]}")
            remedy = re.search(r"remove (/\S+)", run.text)
            if remedy:
                path = Path(remedy[1].rstrip(",;."))
                if not path.is_relative_to(project.out) or not path.exists():
                    raise Failure(f"{path} cannot be removed: {run.text[-600:]}")
                shutil.rmtree(path) if path.is_dir() else path.unlink()
            elif "the same command" not in run.text:
                raise Failure(f"no remedy: {run.text[-600:]}")
        found = project.snapshot()
        if found != self.wanted:
            raise Failure(difference(found, self.wanted))
        return "refused" if refusals else "recomputed" if "runs again" in run.text else "same"

    def attempt(self, what, project, action):
        """The action's verdict; a failure is told and counted."""
        try:
            return action()
        except Failure as failure:
            self.failures.append(f"{what}: {failure}")
            print(f"FAILED {what}: {failure}", flush=True)
            return "failed"
        finally:
            self.done(project)

    def until(self, minutes, most):
        """Numbers from 0 while there is time, at most so many."""
        end = time.monotonic() + 60 * minutes
        for i in range(most):
            if i > 0 and time.monotonic() > end:
                return
            yield i

    def tell(self, line):
        self.lines.append(line)
        print(line, flush=True)

    # -- the kinds of trouble ------------------------------------------------------------------------------------

    def signals(self, minutes, most):
        """Random signals at random moments, several in a row."""
        hits = {"SIGKILL": 0, "SIGTERM": 0, "SIGINT": 0}
        for _ in self.until(minutes, most):
            project = self.project()

            def disturbed():
                for _ in range(self.random.choice([1, 2, 3, 4])):
                    name = self.random.choice(sorted(hits))
                    child = project.start(stderr=subprocess.DEVNULL)
                    time.sleep(self.random.uniform(0.02, 1.05) * self.seconds)
                    if child.poll() is None:
                        hits[name] += 1
                        child.send_signal(getattr(signal, name))
                    try:
                        code = child.wait(timeout=TIMEOUT)
                    except subprocess.TimeoutExpired:
                        child.kill()
                        raise Failure(f"goes on after {name}")
                    if code not in (0, 130, -signal.SIGKILL, -signal.SIGTERM, -signal.SIGINT):
                        raise Failure(f"ends with {code} after {name}")
                return self.strict(project)

            self.attempt(f"signals, project {project.folder.name}", project, disturbed)
            if sum(hits.values()) >= most:
                break
        self.tell(f"signals: {sum(hits.values())} ({hits})")

    def strict(self, project):
        """What was only stopped is never refused."""
        verdict = self.finish(project)
        if verdict == "refused":
            raise Failure(f"refused what was only stopped: {self.refusal}")
        return verdict

    def killed(self, minutes, most):
        """SIGKILL before the n-th change of a file, and in the middle of a write."""
        count = 0
        for i in self.until(minutes, most):
            project, kind, at = self.project(), ["kill", "torn"][i % 2], self.random.randint(1, self.changes)

            def disturbed():
                run = project.run(**self.fault(project, ABKD_FAULT_KIND=kind, ABKD_FAULT_AT=str(at)))
                if run.code not in (-signal.SIGKILL, 0):
                    raise Failure(f"ends with {run.code}: {run.text[-400:]}")
                return self.strict(project)

            self.attempt(f"{kind} at change {at}", project, disturbed)
            count += 1
        self.tell(f"killed at a change of a file: {count} of {self.changes} changes")

    def errors(self, minutes, most):
        """Errors at the n-th change: named at once, and the same bits afterwards."""
        named, unharmed = 0, 0
        for i in self.until(minutes, most):
            kind = ["enospc", "eio", "full", "short"][i % 4]
            project, at = self.project(), self.random.randint(1, self.changes)

            def disturbed():
                nonlocal named, unharmed
                run = project.run(**self.fault(project, ABKD_FAULT_KIND=kind, ABKD_FAULT_AT=str(at)))
                if run.code == 1:
                    text = run.text.strip().splitlines()[-1]
                    if not re.search(r"os error (28|5)\b", text) or str(project.out) not in text:
                        raise Failure(f"does not name error and file: {text}")
                    if kind == "short":
                        raise Failure(f"a short write is no error: {text}")
                    named += 1
                elif run.code == 0:
                    unharmed += 1
                    if (found := project.snapshot()) != self.wanted:
                        raise Failure(f"ends well, and {difference(found, self.wanted)}")
                else:
                    raise Failure(f"ends with {run.code}: {run.text[-400:]}")
                return self.strict(project)

            self.attempt(f"{kind} at change {at}", project, disturbed)
        self.tell(f"injected errors: {named} named, {unharmed} without harm (short writes, what is only cleared away)")

    def power_cuts(self, minutes, most):
        """Cuts of a recorded run, and of the runs that go on after them."""
        verdicts = {}
        traced = {}
        for i in self.until(minutes, most):
            project, kind = self.project(), power.KINDS[i % len(power.KINDS)]

            def disturbed():
                again = True
                while again:
                    trace = self.work / "trace"
                    first = not any(project.out.iterdir())
                    if first and "changes" in traced:
                        changes, source = traced["changes"], traced["out"]
                        disk = power.Disk(project.out)
                        disk.root = source
                    else:
                        disk = power.Disk(project.out)
                        run = project.run(**self.fault(project, ABKD_FAULT_TRACE=str(trace)))
                        if run.code != 0:
                            raise Failure(f"the run after a cut ends with {run.code}: {run.text[-400:]}")
                        changes = power.read(trace)
                        if first:
                            traced["changes"], traced["out"] = changes, project.out
                    for change in changes[:self.random.randint(0, len(changes))]:
                        disk.apply(change)
                    shutil.rmtree(project.out)
                    project.out.mkdir()
                    disk.cut(project.out, kind, self.random)
                    again = self.random.random() < 0.25
                return self.finish(project)

            verdict = self.attempt(f"power cut ({kind})", project, disturbed)
            verdicts[verdict] = verdicts.get(verdict, 0) + 1
        self.tell(f"power cuts: {sum(verdicts.values())} ({verdicts})")

    def closed_stderr(self):
        """Progress that cannot be shown stops nothing."""
        for what in ("closed", "full", "a broken pipe"):
            project = self.project()

            def disturbed():
                if what == "full":
                    child = project.start(stderr=open("/dev/full", "w"))
                elif what == "closed":
                    child = subprocess.Popen(["sh", "-c", 'exec 2>&-; exec "$@"', "sh", *project.words()],
                                             stdin=subprocess.DEVNULL, stdout=subprocess.DEVNULL)
                else:
                    reader, writer = os.pipe()
                    os.close(reader)
                    child = project.start(stderr=writer)
                    os.close(writer)
                if (code := child.wait(timeout=TIMEOUT)) != 0:
                    raise Failure(f"ends with {code}")
                return self.strict(project)

            self.attempt(f"stderr is {what}", project, disturbed)
        self.tell("stderr closed, full, a broken pipe: 3 runs")

    # -- corruption ----------------------------------------------------------------------------------------------

    def stopped(self, holds, **more):
        """A project whose run was killed when `holds` was true of its folder of tasks."""
        for _ in range(30):
            project = self.project(**more)
            child = project.start(stderr=subprocess.DEVNULL)
            while child.poll() is None and not holds(project.runs):
                time.sleep(0.0005)
            child.kill()
            child.wait()
            if holds(project.runs):
                return project
            self.done(project)
        raise Failure("no run could be stopped at this moment")

    def corruption(self, minutes, most):
        """Each kind of file x {flip, cut, empty, remove, swap}."""
        trees, table = {}, {}

        def tree(name, **more):
            key = (name, *more.values())
            if key not in trees:
                if name == "finished":
                    trees[key] = self.project(**more)
                    trees[key].run()
                else:
                    trees[key] = self.stopped(STOPPED[name], **more)
            return trees[key]

        orders = [self.random.sample(KINDS, len(KINDS)) for _ in DAMAGES]
        cases = [(kind, damage) for kinds in zip(*orders) for kind, damage in zip(kinds, DAMAGES)]
        for i in self.until(minutes, min(most, len(cases))):
            (name, pattern, undone), damage = cases[i]
            try:
                source = tree(name)
                other = tree(name, rate="3e-3") if damage == "swap" else None
            except Failure as failure:
                self.failures.append(f"{name}: {failure}")
                continue
            self.number += 1
            project = source.copy(self.work / str(self.number))
            what = f"{damage} {pattern} ({name})"

            def disturbed():
                files = sorted(project.runs.glob(pattern))
                if name != "finished":  # the log of a task that is finished is read by nobody
                    files = [f for f in files if not (project.runs / f.relative_to(project.runs).parts[0] / "seal.json").exists()]
                if not files:
                    raise Failure("no such file")
                for task in project.runs.iterdir():
                    if any(task.name.startswith(prefix) for prefix in undone):
                        shutil.rmtree(task)
                path = self.random.choice(files)
                DAMAGES[damage](self, path, project, other)
                return self.finish(project)

            verdict = self.attempt(what, project, disturbed)
            table.setdefault(damage, {}).setdefault(verdict, []).append(pattern)
        for damage in DAMAGES:
            told = {verdict: len(which) for verdict, which in sorted(table.get(damage, {}).items())}
            self.tell(f"corruption, {damage}: {sum(told.values())} kinds of files ({told})")
        for project in trees.values():
            self.done(project)


def flip(campaign, path, project, other):
    content = bytearray(path.read_bytes())
    if content:
        content[campaign.random.randrange(len(content))] ^= 1 << campaign.random.randrange(8)
    path.write_bytes(content)


def cut(campaign, path, project, other):
    content = path.read_bytes()
    path.write_bytes(content[:campaign.random.randrange(len(content))] if content else b"")


def swap(campaign, path, project, other):
    """The same file of another task: of one with other settings where there is one, else of another of this project."""
    task, *inner = path.relative_to(project.runs).parts
    alike = lambda name: re.sub(r"-[0-9a-f]+$", "", name)
    numbers = lambda parts: re.sub(r"\d+", "*", "/".join(parts))
    found = [p for runs in (other.runs, project.runs) for p in sorted(runs.glob(f"*/{numbers(inner)}"))
             if p != path and p.read_bytes() != path.read_bytes()]
    same = [p for p in found if alike(p.relative_to(p.parents[len(inner)]).parts[0]) == alike(task)]
    if same or found:
        shutil.copyfile(campaign.random.choice(same or found), path)
    else:
        path.write_bytes(b"{}")


DAMAGES = {
    "flip": flip,
    "cut": cut,
    "empty": lambda campaign, path, project, other: path.write_bytes(b""),
    "remove": lambda campaign, path, project, other: path.unlink(),
    "swap": swap,
}

# (state of the run, files, tasks that are not done yet: begins of their names)
LATER = ("evaluate-", "distill-")
KINDS = [
    ("finished", "teacher-sft-*/result.json", ()),
    ("finished", "distill-*/result.json", ()),
    ("finished", "evaluate-*/result.json", ()),
    ("finished", "teacher-answers-*/result.json", ()),
    ("finished", "teacher-hidden-*/result.json", ()),
    ("finished", "distill-*/seal.json", ()),
    ("finished", "evaluate-*/seal.json", ()),
    ("finished", "evaluate-*/task.json", ()),
    ("finished", "distill-*/task.json", ()),
    ("finished", "evaluate-*/answers.jsonl", ()),
    ("finished", "teacher-sft-*/student/model.safetensors", LATER),
    ("finished", "teacher-sft-*/student/config.json", LATER),
    ("finished", "student-sft-*/student/model.safetensors", LATER),
    ("finished", "student-sft-*/student/config.json", LATER),
    ("finished", "distill-*/student/model.safetensors", ("evaluate-",)),
    ("finished", "distill-*/student/adapter_model.safetensors", ("evaluate-",)),
    ("finished", "distill-*/student/adapter_config.json", ("evaluate-",)),
    ("finished", "teacher-answers-*/answers.jsonl", LATER),
    ("finished", "teacher-hidden-*/hidden.bin", LATER),
    ("finished", "teacher-hidden-*/hidden.json", LATER),
    ("training", "distill-*/state-*/student.bpk", ()),
    ("training", "distill-*/state-*/optimizer.bpk", ()),
    ("training", "distill-*/state-*/state.json", ()),
    ("training", "distill-*/state-*/seal.json", ()),
    ("training", "distill-*/validation-*/*.safetensors", ()),
    ("training", "distill-*/validation-*/*config.json", ()),
    ("training", "distill-*/validation-*/seal.json", ()),
    ("training", "distill-*/steps.jsonl", ()),
    ("answers", "teacher-answers-*/answers.jsonl.partial", ()),
    ("answers", "teacher-answers-*/answers.jsonl.sums", ()),
    ("hidden", "teacher-hidden-*/hidden.bin.partial", ()),
    ("hidden", "teacher-hidden-*/hidden.bin.sums", ()),
]


def in_training(runs):
    """A state and the best weights so far of a distillation that is under way."""
    tasks = [c for c in runs.glob("distill-*") if not (c / "seal.json").exists()]
    return any(list(c.glob("state-*/seal.json")) and list(c.glob("validation-*/seal.json")) for c in tasks)


def in_part(pattern):
    def holds(runs):
        return any(p.exists() and p.stat().st_size > 0 and p.with_suffix(".partial").exists()
                   for p in runs.glob(pattern))
    return holds


STOPPED = {
    "training": in_training,
    "answers": in_part("teacher-answers-*/answers.jsonl.sums"),
    "hidden": in_part("teacher-hidden-*/hidden.bin.sums"),
}


def main():
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--abkd", default=str(ROOT / "target/release/abkd"), help="the program")
    parser.add_argument("--minutes", type=float, default=30, help="most time of the whole")
    parser.add_argument("--small", action="store_true", help="a handful of each kind, for CI")
    parser.add_argument("--seed", type=int, default=1, help="of the random moments")
    parser.add_argument("--only", choices=["signals", "killed", "errors", "power", "corruption", "stderr"], action="append")
    parser.add_argument("--keep", help="folder that is kept, for a look at failures")
    options = parser.parse_args()
    campaign = Campaign(options)
    few = options.small
    share = lambda part: options.minutes * part
    parts = {
        "corruption": lambda: campaign.corruption(share(0.35), 5 if few else 10**6),
        "power": lambda: campaign.power_cuts(share(0.15), 3 if few else 60),
        "errors": lambda: campaign.errors(share(0.15), 4 if few else 120),
        "killed": lambda: campaign.killed(share(0.1), 3 if few else 100),
        "signals": lambda: campaign.signals(share(0.25), 3 if few else 200),
        "stderr": campaign.closed_stderr,
    }
    for name, part in parts.items():
        if not options.only or name in options.only:
            part()
    if not campaign.keeps:
        shutil.rmtree(campaign.work)
    print("\n".join(["", *campaign.lines, f"{len(campaign.failures)} failures"]))
    sys.exit(1 if campaign.failures else 0)


if __name__ == "__main__":
    main()
