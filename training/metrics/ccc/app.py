# SPDX-License-Identifier: Apache-2.0
"""The Space's page: a table in, the number out. `evaluate`'s own widget needs gradio 3, which numpy 2 left behind."""

import gradio
from ccc import CCC

metric = CCC()
columns = [*metric.features]


def compute(rows):
    return metric.compute(**dict(zip(columns, zip(*rows, strict=True), strict=True)))


table = gradio.Dataframe(headers=columns, datatype="number", type="array")
gradio.Interface(compute, table, "json", title="CCC", description=metric.info.description).launch()
