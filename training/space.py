# SPDX-License-Identifier: Apache-2.0
"""An exported model -> a folder that is a Space: the app, the model and an example; tried before it is done.

`training/export.py RUN --space` is the command. The app is examples/app.py as it is; `load_app` is for those who do
not know where that lies.
"""

import dataclasses
import importlib.util
from pathlib import Path

import numpy as np

from training.data import face_grammar, face_renderer, synthetic_faces

APP = Path(__file__).resolve().parents[1] / "examples" / "app.py"
# What two people of the rendered set's test clips do in turn in the example; the numbers choose who they are.
EXPRESSIONS = {
    "happiness": ("smile", "cheek_raise"),
    "surprise": ("brow_raise", "eyes_wide", "mouth_open"),
    "sadness": ("inner_brow", "mouth_down", "lids_droop"),
    "anger": ("brow_lower", "lips_press", "nostril"),
    "disgust": ("nose_wrinkle", "eyes_narrow"),
}
PEOPLE = {15: ("happiness", "surprise", "sadness", "anger"), 23: ("surprise", "disgust", "happiness", "sadness")}
SECONDS, RATE, SIZE = 12, 8, 128


def draw_example(path: Path) -> Path:
    """Writes a video of two drawn people beside each other, each with one expression after the other."""
    people = []
    for index, shown in PEOPLE.items():
        turns = [((turn + 0.5) / len(shown), name) for turn, name in enumerate(shown)]
        actions = tuple(
            face_grammar.Action(component, 1.0, "flash", middle, 0.35 / len(shown))
            for middle, name in turns
            for component in EXPRESSIONS[name]
        )
        person = dataclasses.replace(face_grammar.sample_clip(0, "test", index), actions=actions)
        people.append(face_renderer.render_clip(person, SECONDS * RATE, SIZE))  # (T, SIZE, SIZE, 3)
    synthetic_faces.write_video(path, np.concatenate(people, axis=2), RATE)
    return path


def load_app():
    """examples/app.py as a module, wherever this package is installed; a folder of examples is no package."""
    spec = importlib.util.spec_from_file_location("emoclip_app", APP)
    app = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(app)
    return app
