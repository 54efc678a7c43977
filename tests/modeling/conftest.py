# SPDX-License-Identifier: Apache-2.0
import pytest
from common_skips import is_listed


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
