"""Where a run writes: one key moves everything, and pictures follow the results."""

from pathlib import Path

import pytest

from tests.helpers import tiny
from utils.config import load_config

MVTEC = tiny.ROOT / "experiments/MVTec-AD/config.yaml"
RECON = "net.reconstruction.kwargs.save_recon"


def outputs(config) -> list[Path]:
    paths = [config.saver.save_dir, config.saver.log_dir, config.saver.load_path, config.evaluator.save_dir]
    paths += [config.evaluator.vis_compound.save_dir, config.dataset.feature_cache.dir, config.net[2].kwargs.save_recon.save_dir]
    return [Path(path) for path in paths]


def test_run_dir_moves_all_that_a_run_writes_and_nothing_that_it_reads(tmp_path):
    before, after = (load_config(MVTEC, [f"{RECON}.save_dir=features", *more]) for more in ((), (f"run_dir={tmp_path}/trial",)))
    moved = [tmp_path / "trial" / path.relative_to(MVTEC.parent) for path in outputs(before)]
    assert outputs(after) == moved
    assert after.dataset.train.meta_file == before.dataset.train.meta_file
    assert Path(load_config(MVTEC, ["run_dir=trial"]).saver.save_dir) == MVTEC.parent / "trial/checkpoints"
    assert load_config(MVTEC, ["run_dir=trial", f"saver.save_dir={tmp_path}"]).saver.save_dir == str(tmp_path)


@pytest.mark.parametrize(
    ("overrides", "pictures"),
    [
        ([], "result/vis_compound"),
        (["evaluator.save_dir=trial"], "trial/vis_compound"),
        (["evaluator.save_dir=trial", "evaluator.vis_compound.save_dir=own"], "own"),
    ],
)
def test_pictures_follow_the_results(overrides, pictures):
    assert Path(load_config(MVTEC, overrides).evaluator.vis_compound.save_dir) == MVTEC.parent / pictures
