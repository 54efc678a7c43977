# SPDX-License-Identifier: Apache-2.0
"""Renderer for the faces that `face_grammar` specifies: shaded polygons on an ellipsoid head, in 2.5 dimensions."""

import numpy as np
from PIL import Image

from training.data.face_canvas import Canvas
from training.data.face_features import draw_brows, draw_eyes, draw_front, draw_head, draw_mouth, draw_nose
from training.data.face_look import mix, sample_look

SUPERSAMPLING = 3


def render_clip(spec, num_frames=8, size=64):
    """Renders a clip as uint8 (num_frames, size, size, 3), RGB; a time-reversed clip is the original backwards."""
    times = np.linspace(0.0, 1.0, num_frames)
    curves = {action.component: action.curve(times) for action in spec.actions}
    rng = np.random.default_rng((*spec.rng_key, 1))
    look = sample_look(rng, spec.identity)
    backdrop = _backdrop(look, size * SUPERSAMPLING)
    # The frames of a reversed clip are drawn in the original order, so that both clips have the same noise.
    order = range(num_frames - 1, -1, -1) if spec.time_reversed else range(num_frames)
    frames = np.empty((num_frames, size, size, 3), dtype=np.uint8)
    for position, index in enumerate(order):
        units = {component: float(curve[index]) for component, curve in curves.items()}
        frames[index] = _draw_frame(look, spec.identity, backdrop, units, times[position], rng)
    return frames


def render_still(spec, size=64):
    """Renders one image with every component at full intensity, uint8 (size, size, 3), RGB."""
    rng = np.random.default_rng((*spec.rng_key, 1))
    look = sample_look(rng, spec.identity)
    units = {action.component: action.intensity for action in spec.actions}
    # A time before the clip excludes a blink, which would contradict "wide open eyes".
    return _draw_frame(look, spec.identity, _backdrop(look, size * SUPERSAMPLING), units, -1.0, rng)


def _backdrop(look, pixels):
    """Returns the two-colour gradient that is the background of all frames of a clip."""
    axis = np.linspace(-0.7, 0.7, pixels)
    share = np.cos(look.gradient_angle) * axis[None, :] + np.sin(look.gradient_angle) * axis[:, None]
    share = np.clip(share + 0.5, 0.0, 1.0)[..., None]
    return Image.fromarray(mix(look.background[0], look.background[1], share).astype(np.uint8))


def _draw_frame(look, identity, backdrop, units, time, rng):
    pose = look.pose + look.drift[0] * np.sin(2 * np.pi * 0.6 * time + look.drift[1]) + _head_movement(look, units)
    units = {**units, "blink": float(np.exp(-0.5 * ((time - look.blink_at) / 0.05) ** 2))}
    canvas = Canvas(look, pose)
    draw_head(canvas, look, identity, units)
    draw_eyes(canvas, look, units)
    draw_nose(canvas, look, units)
    draw_mouth(canvas, look, identity, units)
    draw_front(canvas, look, identity, units)
    # Drawn last: raised brows hidden by the hair could not be learnt.
    draw_brows(canvas, look, units)
    image = backdrop.copy()
    canvas.paint(image)
    return _shade(image.reduce(SUPERSAMPLING), look, rng)


def _head_movement(look, units):
    """Returns the change of (yaw, pitch, roll) in radians; a positive pitch bows the head."""
    yaw = look.side * 0.55 * units.get("head_turn", 0.0) + 0.42 * units.get("head_shake", 0.0)
    pitch = 0.50 * units.get("head_down", 0.0) - 0.45 * units.get("chin_up", 0.0) + 0.36 * units.get("head_nod", 0.0)
    return np.array((yaw, pitch, 0.0))


def _shade(image, look, rng):
    size = image.width
    axis = np.linspace(-1.0, 1.0, size, dtype=np.float32)
    light = look.gain * (1.0 + look.light[0] * axis[None, :] + look.light[1] * axis[:, None])
    pixels = np.asarray(image, dtype=np.float32) * light[..., None].astype(np.float32)
    pixels += np.float32(look.noise) * rng.standard_normal(pixels.shape, dtype=np.float32)
    return np.clip(pixels, 0, 255).astype(np.uint8)
