"""Training from shards: the same as from a ZIP in the same order, and resumed bit for bit in one and more processes."""

from __future__ import annotations

import json
import zipfile
from pathlib import Path

import pytest

from media.convert import write_dataset
from media.dataset import ImageDataset
from media.faces import faces
from media.loader import EndlessSampler, endless_batches
from media.shard_rows import rows
from media.shard_stream import ShardStream
from metrics import Evaluator
from tests.scripts import TINY, done, launch, mistake, script_here
from tests.training.killing import evaluate
from tests.training.test_loop import assert_same
from tests.training.test_resume import TINY as SMALL
from tests.training.test_resume import assert_same_run, runs, tiny, train_until  # noqa: F401 (a fixture)
from training import loop
from training.gan import GANTrainer, to_float
from training.options import resolve
from training.runs import find_state, load_state


@pytest.fixture(scope="module")
def tars(tmp_path_factory) -> str:
    """60 faces with labels, in tars of about 20."""
    folder = tmp_path_factory.mktemp("data") / "tars"
    write_dataset(folder, faces(60, 16, seed=0), shard_bytes=60_000)
    assert len(list(folder.iterdir())) >= 3
    return f"{folder}/*.tar"


@pytest.fixture
def same_zip(tars, tmp_path) -> Path:
    """The images of the tars, in their order."""
    samples = [row for path in sorted(Path(tars).parent.glob("*.tar")) for row in rows(str(path))]
    with zipfile.ZipFile(tmp_path / "same.zip", "w") as archive:
        for i, (data, _) in enumerate(samples):
            archive.writestr(f"{i:08d}.png", data)
        labels = [[f"{i:08d}.png", label] for i, (_, label) in enumerate(samples)]
        archive.writestr("dataset.json", json.dumps({"labels": labels}))
    return tmp_path / "same.zip"


@pytest.fixture(autouse=True)
def fast_figures(monkeypatch):
    monkeypatch.setattr(Evaluator, "evaluate", evaluate)
    monkeypatch.setattr(loop, "StopSignal", loop.StopSignal)  # to be put back


@pytest.mark.parametrize("mirror", [False, True])
def test_a_training_from_tars_is_that_from_a_zip_in_the_same_order(tars, same_zip, tmp_path, mirror):
    data = ImageDataset(tars, use_labels=True, mirror=mirror)

    class ShardOrder(EndlessSampler):
        def __iter__(self):
            stream = ShardStream(data, seed=self.seed, step=0, share=8, rank=0, world_size=1, workers=0)
            return stream.lane(0).indices(self.start)

    class ZIPTrainer(GANTrainer):
        def batches(self, step):
            config = self.config
            for images, c in endless_batches(
                self.dataset, batch=config.batch, step=step, seed=config.seed, workers=0, device=self.device,
                sampler=ShardOrder,
            ):  # fmt: skip
                yield [(to_float(images), c)]

    states = []
    for trainer, path in ((GANTrainer, tars), (ZIPTrainer, same_zip)):
        options = {
            **SMALL,
            "data": str(path),
            "cond": True,
            "mirror": mirror,
            "batch": 8,
            "kimg": 0.128,
            "metrics": ["swd50"],
        }
        config = resolve({**options, "workers": 0, "procs": 1}, 16, 3, data.c_dim, 0)
        (run := tmp_path / trainer.__name__).mkdir()
        assert loop.train(trainer, config, run)
        states.append(load_state(find_state(run)))
    assert data.c_dim > 1
    assert_same(*states)


@pytest.mark.parametrize("procs, workers", [(1, 0), (1, 2), pytest.param(2, 1, marks=pytest.mark.slow)])
def test_a_run_on_tars_that_is_stopped_goes_on_bit_for_bit(runs, tars, procs, workers):  # noqa: F811
    straight, stopped = runs
    config = tiny(tars, procs=procs, workers=workers)
    launch(train_until, 0, config, straight, processes=procs)
    launch(train_until, 5, config, stopped, processes=procs)
    assert load_state(find_state(stopped))["step"] == 5
    launch(train_until, 0, config, stopped, find_state(stopped), processes=procs)
    assert_same_run(straight, stopped)


def test_the_script_trains_from_tars_and_resumes_with_the_same_workers_only(tars, tmp_path):
    train = ["train.py", "--data", tars, "--cond", "--outdir", tmp_path / "runs", *TINY, "--metrics", "swd50", "--kimg"]
    done(script_here(*train, "0.016"))
    (run,) = (tmp_path / "runs").iterdir()
    assert run.name == "00000-tars-adaconv-demo-cpu"
    resume = ["train.py", "--resume", run, "--kimg", "0.024"]
    assert "workers: 0 in the run, 2 asked" in mistake(*resume, "--workers", 2)
    done(script_here(*resume))
    assert (run / "snapshot-000000.024.safetensors").exists()
