"""Runs of two processes, which meet over the network as those of two hosts would."""

import json
import os
import queue
import re
import signal
import subprocess
import sys
import time
from pathlib import Path

import jax
import numpy as np
import pytest
import tiny

from samon_jax.errors import UserError
from samon_jax.processes import cluster, local, messages, watch
from samon_jax.processes.cluster import Given, complete
from samon_jax.training import compare, follower
from samon_jax.training.run import set_up
from samon_jax.workdir import checkpoints

HERE = Path(__file__).parent
CONFIG = """
import tiny
def get_config():
    return tiny.config(num_devices=0, epochs=2, sam__rho=0.1)
"""


def start(folder, processes=2, *, arguments=(), moment="", devices=1, config=CONFIG, **more):
    """Starts a run in `folder`, with the output of each process in a file of its own."""
    folder.mkdir(exist_ok=True)
    (folder / "config.py").write_text(config)
    paths = os.pathsep.join([str(HERE), str(HERE.parents[1])])
    command = [
        sys.executable,
        str(HERE / "cluster_main.py"),
        f"--config={folder / 'config.py'}",
        f"--workdir={folder / 'run'}",
        *arguments,
    ]
    return local.start(
        command,
        processes,
        devices=devices,
        environment={"PYTHONPATH": paths, "MOMENT": moment, **more},
        stdout=(folder / "output").open("a"),
        stderr=(folder / "errors").open("a"),
    )


def finish(running, timeout=200):
    """The statuses of all processes; none may outlive the test."""
    try:
        return [process.wait(timeout) for process in running]
    finally:
        for process in running:
            process.kill()
            process.wait()


def leaves(folder):
    return checkpoints.restore(folder / "run").leaves


@pytest.fixture(scope="module")
def undisturbed(tmp_path_factory):
    folder = tmp_path_factory.mktemp("undisturbed")
    assert finish(start(folder)) == [0, 0], (folder / "errors").read_text()
    return folder


def test_two_processes_do_what_two_devices_do(undisturbed, tmp_path):
    assert finish(start(tmp_path, 1, devices=2)) == [0]
    ours, theirs = leaves(undisturbed), leaves(tmp_path)
    assert set(ours) == set(theirs)
    for name in ours:  # one reduction of all leaves is compiled otherwise than one of each
        np.testing.assert_allclose(ours[name], theirs[name], rtol=1e-5, atol=1e-6, err_msg=name)
    flops = [
        json.loads((folder / "run/summary.json").read_text())["flops_per_step"]
        for folder in (undisturbed, tmp_path)
    ]
    assert flops[0] == pytest.approx(flops[1], rel=1e-3)


@pytest.mark.slow
@pytest.mark.parametrize("fsdp", [1, 2])
def test_so_they_do_under_jit_and_with_divided_parameters(tmp_path, fsdp):
    more = f"sam__rho=0.1, devices__parallel='jit', devices__fsdp={fsdp}"
    config = "from samon_jax.training import devices\ndevices._DIVIDED_ELEMENTS = 16\n"
    config += CONFIG.replace("sam__rho=0.1", more)
    assert finish(start(tmp_path / "two", config=config)) == [0, 0]
    assert finish(start(tmp_path / "one", 1, devices=2, config=config)) == [0]
    ours, theirs = leaves(tmp_path / "two"), leaves(tmp_path / "one")
    for name in ours:
        np.testing.assert_allclose(ours[name], theirs[name], rtol=1e-5, atol=1e-6, err_msg=name)


def test_one_process_writes(undisturbed):
    output = (undisturbed / "output").read_text()
    assert output.count("epoch 1/2") == output.count("finished:") == 1
    assert not (undisturbed / "run/.lock").exists()


def test_sigterm_to_one_stops_all_and_the_restart_continues(undisturbed, tmp_path):
    assert finish(start(tmp_path, moment="1:SIGTERM:5")) == [143, 143]
    step = checkpoints.saved_steps(tmp_path / "run")[-1]
    assert 4 <= step < 22
    assert "SIGTERM: saved a checkpoint at step" in (tmp_path / "output").read_text()
    assert finish(start(tmp_path)) == [0, 0]
    ours, theirs = leaves(undisturbed), leaves(tmp_path)
    for name in ours:
        np.testing.assert_array_equal(ours[name], theirs[name], err_msg=name)


def test_under_slurm_an_exception_of_one_ends_all(tmp_path):
    running = start(tmp_path, moment="1:raise:5", FAKE_SLURM=str(os.getpid()))
    assert finish(running) == [1, 1]
    errors = (tmp_path / "errors").read_text()
    lines = [line for line in errors.splitlines() if "the test wants it" in line]
    assert len(lines) == 2  # its own, and what process 0 says about it
    assert all("error: process 1 on " in line for line in lines)


def test_processes_with_different_settings_say_which(tmp_path):
    config = CONFIG.replace("0.1)", '0.1 + int(os.environ["JAX_PROCESS_ID"]) / 10)')
    assert finish(start(tmp_path, config=f"import os{config}")) == [2, 2]
    errors = (tmp_path / "errors").read_text()
    assert "the processes do not agree on sam.rho: 0.1 is that of process 0 on" in errors
    assert "0.2 that of process 1 on" in errors
    assert not (tmp_path / "run").exists()


def test_a_coordinator_that_is_not_there(tmp_path):
    arguments = ["--coordinator_address=localhost:1", "--process_id=1", "--coordinator_timeout=1"]
    statuses = finish(start(tmp_path, 2, arguments=arguments)[1:])
    assert statuses == [2]
    errors = (tmp_path / "errors").read_text()
    assert "coordinator_address=localhost:1 cannot be reached within 1 s: Connection ref" in errors


def test_a_process_that_does_not_come(tmp_path):
    arguments = ["--num_processes=2", "--coordinator_timeout=1"]
    assert finish(start(tmp_path, 1, arguments=arguments)) == [2]
    (line,) = (tmp_path / "errors").read_text().splitlines()
    assert line.startswith("error: the 2 processes did not all arrive at coordinator_address=local")
    assert line.endswith(" within 1 s")


@pytest.mark.parametrize(
    ("given", "variables", "processes"),
    [
        (Given(), {}, None),
        (Given(distributed=False), {"SLURM_STEP_NUM_TASKS": "2"}, None),
        (Given(), {"SLURM_STEP_NUM_TASKS": "1"}, None),
        (Given(), {"SLURM_STEP_NUM_TASKS": "2"}, 0),
        (Given(), {"OMPI_COMM_WORLD_SIZE": "2"}, 0),
        (Given(True), {}, 0),
        (Given(processes=2), {"JAX_NUM_PROCESSES": "3"}, 2),
        (Given(), {"JAX_NUM_PROCESSES": "3", "JAX_PROCESS_ID": "2"}, 3),
    ],
)
def test_who_is_one_of_several(given, variables, processes):
    found = complete(given, variables)
    assert found.distributed is (processes is not None)
    if processes:
        assert found.processes == processes


@pytest.mark.parametrize(
    ("given", "variables", "message"),
    [
        (
            Given(True, "node1", 2, 0),
            {},
            "--coordinator_address=node1 is not allowed; it must be h",
        ),
        (Given(True, "node1:x", 2, 0), {}, "--coordinator_address=node1:x is not allowed"),
        (Given(True, "node1:1", 2, 2), {}, "--process_id=2 is not allowed; it must be 0 to 1"),
        (Given(True, "node1:1", 0, 0), {}, "--num_processes=0 is not allowed"),
        (Given(timeout=0), {}, "--coordinator_timeout=0 is not allowed; it must be at least 1"),
        (Given(), {"JAX_NUM_PROCESSES": "two"}, "JAX_NUM_PROCESSES='two' is not allowed"),
    ],
)
def test_bad_addresses(given, variables, message):
    with pytest.raises(UserError) as error:
        complete(given, variables)
    assert message in str(error.value)


PROGRAM = """
import jax
import jax.extend
import samon_jax.models, tiny
from samon_jax.processes import cluster
from samon_jax.training import run

samon_jax.models.create = tiny.create
jax.config.update("jax_enable_compilation_cache", False)
jax.config.update("jax_disable_most_optimizations", True)
texts = []
for given in (cluster.ALONE, cluster.complete(cluster.Given())):
    with cluster.joined(given):
        assert jax.distributed.is_initialized() == given.distributed
        trained = run.set_up(tiny.config(num_devices=2, sam__rho=0.1))
        call = tiny.first_calls(trained)[0]
        resident = jax.tree.map(
            lambda x: jax.ShapeDtypeStruct(x.shape, x.dtype), trained.source.resident
        )
        lowered = trained.programs.step(call.kind).lower((trained.template(), resident), call.raw)
        texts.append(lowered.compile().as_text())
        jax.extend.backend.clear_backends()
    run._programs.cache_clear()
assert texts[0] == texts[1]
print(len(texts[0]))
"""


@pytest.mark.slow  # compiles it twice, in a process of its own
def test_a_cluster_of_one_process_compiles_the_same_program(tmp_path):
    paths = os.pathsep.join([str(HERE), str(HERE.parents[1])])
    (one,) = local.start(
        [sys.executable, "-c", PROGRAM],
        1,
        devices=2,
        environment={"PYTHONPATH": paths},
        stdout=subprocess.PIPE,
        stderr=(tmp_path / "errors").open("w"),
    )
    length = one.communicate(timeout=200)[0].split()[-1]
    assert one.returncode == 0, (tmp_path / "errors").read_text()
    assert int(length) > 10_000


THREE = """
import os, signal, sys, time
from samon_jax.processes import cluster, watch
watch.DEAD_SECONDS = 2.0
with cluster.joined(cluster.complete(cluster.Given())):
    if os.environ["JAX_PROCESS_ID"] == "1" and sys.argv[1] == "raises":
        cluster.fail("out of ideas", 3)
    if os.environ["JAX_PROCESS_ID"] == "1":
        time.sleep(2)
        os.kill(os.getpid(), signal.SIGKILL)
    time.sleep(60)
"""


@pytest.mark.parametrize(
    ("what", "statuses", "line"),
    [("raises", [3, 3, 3], ": out of ideas"), ("dies", [1, -signal.SIGKILL, 1], " has given no")],
)
def test_of_three_processes_both_others_say_which_has_ended(what, statuses, line):
    """Process 0, with which the store goes, is the last to end."""
    three = local.start(
        [sys.executable, "-c", THREE, what],
        3,
        environment={"PYTHONPATH": str(HERE.parents[1])},
        stderr=subprocess.PIPE,
    )
    errors = [process.communicate(timeout=60)[1] for process in three]
    assert [process.returncode for process in three] == statuses, errors
    for i in (0, 2):
        assert re.search(rf"^error: process 1 on \S+{line}", errors[i], re.MULTILINE), errors[i]


def test_processes_that_compare_otherwise_are_told(monkeypatch, tmp_path):
    """Their configs are compared before any run, whose config says nothing of it."""
    facts = []
    monkeypatch.setattr(compare, "agree", lambda what, found: facts.append((what, found())))
    config = tiny.config(compare__seeds=2, compare__methods={"SAM": {"rho": 0.1}})
    monkeypatch.setattr(compare, "train_all", lambda *_: [UserError("enough")])
    with pytest.raises(UserError, match="enough"):
        compare.compare(config, tmp_path)
    assert [what for what, _ in facts] == ["the machines", "the settings"]
    assert facts[1][1]["compare.seeds"] == 2


@pytest.mark.parametrize(
    ("error", "lost"),
    [
        (ConnectionResetError("Connection reset by peer"), False),
        (jax.errors.JaxRuntimeError("Gloo: Connection closed by peer"), True),
    ],
)
def test_only_what_jax_says_may_mean_a_lost_process(monkeypatch, error, lost):
    monkeypatch.setattr(cluster.jax.distributed, "is_initialized", lambda: True)
    monkeypatch.setattr(cluster.distributed.global_state, "num_processes", 2)
    assert cluster.is_lost(error) is lost


class Store:
    """A coordinator's store that answers until it hangs."""

    def __init__(self, hangs):
        self.hangs, self.sets = hangs, 0

    def key_value_set(self, key, value, allow_overwrite=False):
        self.sets += 1
        while self.hangs and self.sets > 2:
            time.sleep(0.01)

    def key_value_dir_get(self, key):
        return [(f"{key}0", '{"beat": 1, "host": "node0"}')] if "alive" in key else []


@pytest.mark.parametrize(
    ("hangs", "line"), [(True, "process 0, at which"), (False, "process 0 on node0 has given no")]
)
def test_a_process_that_hangs_is_named(hangs, line, monkeypatch):
    ends = queue.Queue()
    monkeypatch.setattr(watch, "BEAT_SECONDS", 0.02)
    monkeypatch.setattr(watch, "DEAD_SECONDS", 0.5)
    monkeypatch.setattr(watch, "end", lambda *what: ends.put(what))
    store = Store(hangs)
    ended = watch.start(store, 1, 2)
    said, status = ends.get(timeout=10)
    ended.set()
    store.hangs = False
    assert said.startswith(line)
    assert status == 1


def test_alone_nothing_happens():
    with cluster.joined(Given(distributed=False)):
        messages.tell("anything", 1)
    cluster.fail("a line", 3)
    assert cluster.name() == ""
    with cluster.stop_requests() as must_stop:
        assert must_stop() is None
        os.kill(os.getpid(), signal.SIGTERM)
        assert must_stop() == signal.SIGTERM


def test_numbers_of_calls_rise_from_one_run_to_the_next(monkeypatch):
    """A signal between two runs stops all processes at the number after the highest so far."""
    numbers = []
    monkeypatch.setattr(cluster.jax, "process_count", lambda: 2)
    monkeypatch.setattr(
        cluster.multihost_utils, "reached_preemption_sync_point", lambda n: numbers.append(n)
    )
    for _ in range(2):
        with cluster.stop_requests() as must_stop:
            assert must_stop() is must_stop() is None
    assert numbers == list(range(numbers[0], numbers[0] + 4))


def test_other_weights_are_noticed():
    run = set_up(tiny.config())
    states = [run.devices.place(run.initial_state()) for _ in range(2)]
    facts = [follower.weights(run, state) for state in states]
    assert facts[0] == facts[1]
    params = jax.tree.map(lambda x: x + 1e-6, states[0].params)
    assert follower.weights(run, states[0].replace(params=params)) != facts[0]


@pytest.mark.parametrize(
    "given", [Given(process=1), Given(process=0, processes=1), Given(processes=0)]
)
def test_flags_that_would_be_ignored(given):
    with pytest.raises(UserError, match=r"--process_id|--num_processes=0"):
        complete(given, {})
