#!/usr/bin/env python3
"""Breaks the source on purpose and sees which tests fail. See --help; mutations are in mutations.py."""
import argparse, csv, os, re, signal, subprocess, sys, time
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
HERE = ROOT / "target" / "mutations"  # a copy of the sources, its builds, logs and results
sys.path.insert(0, str(Path(__file__).resolve().parent))
sys.dont_write_bytecode = True
from mutations import MUTATIONS

TREE, TARGET, RESULTS = HERE / "tree", HERE / "target", HERE / "results.csv"
LOGS, BASELINE = HERE / "logs", HERE / "baseline.csv"
FIELDS = ["id", "file", "verdict", "failed", "not_failed", "seconds", "others_failed", "together", "note", "args"]
TEST_TIMEOUT, BUILD_TIMEOUT = 400, 2400


def prepare():
    HERE.mkdir(parents=True, exist_ok=True)
    if not TREE.exists():
        subprocess.run(["git", "clone", "-q", str(ROOT), str(TREE)], check=True)
    shared = HERE / "shared"  # crates/data/tests/dolly.rs looks in <repo>/../shared
    if not shared.is_symlink():  # it may lead nowhere
        shared.symlink_to(ROOT.parent / "shared")
    LOGS.mkdir(exist_ok=True)


def update():
    """Takes the copy to the newest commit of the sources."""
    git = lambda *args: subprocess.run(["git", *args], cwd=TREE, check=True, capture_output=True, text=True).stdout
    dirty = git("status", "--porcelain", "--untracked-files=no")
    if dirty.strip():
        print("restored, left by a run that was killed:\n" + dirty)
        git("checkout", "-q", "--", ".")
    git("pull", "-q", "--ff-only")


def place(text, edit):
    """Start of an edit's old string, or what is wrong."""
    old, n = edit[0], text.count(edit[0])
    if len(edit) == 2:
        if n != 1:
            return None, f"occurs {n} times: {old!r}"
        return text.index(old), None
    if n <= edit[2]:
        return None, f"has {n} occurrences, no number {edit[2]}: {old!r}"
    at = -1
    for _ in range(edit[2] + 1):
        at = text.index(old, at + 1)
    return at, None


def mutated(mutations):
    """{file: new text} with the edits of all mutations; raises ValueError."""
    texts = {}
    for mutation in mutations:
        file = mutation["file"]
        original = (TREE / file).read_text()
        text = texts.get(file, original)
        for edit in mutation["edits"]:
            _, wrong = place(original, edit)
            if wrong:
                raise ValueError(f"{mutation['id']}: {file}: {wrong}")
            at, wrong = place(text, edit)
            if wrong:
                raise ValueError(f"{mutation['id']}: {file}, after other edits: {wrong}")
            text = text[:at] + edit[1] + text[at + len(edit[0]):]
        texts[file] = text
    return texts


def run(command, timeout, log):
    """Exit code (None: timed out) and output, both streams; kills the whole group that it started."""
    env = dict(os.environ, CARGO_TARGET_DIR=str(TARGET), PROPTEST_DISABLE_FAILURE_PERSISTENCE="1",
               PROPTEST_MAX_SHRINK_ITERS="16", CARGO_TERM_COLOR="never", RUST_BACKTRACE="0", CARGO_NET_OFFLINE="true",
               ABKD_SHARED=str(HERE / "shared"))
    with open(log, "wb") as out:
        child = subprocess.Popen(["nice", "-n", "10", *command], cwd=TREE, stdout=out, stderr=subprocess.STDOUT,
                                 stdin=subprocess.DEVNULL, env=env, start_new_session=True)
        try:
            code = child.wait(timeout)
        except subprocess.TimeoutExpired:
            os.killpg(child.pid, signal.SIGKILL)
            child.wait()
            code = None
        except BaseException:
            os.killpg(child.pid, signal.SIGKILL)
            raise
    return code, Path(log).read_text(errors="replace")


def cargo(args, name, timeout=TEST_TIMEOUT):
    """(state, results {test: ok/FAILED}, seconds of the tests). States: OK, INVALID, TIMEOUT, ABORTED."""
    code, text = run(["cargo", "test", "--release", "--offline", *without_filter(args), "--no-run"], BUILD_TIMEOUT,
                     LOGS / f"{name}.build.log")
    if code != 0:
        return ("BUILD-TIMEOUT" if code is None else "INVALID"), {}, text
    command = ["cargo", "test", "--release", "--offline", "--no-fail-fast", *args, "--", "--test-threads=2"]
    code, text = run(command, timeout, LOGS / f"{name}.log")
    # a test's name and its result may be torn apart by what it prints past the capture
    results = {}
    for test, result in re.findall(r"^test (\S+)(?: - should panic)? \.\.\. (ok|FAILED|ignored)\s*$", text, re.M):
        results[test] = result
    failures = re.findall(r"^---- (\S+) stdout ----$", text, re.M)
    results.update({test: "FAILED" for test in failures})
    lines = len(re.findall(r"^test \S+(?: - should panic)? \.\.\. (?:ok|FAILED|ignored)", text, re.M))
    running = sum(int(n) for n in re.findall(r"^running (\d+) tests?$", text, re.M))
    if code is None:
        return "TIMEOUT", results, text
    if re.search(r"\(signal: \d+|SIGABRT|SIGSEGV|has overflowed its stack", text) or running > max(lines, len(results)):
        return "ABORTED", results, text
    if "could not compile" in text:
        return "INVALID", results, text
    return "OK", results, text


def without_filter(args):
    """`cargo test ARGS FILTER` less the filter, for the build."""
    out, skip = [], False
    for a in args:
        if skip or a.startswith("-"):
            skip = a in ("-p", "--test", "--features") and not skip
            out.append(a)
    return out


def short(name):
    return name.rsplit("::", 1)[-1]


def verdict(mutation, state, results, text):
    failed = {short(t) for t, r in results.items() if r == "FAILED"}
    seen = {short(t) for t in results}
    note = "" if state == "OK" else state
    if state in ("INVALID", "BUILD-TIMEOUT"):
        first = re.search(r"^error.*(?:\n.*){0,2}", text, re.M)
        return "INVALID", [], mutation["expected"], note + ": " + (first.group(0).replace("\n", " ")[:300] if first else "")
    expected = mutation["expected"]
    caught = [t for t in expected if t in failed]
    if state == "TIMEOUT" and mutation["timeout_counts"]:
        caught += [t for t in expected if t not in seen]
    missing = [t for t in expected if t not in caught]
    unseen = [t for t in missing if t not in seen]
    if unseen and state == "OK":
        note += " not run: " + " ".join(unseen)
    kind = "CAUGHT" if not missing else "PARTLY" if caught else "SURVIVED"
    if state in ("TIMEOUT", "ABORTED") and kind != "CAUGHT":
        kind = state
    return kind, caught, missing, note


def write(row):
    new = not RESULTS.exists()
    with open(RESULTS, "a", newline="") as f:
        w = csv.DictWriter(f, FIELDS)
        if new:
            w.writeheader()
        w.writerow(row)


def rows():
    if not RESULTS.exists():
        return []
    with open(RESULTS, newline="") as f:
        return list(csv.DictReader(f))


def attempt(group):
    """Mutates, tests, restores, writes a line for each mutation of the group."""
    texts = mutated(group)
    originals = {file: (TREE / file).read_bytes() for file in texts}
    name = group[0]["id"] if len(group) == 1 else "batch-" + group[0]["batch"]
    start = time.time()
    try:
        for file, text in texts.items():
            (TREE / file).write_text(text)
        state, results, text = cargo(group[0]["args"], name, 90 if group[0]["timeout_counts"] else TEST_TIMEOUT)
    finally:
        for file, data in originals.items():
            (TREE / file).write_bytes(data)  # a new time, so that cargo builds it again
    seconds = round(time.time() - start)
    if len(group) > 1 and state != "OK":
        print(f"  {name}: {state}; one by one then", flush=True)
        for mutation in group:
            attempt([mutation])
        return
    named = {t for mutation in group for t in mutation["expected"]}
    others = sorted({short(t) for t, r in results.items() if r == "FAILED"} - named)
    for mutation in group:
        kind, caught, missing, note = verdict(mutation, state, results, text)
        together = " ".join(x["id"] for x in group if x is not mutation)
        if mutation["probe"]:
            note = (note + " PROBE: " + mutation["probe"]).strip()
        write(dict(id=mutation["id"], file=mutation["file"], verdict=kind, failed=" ".join(caught),
                   not_failed=" ".join(missing), seconds=seconds, others_failed=" ".join(others), together=together,
                   note=note, args=" ".join(mutation["args"])))
        print(f"{kind:9} {mutation['id']:45} {len(caught)}/{len(mutation['expected'])} {seconds:4} s  {note[:110]}", flush=True)


def groups(chosen):
    """Mutations one by one, those of a batch together."""
    done = set()
    for mutation in chosen:
        if mutation["id"] in done:
            continue
        group = [mutation]
        if mutation["batch"]:
            group = [x for x in chosen if x["batch"] == mutation["batch"] and x["args"] == mutation["args"]]
        done |= {x["id"] for x in group}
        yield group


def core(chosen):
    """Few runs that name every test at least once: greedily, probes left out."""
    good = [g for g in groups([m for m in chosen if not m["probe"]])]
    tests = lambda g: {(m["opt_in"], t) for m in g for t in m["expected"]}
    open_, picked = set().union(*map(tests, good)) if good else set(), []
    while open_:
        best = max(good, key=lambda g: len(tests(g) & open_))
        picked += [m["id"] for m in best]
        open_ -= tests(best)
    return [m for m in chosen if m["id"] in picked]


def inventory():
    """{(crate, file, test function)}: all of crates/, which is where goldens and properties are."""
    found = set()
    for path in sorted(TREE.glob("crates/*/**/*.rs")):
        file = path.relative_to(TREE)
        text = path.read_text()
        for name in re.findall(r"#\[test\]\s*(?:#\[[^\]]*\]\s*)*fn (\w+)", text):
            found.add(("abkd-" + file.parts[1], str(file), name))
    return found


def covers(mutation, crate, file, test):
    if test not in mutation["expected"] or crate not in mutation["args"]:
        return False
    wgpu = "wgpu" in file or "/cube" in file
    return wgpu == (mutation["opt_in"] == "wgpu")


def report(missing_only=False):
    names = {mutation["id"]: mutation for mutation in MUTATIONS}
    expected = {(m["id"], t) for m in MUTATIONS for t in m["expected"]}
    if not missing_only:
        results = rows()
        counts = {}
        for row in results:
            counts[row["verdict"]] = counts.get(row["verdict"], 0) + 1
        print("\nverdicts:", ", ".join(f"{k} {v}" for k, v in sorted(counts.items())))
        for row in results:
            if row["verdict"] != "CAUGHT":
                print(f"  {row['verdict']:9} {row['id']}: not failed: {row['not_failed']}  {row['note']}")
        ran = {row["id"] for row in results}
        failed = {(names[r["id"]]["crate"], t) for r in results if r["id"] in names for t in r["failed"].split()}
        never = sorted({t for i, t in expected if i in ran} - {t for _, t in failed})
        print(f"expected tests that never failed ({len(never)}):", *never, sep="\n  ")
        left = [i for i in names if i not in ran]
        print(f"mutations not run yet ({len(left)}):", " ".join(left))
    bare = sorted((f, t) for c, f, t in inventory() if not any(covers(m, c, f, t) for m in MUTATIONS))
    print(f"test functions of crates/ without a mutation ({len(bare)} of {len(inventory())}):")
    for file, test in bare:
        print(f"  {file}: {test}")
    known = {t for _, _, t in inventory()}
    strange = sorted({t for _, t in expected} - known)
    for path in TREE.glob("experiments/**/*.rs"):
        text = path.read_text()
        strange = [t for t in strange if f"fn {t}(" not in text]
    print(f"expected names that no test has ({len(strange)}):", " ".join(strange))


def check():
    bad = 0
    ids = [m["id"] for m in MUTATIONS]
    if len(set(ids)) != len(ids):
        print("ids occur twice")
        bad += 1
    for group in [[m] for m in MUTATIONS] + list(groups(MUTATIONS)):
        try:
            for file, text in mutated(group).items():
                if text == (TREE / file).read_text():
                    raise ValueError(f"{group[0]['id']}: nothing changes")
        except ValueError as e:
            print("BAD", e)
            bad += 1
        seen = [t for m in group for t in m["expected"]]
        if len(group) > 1 and len(set(seen)) != len(seen):
            print("BAD batch expects a test twice:", group[0]["batch"])
            bad += 1
    print(f"{len(MUTATIONS)} mutations, {len(list(groups(MUTATIONS)))} runs, {bad} bad")
    report(missing_only=True)
    return bad


def baseline(chosen):
    """The same cargo calls on the source as it is: all tests must pass, and everything is built."""
    done = set()
    for mutation in chosen:
        key = " ".join(mutation["args"])
        if key in done:
            continue
        done.add(key)
        start = time.time()
        state, results, _ = cargo(mutation["args"], "baseline-" + re.sub(r"\W+", "-", key))
        failed = [t for t, r in results.items() if r == "FAILED"]
        seconds = round(time.time() - start)
        print(f"{state:8} {len(results):3} tests, {len(failed)} failed, {seconds:4} s: {key} {' '.join(failed)}", flush=True)
        with open(BASELINE, "a", newline="") as f:
            csv.writer(f).writerow([key, state, len(results), " ".join(failed), seconds])


def main():
    p = argparse.ArgumentParser(description=__doc__)
    p.add_argument("--only", action="append", help="this mutation alone (may be repeated; runs even if it has a result)")
    p.add_argument("--list", action="store_true")
    p.add_argument("--check", action="store_true", help="whether every old string is found as required; builds nothing")
    p.add_argument("--baseline", action="store_true", help="run the unmutated tests of each cargo call, so that all is built")
    p.add_argument("--crate", help="mutations of this crate alone, e.g. abkd-losses")
    p.add_argument("--wgpu", action="store_true", help="those of the wgpu kernel, too (another build of Burn)")
    p.add_argument("--no-batch", action="store_true", help="one mutation a run")
    p.add_argument("--core", action="store_true", help="a choice of mutations that expects each test to fail at least once")
    p.add_argument("--report", action="store_true", help="the summary alone")
    a = p.parse_args()
    prepare()
    chosen = [m for m in MUTATIONS if not a.crate or m["crate"] == a.crate]
    if a.only:
        unknown = set(a.only) - {m["id"] for m in MUTATIONS}
        if unknown:
            sys.exit(f"no such id: {' '.join(unknown)}")
        chosen = [m for m in MUTATIONS if m["id"] in a.only]
    elif not a.wgpu:
        chosen = [m for m in chosen if m["opt_in"] != "wgpu"]
    if a.core and not a.only:
        chosen = core(chosen)
    if a.list:
        for m in chosen:
            print(f"{m['id']:48} {m['file']:44} {'probe ' if m['probe'] else ''}{m['batch'] or ''}\n    {' '.join(m['expected'])}")
        return
    if a.check:
        update()
        sys.exit(1 if check() else 0)
    if a.report:
        return report()
    update()
    if a.baseline:
        return baseline(chosen)
    if not a.only:
        have = {row["id"] for row in rows()}
        chosen = [m for m in chosen if m["id"] not in have]
    for group in groups(chosen) if not (a.no_batch or a.only) else ([m] for m in chosen):
        attempt(group)
    report()


if __name__ == "__main__":
    main()
