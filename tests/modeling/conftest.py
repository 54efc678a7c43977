# SPDX-License-Identifier: Apache-2.0
import pytest
from common_skips import is_listed
from PIL import Image
from video_files import picture, write_video


def pytest_configure(config):
    # --strict-markers asks for those of transformers' common suite, too.
    for name in ("accelerate", "flash_attn", "flash_attn_3", "flash_attn_4", "torch_compile"):
        suffix = "tests" if name == "accelerate" else "test"
        config.addinivalue_line("markers", f"{name}_{suffix}: see transformers' tests/test_modeling_common.py")


@pytest.hookimpl(wrapper=True)
def pytest_runtest_makereport(item, call):
    report = yield
    if report.skipped and item.path.name == "test_transformers_common.py":
        reason = str(report.longrepr[2]).removeprefix("Skipped: ")
        if not is_listed(reason):
            report.outcome, report.longrepr = "failed", f"common_skips.py does not list this skip: {reason}"
    return report


@pytest.fixture(scope="module")
def clip(tmp_path_factory):
    return write_video(tmp_path_factory.mktemp("clip") / "clip.mp4")


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    folder = tmp_path_factory.mktemp("frames")
    for index in range(40):
        Image.fromarray(picture(index)).save(folder / f"{index}.png")  # 10.png would sort before 2.png as text
    (folder / "notes.txt").write_text("not a frame")
    (folder / ".hidden.png").write_text("not a frame either")
    return folder
