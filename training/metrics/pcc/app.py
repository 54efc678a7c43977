# SPDX-License-Identifier: Apache-2.0
"""Gradio app of the metric's Space. `evaluate`'s own widget needs gradio 3, which does not work with numpy 2."""

import gradio
from pcc import PCC

metric = PCC()
columns = [*metric.features]


def compute(rows):
    return metric.compute(**dict(zip(columns, zip(*rows, strict=True), strict=True)))


table = gradio.Dataframe(headers=columns, datatype="number", type="array")
gradio.Interface(compute, table, "json", title="PCC", description=metric.info.description).launch()
