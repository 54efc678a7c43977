# SPDX-License-Identifier: Apache-2.0
"""FSDP 2, as training/machines/four_nodes_fsdp.yaml asks for it, in two processes without a GPU.

accelerate shards on GPUs only. Run as a script, which the test does in each process, this file tells it that two CPU
processes are two GPUs; what then shards and computes is torch's own FSDP.
"""

import json
import os
import signal
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
import yaml
from accelerate import PartialState
from accelerate.state import AcceleratorState, GradientState
from accelerate.utils import DistributedType
from safetensors.torch import load_file
from transformers import AutoModel

from training import train
from training.recipe import OptimRecipe, dump_recipe
from training.sharding import check_sharding, copy_to_shard, gather_weights

ROOT = Path(__file__).parents[2]
MACHINES = ROOT / "training" / "accelerate" / "four_nodes_fsdp.yaml"
# Weights that learn beside weights that do not, in one FSDP group and among groups; the rest of a recipe for each.
RECIPES = {
    "temporal": ["run.checkpoint_every=1"],
    "towers": [
        'optim.learning_rates={"text_model.*": null, ".*bias": null, ".*": 1.0e-2}',
        "optim.max_grad_norm=0.1",
        "optim.chunk_size=2",
        "run.gradient_checkpointing=true",
    ],
    "prompts": [
        "model.architecture=EmoCLIPForPromptClassification",
        'optim.learning_rates={"(vision_model|text_model|visual_projection|text_projection).*": null, ".*": 1.0e-2}',
        "model.config.prompt_logit_scale=null",
        "data.text=class_name",
        "optim.optimizer=adamw",
    ],
}


def environment():
    """What `accelerate launch --config_file` sets, with its default that only the main process reads weights."""
    fields = yaml.safe_load(MACHINES.read_text())["fsdp_config"]
    fsdp = {name.upper().replace("LAYER_CLS", "CLS"): str(value) for name, value in fields.items()}
    fsdp |= {"ACCELERATE_USE_FSDP": "true", "FSDP_CPU_RAM_EFFICIENT_LOADING": "true", "ACCELERATE_USE_CPU": "true"}
    return os.environ | fsdp | {"OMP_NUM_THREADS": "1", "PYTHONPATH": str(ROOT)}


@pytest.fixture(scope="module")
def folders(make_recipe, tmp_path_factory):
    """Of each recipe: its run in one process; and its run in two with FSDP, stopped after two steps and resumed."""
    folders, given = {}, []
    for name, overrides in RECIPES.items():
        one, two = (tmp_path_factory.mktemp(f"{name}_{kind}") for kind in ("one", "fsdp"))
        train.run(make_recipe(one, *overrides))
        given.append(two / "given.yaml")
        given[-1].write_text(dump_recipe(make_recipe(two, *overrides), two))
        folders[name] = one, two
    launcher = "-m torch.distributed.run --nproc_per_node=2 --standalone".split()
    done = subprocess.run(
        [sys.executable, *launcher, __file__, *map(str, given)], env=environment(), capture_output=True, text=True
    )
    assert done.returncode == 0, done.stderr[-6000:]
    return folders


@pytest.mark.slow
@pytest.mark.parametrize("name", RECIPES)
def test_two_sharded_processes_are_one(folders, name):
    one, two = folders[name]
    weights, sharded = load_file(one / "model.safetensors"), load_file(two / "model.safetensors")
    assert {n: w.shape for n, w in weights.items()} == {n: w.shape for n, w in sharded.items()}
    differences = {n: (w - sharded[n]).abs().max().item() for n, w in weights.items()}
    assert max(differences.values()) < 1e-5, differences
    metrics, with_fsdp = (json.loads((folder / "metrics.json").read_text()) for folder in (one, two))
    for record, other in zip(metrics["history"], with_fsdp["history"], strict=True):
        assert record == pytest.approx(other, abs=1e-5)
    for key in ("parameters", "trained_parameters"):
        assert metrics[key] == with_fsdp[key]
    assert metrics["final"]["own"]["war"] == with_fsdp["final"]["own"]["war"]


@pytest.mark.slow
@pytest.mark.parametrize("name", RECIPES)
def test_what_fsdp_leaves_loads_anywhere(folders, name):
    _, folder = folders[name]
    model = AutoModel.from_pretrained(folder)
    assert type(model).__name__ == json.loads((folder / "config.json").read_text())["architectures"][0]
    assert not type(model).__name__.startswith("FSDP") and model.logit_scale.ndim == 0
    saved = load_file(folder / "model.safetensors")
    assert all(torch.equal(weight, saved[n]) for n, weight in model.state_dict().items())


def accelerator(version: int) -> SimpleNamespace:
    plugin = SimpleNamespace(cpu_ram_efficient_loading=True, mixed_precision_policy="bf16")
    return SimpleNamespace(
        distributed_type=DistributedType.FSDP, is_fsdp2=version == 2, state=SimpleNamespace(fsdp_plugin=plugin)
    )


def test_an_average_of_sharded_weights_is_refused():
    with pytest.raises(ValueError, match=r"optim.ema=0.5 .* FSDP"):
        check_sharding(SimpleNamespace(optim=OptimRecipe(ema=0.5)), accelerator(2))


def test_fsdp_1_is_refused():
    with pytest.raises(ValueError, match="fsdp_version: 2"):
        check_sharding(SimpleNamespace(optim=OptimRecipe()), accelerator(1))


def test_every_process_reads_all_weights_and_scales_stay_in_32_bits(monkeypatch):
    monkeypatch.setenv("FSDP_CPU_RAM_EFFICIENT_LOADING", "true")
    given = accelerator(2)
    check_sharding(SimpleNamespace(optim=OptimRecipe()), given)
    assert os.environ["FSDP_CPU_RAM_EFFICIENT_LOADING"] == "false"
    assert not given.state.fsdp_plugin.cpu_ram_efficient_loading
    assert given.state.fsdp_plugin.mixed_precision_policy is None


def test_the_copy_to_shard_has_no_scalars_and_computes_as_accelerate_does():
    model = torch.nn.Sequential(torch.nn.Linear(2, 2))
    model.scale = torch.nn.Parameter(torch.tensor(3.0), requires_grad=False)
    copied = copy_to_shard(model, SimpleNamespace(autocast=lambda: torch.autocast("cpu", torch.bfloat16)))
    assert copied(torch.ones(1, 2)).dtype == torch.bfloat16 and model(torch.ones(1, 2)).dtype == torch.float32
    assert copied.scale.tolist() == [3.0] and not copied.scale.requires_grad and model.scale.ndim == 0
    with torch.no_grad():
        copied[0].weight.fill_(7.0)
    assert not (model[0].weight == 7.0).any()
    gather_weights(copied, model)
    assert (model[0].weight == 7.0).all() and model.scale.item() == 3.0


# From here on the script.


def shard_on_cpus():
    """Makes accelerate take processes on the CPU for ones on GPUs, and the second one's random weights for others."""
    real_init, real_build = PartialState.__init__, train.build

    def init(self, *arguments, **options):
        real_init(self, *arguments, **options)
        if self.distributed_type == DistributedType.MULTI_CPU:
            self.distributed_type = DistributedType.MULTI_GPU  # which AcceleratorState makes FSDP

    @torch.no_grad()
    def build(*arguments):
        experiment = real_build(*arguments)
        for parameter in experiment.trained.parameters() if PartialState().process_index == 1 else ():
            parameter += 1.0
        return experiment

    PartialState.__init__, train.build = init, build
    torch.distributed.destroy_process_group = lambda *_: None  # until the last recipe is done


def stop_and_resume(recipe: str):
    """Trains; the second process gets a SIGTERM in its second step, and then both go on."""
    real_step, steps = train.train_step, []

    def step(*arguments):
        steps.append(1)
        if len(steps) == 2 and PartialState().process_index == 1:
            os.kill(os.getpid(), signal.SIGTERM)
        return real_step(*arguments)

    for arguments in [recipe], [recipe, "--resume"]:
        AcceleratorState._reset_state(True)
        GradientState._reset_state()
        train.train_step = step
        try:
            train.main(arguments)
        except SystemExit as stopped:
            assert stopped.code == 143 and len(steps) == 2 and len(arguments) == 1, (stopped.code, steps, arguments)
        else:
            assert AcceleratorState().is_fsdp2 and len(steps) > 2 and len(arguments) == 2
    train.train_step = real_step


if __name__ == "__main__":
    shard_on_cpus()
    for given in sys.argv[1:]:
        stop_and_resume(given)
