#!/usr/bin/env bash
# Runs a table on a real Slurm of one node, on this machine, and compares its bits with those of the local executor. Needs root
# and Debian's packages slurm-wlm and munge.
#
#   tools/slurm/test.sh ABKD                    a table of seconds; also a cancelled and a failing task
#   tools/slurm/test.sh ABKD table1 tiny        a whole experiment of the project
set -euo pipefail
abkd=$(realpath "$1")
root=$(realpath "$(dirname "$0")/../..")
experiment=${2:-}
profile=${3:-}
for tool in munged slurmctld slurmd sbatch; do
    command -v "$tool" > /dev/null || { echo "there is no $tool: apt-get install slurm-wlm munge" >&2; exit 1; }
done

work=$(mktemp -d /tmp/abkd-slurm-XXXXXX)
export SLURM_CONF=$work/slurm.conf
stop() {
    for daemon in slurmd ctld; do
        [ -e "$work/$daemon.pid" ] || continue
        pid=$(cat "$work/$daemon.pid")
        kill "$pid" 2> /dev/null
        while kill -0 "$pid" 2> /dev/null; do sleep 0.2; done
    done
}
trap stop EXIT
mkdir -p "$work"/{state,spool,log}
cat > "$SLURM_CONF" <<CONF
ClusterName=test
SlurmctldHost=$(hostname -s)(127.0.0.1)
AuthType=auth/munge
SlurmUser=root
SlurmdUser=root
StateSaveLocation=$work/state
SlurmdSpoolDir=$work/spool
SlurmctldPidFile=$work/ctld.pid
SlurmdPidFile=$work/slurmd.pid
SlurmctldLogFile=$work/log/ctld.log
SlurmdLogFile=$work/log/slurmd.log
ProctrackType=proctrack/linuxproc
TaskPlugin=task/none
SelectType=select/cons_tres
SelectTypeParameters=CR_Core
ReturnToService=2
KillWait=5
NodeName=$(hostname -s) NodeAddr=127.0.0.1 CPUs=$(nproc) RealMemory=2000 State=UNKNOWN
PartitionName=main Nodes=$(hostname -s) Default=YES MaxTime=INFINITE State=UP
CONF
pgrep munged > /dev/null || { mkdir -p /run/munge && chown munge: /run/munge && su -s /bin/sh munge -c /usr/sbin/munged; }
slurmctld
slurmd
for _ in $(seq 60); do sinfo -h -o %t 2> /dev/null | grep -q idle && break; sleep 1; done
sinfo -h -o %t | grep -q idle || { cat "$work"/log/*; exit 1; }

if [ -z "$experiment" ]; then
    experiment=$work/small.toml
    profile=$work/micro.toml
    cat > "$experiment" <<'TOML'
name = "small"
title = "Two losses"
kind = "table"
datasets = ["dolly", "vicuna"]
seeds = [10, 20]
references = true
[[rows]]
label = "FKLD"
divergence = "fkld"
[[rows]]
label = "SeqKD"
method = "seqkd"
TOML
    cat > "$profile" <<'TOML'
name = "micro"
description = "seconds"
training_seeds = [1, 2]
[data]
source = "embedded"
train = 480
test = 6
max_prompt_length = 96
max_length = 192
[teacher.gpt2]
vocab_size = 1024
n_positions = 192
n_embd = 32
n_layer = 2
n_head = 2
[student.gpt2]
vocab_size = 1024
n_positions = 192
n_embd = 16
n_layer = 1
n_head = 2
[teacher_sft]
epochs = 40
batch_size = 8
learning_rate = 2e-3
[student_sft]
epochs = 1
batch_size = 8
learning_rate = 2e-3
[distill]
epochs = 2
batch_size = 8
learning_rate = 1e-3
[validation]
examples = 6
max_new_tokens = 12
[evaluation]
max_new_tokens = 12
TOML
    small=1
fi

run() { # FOLDER [OPTION...]
    local folder=$1
    shift
    "$abkd" run "$experiment" --profile "$profile" --root "$root" \
        --runs "$folder/runs" --results "$folder/results" --figures "$folder/figures" "$@"
}
queue() { squeue -h --array -o "%i %T %j"; }
wait_for_queue() {
    for _ in $(seq "${PATIENCE:-3600}"); do [ -z "$(queue)" ] && return; sleep 1; done
    echo "the queue does not empty:" >&2; queue >&2; exit 1
}
fail() { echo "FAILED: $*" >&2; find "$work" -name '*.log' -path '*slurm*' -exec tail -n 3 {} + >&2; exit 1; }

begun=$(date +%s)
run "$work/local" > /dev/null
echo "local: $(($(date +%s) - begun)) s"

if [ -n "${small:-}" ]; then
    # The teacher is cancelled in the middle; what needs it does not start.
    run "$work/slurm" --executor slurm
    folder() { ls -d "$work"/slurm/runs/*/"$1"*; }
    for _ in $(seq 600); do ls -d "$(folder teacher-sft)"/state-* > /dev/null 2>&1 && break; sleep 0.1; done
    job=$(awk '/^teacher-sft/ {print $2}' "$work"/slurm/runs/*/slurm/jobs)
    ls -d "$(folder teacher-sft)"/state-* > /dev/null || fail "the teacher has no checkpoint yet"
    scancel "$job"
    wait_for_queue
    [ ! -e "$(folder teacher-sft)/result.json" ] || fail "the teacher was to be cancelled"
    [ -e "$(folder student-sft)/result.json" ] || fail "the student does not need the teacher"
    [ ! -e "$(folder distill-fkld-t1)/result.json" ] || fail "a student was distilled without its teacher"
    # Submitted again, the run goes on; only a task whose task.json was changed after planning fails.
    broken=$(folder distill-fkld-t1)
    run "$work/slurm" --executor slurm --dry-run > /dev/null
    run "$work/slurm" --executor slurm
    sed -i 's/"batch_size": 8/"batch_size": 4/' "$broken/task.json"
    wait_for_queue
    grep -rq "resumes after step" "$work"/slurm/runs/*/slurm/*.log || fail "the teacher did not go on from its checkpoint"
    [ -e "$(folder distill-fkld-t2)/result.json" ] || fail "a failed task stops those that do not need it"
    [ ! -e "$broken/result.json" ] || fail "a changed task was run"
    [ "$(ls -d "$work"/slurm/runs/*/evaluate-fkld-t1-*/result.json 2> /dev/null | wc -l)" = 0 ] || fail "an evaluation without its student"
    echo "cancelled, failed and gone on"
fi
begun=$(date +%s)
run "$work/slurm" --executor slurm
wait_for_queue
echo "slurm: $(($(date +%s) - begun)) s"
diff -r "$work/local/results" "$work/slurm/results" || fail "the results differ"
for folder in "$work"/local/runs/*/*/; do
    name=$(basename "$folder")
    for file in student/model.safetensors answers.jsonl; do
        [ ! -e "$folder/$file" ] || cmp "$folder/$file" "$work"/slurm/runs/*/"$name/$file" || fail "$name/$file differs"
    done
done
echo "the same bits"
stop
rm -rf "$work"
