# SPDX-License-Identifier: Apache-2.0
"""Draws the faces that `face_grammar` specifies: shaded polygons on an ellipsoid head, in 2.5 dimensions.

Face coordinates: x to the right in half face widths, y down in half face heights, the origin between nose and eyes.
"Action units" are the muscle movements of the Facial Action Coding System that a component stands for.
"""

from dataclasses import dataclass

import numpy as np
from PIL import Image, ImageDraw

SUPERSAMPLING = 3
SKIN_TONES = ((255, 224, 196), (241, 194, 160), (224, 172, 130), (198, 140, 98), (150, 98, 66), (108, 70, 50))
HAIR_RGB = {
    "black": (32, 28, 30),
    "brown": (96, 58, 34),
    "blond": (214, 174, 96),
    "red": (176, 78, 30),
    "grey": (158, 158, 160),
}
IRIS_RGB = ((70, 44, 24), (92, 64, 30), (60, 100, 150), (70, 120, 80), (100, 110, 120))
TEAR_RGB, EYE_WHITE_RGB, TEETH_RGB, MOUTH_RGB = (120, 188, 252), (250, 250, 250), (252, 250, 240), (86, 22, 28)
CIRCLE = np.stack([np.cos(np.linspace(0, 2 * np.pi, 15)[:-1]), np.sin(np.linspace(0, 2 * np.pi, 15)[:-1])], axis=1)
ARCH = np.linspace(-1.0, 1.0, 9)
# The head's silhouette lies behind its front: it hardly moves where the features do.
RIM = -0.3


@dataclass(frozen=True)
class Look:
    """One person in one light; drawn from the clip's own generator, so never used for two clips."""

    # Colours, RGB.
    skin: np.ndarray
    hair: np.ndarray
    iris: np.ndarray
    lips: np.ndarray
    clothes: np.ndarray
    background: np.ndarray  # (2, 3): from and to, along gradient_angle in radians
    gradient_angle: float
    # Lengths and positions, in face coordinates; `aspect` is the face's width by its height.
    aspect: float
    jaw: float
    eye_x: float
    eye_y: float
    eye_width: float
    eye_height: float
    brow_gap: float
    brow_thickness: float
    brow_slant: float
    nose_width: float
    nose_length: float
    mouth_y: float
    mouth_width: float
    lip_thickness: float
    side: float  # -1 or 1: where one-sided movements happen
    # In the image: half the face's height and its centre as shares of the side; (yaw, pitch, roll) in radians.
    scale: float
    center: np.ndarray
    pose: np.ndarray
    drift: np.ndarray  # (2, 3): amplitude and phase of the slow head movement
    blink_at: float  # time in 0..1, infinite without a blink
    light: np.ndarray
    gain: float
    noise: float  # standard deviation, in grey levels of 255
    occluder: tuple[float, ...] | None  # x and y in -1..1, diameter as a share of the side, colour


def render_clip(spec, num_frames=8, size=64):
    """The clip as uint8 (num_frames, size, size, 3), RGB; a time-reversed clip is its original played backwards."""
    times = np.linspace(0.0, 1.0, num_frames)
    curves = {action.component: action.curve(times) for action in spec.actions}
    rng = np.random.default_rng((*spec.rng_key, 1))
    look = _sample_look(rng, spec.identity)
    backdrop = _backdrop(look, size * SUPERSAMPLING)
    # The frames of a reversed clip are drawn in the original's order, which gives both the same noise.
    order = range(num_frames - 1, -1, -1) if spec.time_reversed else range(num_frames)
    frames = np.empty((num_frames, size, size, 3), dtype=np.uint8)
    for position, index in enumerate(order):
        units = {component: float(curve[index]) for component, curve in curves.items()}
        frames[index] = _draw_frame(look, spec.identity, backdrop, units, times[position], rng)
    return frames


def render_still(spec, size=64):
    """One image at the full intensity of every component: uint8 (size, size, 3), RGB."""
    rng = np.random.default_rng((*spec.rng_key, 1))
    look = _sample_look(rng, spec.identity)
    units = {action.component: action.intensity for action in spec.actions}
    # Before the clip starts nobody blinks, which would contradict "wide open eyes".
    return _draw_frame(look, spec.identity, _backdrop(look, size * SUPERSAMPLING), units, -1.0, rng)


def _sample_look(rng, identity):
    woman = identity.gender == "woman"
    skin = np.array(SKIN_TONES[rng.integers(len(SKIN_TONES))]) * rng.uniform(0.92, 1.06)
    return Look(
        skin=skin,
        hair=np.array(HAIR_RGB[identity.hair_color]) * rng.uniform(0.85, 1.15),
        iris=np.array(IRIS_RGB[rng.integers(len(IRIS_RGB))]),
        lips=_mix(skin * 0.82, (178, 44, 58), rng.uniform(0.35, 0.75) if woman else rng.uniform(0.2, 0.4)),
        clothes=rng.uniform(20, 235, 3),
        aspect=rng.uniform(0.76, 0.90),
        jaw=rng.uniform(0.10, 0.34) if woman else rng.uniform(0.0, 0.24),
        eye_x=rng.uniform(0.38, 0.45),
        eye_y=rng.uniform(-0.14, -0.06),
        eye_width=rng.uniform(0.20, 0.24),
        eye_height=rng.uniform(0.095, 0.12),
        brow_gap=rng.uniform(0.20, 0.26),
        brow_thickness=rng.uniform(0.035, 0.06) if woman else rng.uniform(0.055, 0.085),
        brow_slant=rng.uniform(-0.03, 0.03),
        nose_width=rng.uniform(0.13, 0.19),
        nose_length=rng.uniform(0.22, 0.30),
        mouth_y=rng.uniform(0.54, 0.60),
        mouth_width=rng.uniform(0.30, 0.37),
        lip_thickness=rng.uniform(0.05, 0.085),
        side=float(rng.choice((-1.0, 1.0))),
        **_sample_view(rng),
    )


def _sample_view(rng):
    """What varies with the camera, the light and the moment rather than with the person."""
    angle = rng.uniform(0, 2 * np.pi)
    occluder = (
        *(rng.choice((-1.0, 1.0), 2) * rng.uniform(0.8, 1.0, 2)),
        rng.uniform(0.15, 0.35),
        *rng.uniform(0, 255, 3),
    )
    return {
        "background": rng.uniform(30, 235, (2, 3)),
        "gradient_angle": rng.uniform(0, 2 * np.pi),
        "scale": rng.uniform(0.37, 0.42),
        "center": 0.5 + rng.uniform(-0.05, 0.05, 2),
        "pose": rng.normal(0.0, (0.13, 0.07, 0.05)),
        "drift": np.stack([rng.normal(0.0, (0.05, 0.03, 0.03)), rng.uniform(0, 2 * np.pi, 3)]),
        "blink_at": rng.uniform(0.1, 0.9) if rng.random() < 0.4 else np.inf,
        "light": rng.uniform(0.0, 0.30) * np.array((np.cos(angle), np.sin(angle))),
        "gain": rng.uniform(0.75, 1.15),
        "noise": rng.uniform(1.5, 7.0),
        "occluder": occluder if rng.random() < 0.12 else None,
    }


def _mix(start, end, share):
    return np.asarray(start) * (1.0 - share) + np.asarray(end) * share


def _shift(points, x, y):
    return points + np.array((x, y))


def _rgb(color):
    return tuple(min(max(int(value), 0), 255) for value in color)


def _backdrop(look, pixels):
    """The two-colour background gradient that all frames of a clip are drawn on."""
    axis = np.linspace(-0.7, 0.7, pixels)
    share = np.cos(look.gradient_angle) * axis[None, :] + np.sin(look.gradient_angle) * axis[:, None]
    share = np.clip(share + 0.5, 0.0, 1.0)[..., None]
    return Image.fromarray(_mix(look.background[0], look.background[1], share).astype(np.uint8))


def _draw_frame(look, identity, backdrop, units, time, rng):
    pose = look.pose + look.drift[0] * np.sin(2 * np.pi * 0.6 * time + look.drift[1]) + _head_movement(look, units)
    units = {**units, "blink": float(np.exp(-0.5 * ((time - look.blink_at) / 0.05) ** 2))}
    canvas = _Canvas(look, pose)
    _draw_head(canvas, look, identity, units)
    _draw_eyes(canvas, look, units)
    _draw_nose(canvas, look, units)
    _draw_mouth(canvas, look, identity, units)
    _draw_front(canvas, look, identity, units)
    # Last: brows that vanish under the hair when raised could not be learnt.
    _draw_brows(canvas, look, units)
    image = backdrop.copy()
    canvas.paint(image)
    return _shade(image.reduce(SUPERSAMPLING), look, rng)


def _head_movement(look, units):
    """Change of (yaw, pitch, roll) in radians; a positive pitch bows the head."""
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


class _Canvas:
    """Collects polygons and lines in face coordinates, turns all of them at once, paints them in order."""

    def __init__(self, look, pose):
        self.look, self.pose, self.shapes = look, pose, []

    def fill(self, points, color, lift=0.0):
        """A polygon (N, 2); `lift`, one for all or (N,), moves it off the head's surface, towards us if > 0."""
        self.shapes.append((np.asarray(points, dtype=np.float64), lift, _rgb(color), None))

    def line(self, points, color, width, lift=0.0):
        """A polyline (N, 2); `width` is a share of the face's half height."""
        self.shapes.append((np.asarray(points, dtype=np.float64), lift, _rgb(color), width))

    def paint(self, image):
        scale = self.look.scale * image.width
        sizes = [len(shape[0]) for shape in self.shapes]
        lift = np.concatenate([np.broadcast_to(shape[1], len(shape[0])) for shape in self.shapes])
        points = self._turn(np.concatenate([shape[0] for shape in self.shapes]), lift)
        points = points * scale + self.look.center * image.width
        draw = ImageDraw.Draw(image)
        for (_, _, color, width), piece in zip(self.shapes, np.split(points, np.cumsum(sizes)[:-1]), strict=True):
            flat = piece.ravel().tolist()
            if width is None:
                draw.polygon(flat, fill=color)
            else:
                draw.line(
                    flat, fill=color, width=max(1, round(width * scale)), joint="curve" if width > 0.05 else None
                )
        if self.look.occluder is not None:
            x, y, radius, *color = self.look.occluder
            corners = [(0.5 + 0.5 * v + sign * radius) * image.width for sign in (-0.5, 0.5) for v in (x, y)]
            draw.ellipse(corners, fill=_rgb(color))

    def _turn(self, points, lift):
        yaw, pitch, roll = self.pose
        x, y = points[:, 0] * self.look.aspect, points[:, 1]
        depth = 0.75 * np.sqrt(np.clip(1.0 - 0.9 * points[:, 0] ** 2 - 0.6 * points[:, 1] ** 2, 0.0, 1.0)) + lift
        # What lies behind the head (lift <= -1: neck, clothes) stays where it is.
        fixed = lift <= -1.0
        depth = np.where(fixed, 0.0, depth)
        yaw, pitch = np.where(fixed, 0.0, yaw), np.where(fixed, 0.0, pitch)
        x, depth = x * np.cos(yaw) + depth * np.sin(yaw), depth * np.cos(yaw) - x * np.sin(yaw)
        y = y * np.cos(pitch) + depth * np.sin(pitch)
        return np.stack([x * np.cos(roll) - y * np.sin(roll), x * np.sin(roll) + y * np.cos(roll)], axis=1)


def _jaw_drop(units):
    return units.get("mouth_open", 0.0) + 0.25 * units.get("lips_part", 0.0)


def _outline(look, drop, grow=1.0):
    """The face from ear to ear, (N, 2): an ellipse with a narrower jaw and, with an open mouth, a lower chin."""
    angles = np.linspace(0.0, 2.0 * np.pi, 41)[:-1]
    x, y = np.cos(angles), np.sin(angles)
    below = np.clip(y, 0.0, 1.0)
    x = np.sign(x) * np.abs(x) ** 0.85 * (1.0 - look.jaw * below**1.5)
    return np.stack([x, y + 0.22 * drop * below], axis=1) * grow


def _draw_head(canvas, look, identity, units):
    drop = _jaw_drop(units)
    if identity.hair_style in ("long", "bob"):
        bottom = 1.5 if identity.hair_style == "long" else 0.75
        canvas.fill(
            [
                (-1.2, bottom),
                (-1.28, 0.0),
                (-1.08, -0.7),
                (-0.6, -1.14),
                (0.0, -1.24),
                (0.6, -1.14),
                (1.08, -0.7),
                (1.28, 0.0),
                (1.2, bottom),
            ],
            look.hair * 0.82,
            lift=-0.3,
        )
    if identity.hair_style == "bun":
        canvas.fill(CIRCLE * (0.42, 0.3) + (0.0, -1.25), look.hair * 0.85, lift=-0.2)
    canvas.fill([(-0.46, 0.4), (0.46, 0.4), (0.5, 1.6), (-0.5, 1.6)], look.skin * 0.78, lift=-1.0)
    canvas.fill(
        [(-2.2, 1.9), (-1.5, 1.22), (-0.5, 1.08), (0.5, 1.08), (1.5, 1.22), (2.2, 1.9)], look.clothes, lift=-1.0
    )
    for side in (-1, 1):
        canvas.fill(CIRCLE * (0.13, 0.2) + (side * 1.02, 0.0), look.skin * 0.88, lift=-0.2)
    outline = _outline(look, drop)
    canvas.fill(outline, look.skin * 0.86, lift=RIM)
    canvas.fill(outline * 0.95, look.skin, lift=RIM)
    if identity.beard:
        _draw_beard(canvas, look, outline)


def _draw_beard(canvas, look, outline):
    lower = outline[outline[:, 1] > 0.12] * (1.0, 1.03)
    under_nose = look.mouth_y - 0.14
    cheeks = [(-0.80, 0.30), (-0.58, under_nose), (-0.3, under_nose), (0.0, under_nose + 0.02)]
    cheeks += [(-x, y) for x, y in cheeks[2::-1]]
    lift = np.concatenate([np.full(len(lower), RIM), np.zeros(len(cheeks))])
    canvas.fill(np.concatenate([lower, cheeks]), _mix(look.skin, look.hair, 0.8), lift)


def _draw_front(canvas, look, identity, units):
    """What lies over the face: hair, glasses, tears."""
    if identity.hair_style != "bald":
        hairline = {"short": -0.76, "side": -0.7, "long": -0.72, "bob": -0.66, "bun": -0.8}[identity.hair_style]
        part = look.side * 0.35 if identity.hair_style in ("side", "long") else 0.0
        top = [(-1.07, -0.2), (-1.1, -0.6), (-0.75, -1.04), (0.0, -1.18), (0.75, -1.04), (1.1, -0.6), (1.07, -0.2)]
        front = [(0.92, -0.3), (0.8, hairline + 0.05), (part, hairline - 0.1), (-0.8, hairline + 0.05), (-0.92, -0.3)]
        lift = np.array([RIM] * len(top) + [RIM, 0.04, 0.04, 0.04, RIM])
        canvas.fill(top + front, look.hair, lift)
    if identity.glasses:
        for side in (-1, 1):
            ring = CIRCLE * (look.eye_width + 0.09, 0.22) + (side * look.eye_x, look.eye_y + 0.01)
            canvas.line(np.concatenate([ring, ring[:2]]), (30, 30, 34), 0.035, lift=0.08)
            canvas.line([(side * 0.72, look.eye_y - 0.04), (side * 1.0, look.eye_y - 0.06)], (30, 30, 34), 0.035)
        canvas.line([(-0.13, look.eye_y), (0.13, look.eye_y)], (30, 30, 34), 0.035, lift=0.1)
    tears = units.get("tears", 0.0)
    if tears > 0.08:
        for side in (-1, 1):
            top, end = look.eye_y + 0.1, look.eye_y + 0.1 + 0.62 * tears
            x = side * (look.eye_x + 0.02)
            stream = [(x - 0.035, top), (x + 0.035, top), (x + side * 0.03 + 0.04, end), (x + side * 0.03 - 0.04, end)]
            canvas.fill(stream, TEAR_RGB)
            canvas.fill(CIRCLE * (0.075, 0.065) + (x + side * 0.03, end), (205, 235, 255))


def _lid_curves(look, units):
    """(upper, lower) y of the eyelids (9,) relative to the eye's centre."""
    opening = 1.0 + 0.75 * units.get("eyes_wide", 0.0) - 0.5 * units.get("eyes_narrow", 0.0)
    upper = opening * (1.0 - 0.6 * units.get("lids_droop", 0.0)) - 0.5 * units.get("gaze_down", 0.0)
    lower = opening - 0.55 * units.get("cheek_raise", 0.0)
    awake = 1.0 - units["blink"]
    arch = 1.0 - ARCH**2
    height = look.eye_height
    return -height * (1.15 * upper * awake - 0.85 * (1.0 - awake)) * arch, height * 0.85 * max(lower, 0.2) * arch


def _gaze(look, units):
    """Offset of the iris from the eye's centre, in face units."""
    x = look.side * 0.115 * units.get("gaze_side", 0.0) + 0.125 * units.get("gaze_dart", 0.0)
    return np.array((x, 0.11 * units.get("gaze_down", 0.0)))


def _draw_eyes(canvas, look, units):
    upper, lower = _lid_curves(look, units)
    gaze = _gaze(look, units)
    crease = look.skin * 0.6
    for side in (-1, 1):
        center = np.array((side * look.eye_x, look.eye_y))
        lids_x = ARCH * look.eye_width
        top = np.stack([lids_x, upper], axis=1) + center
        bottom = np.stack([lids_x, lower], axis=1) + center
        canvas.fill(CIRCLE * (look.eye_width, 0.24) + center, EYE_WHITE_RGB)
        iris = center + gaze
        canvas.fill(CIRCLE * (0.115, 0.1) + iris, look.iris)
        canvas.fill(CIRCLE * (0.058, 0.05) + iris, (12, 12, 14))
        canvas.fill(CIRCLE * (0.022, 0.02) + iris + (0.035, -0.035), (255, 255, 255))
        # The lids are skin around the opening, and hide the rest of the eyeball.
        above = [_shift(center, look.eye_width + 0.03, -0.26), _shift(center, -look.eye_width - 0.03, -0.26)]
        below = [_shift(center, look.eye_width + 0.03, 0.26), _shift(center, -look.eye_width - 0.03, 0.26)]
        lid_shadow = look.skin * (1.0 - 0.1 * max(units.get("lids_droop", 0.0), units.get("gaze_down", 0.0)))
        canvas.fill(np.concatenate([top, above]), lid_shadow)
        canvas.fill(np.concatenate([bottom, below]), look.skin)
        canvas.line(top, _mix(crease, (20, 14, 14), 0.75), 0.04)
        canvas.line(bottom, crease, 0.02)
        narrow = units.get("eyes_narrow", 0.0)
        if narrow > 0.1:
            canvas.line(_shift(bottom, 0.0, 0.07), _mix(look.skin, look.skin * 0.55, narrow), 0.03)
        if units.get("cheek_raise", 0.0) > 0.1:
            _draw_raised_cheek(canvas, look, center, side, units["cheek_raise"])


def _draw_raised_cheek(canvas, look, center, side, amount):
    fold = _mix(look.skin, look.skin * 0.5, amount)
    arc = np.stack([ARCH * (look.eye_width + 0.04), 0.13 + 0.09 * (1.0 - ARCH**2)], axis=1) + center
    canvas.line(arc, fold, 0.03)
    canvas.fill(CIRCLE * (0.17, 0.09) + center + (side * 0.1, 0.34), _mix(look.skin, (226, 110, 100), 0.35 * amount))
    outer = _shift(center, side * (look.eye_width + 0.04), 0.0)
    for rise in (-0.1, 0.0, 0.1):
        canvas.line([_shift(outer, 0.0, 0.3 * rise), _shift(outer, side * 0.15, rise)], fold, 0.025)


def _draw_nose(canvas, look, units):
    shade, width = look.skin * 0.74, look.nose_width
    tip = look.eye_y + 0.10 + look.nose_length
    canvas.fill(
        [(-0.05, look.eye_y), (0.05, look.eye_y), (width * 0.8, tip), (-width * 0.8, tip)], look.skin * 1.05, lift=0.06
    )
    canvas.line([(look.side * 0.06, look.eye_y), (look.side * width * 0.7, tip - 0.05)], shade, 0.025, lift=0.06)
    flare = units.get("nostril", 0.0)
    for side in (-1, 1):
        canvas.line(
            [
                (side * width * (0.9 + 0.4 * flare), tip - 0.08),
                (side * width * (1.15 + 0.5 * flare), tip),
                (side * width * 0.9, tip + 0.03),
            ],
            shade,
            0.025 + 0.015 * flare,
            lift=0.08,
        )
        nostril = CIRCLE * (0.045 * (1.0 + flare), 0.028 * (1.0 + flare)) + (side * width * (0.55 + 0.25 * flare), tip)
        canvas.fill(nostril, look.skin * 0.35, lift=0.1)
    wrinkle = units.get("nose_wrinkle", 0.0)
    if wrinkle > 0.1:
        fold = _mix(look.skin, look.skin * 0.42, wrinkle)
        for offset in (-0.05, 0.04, 0.13):
            y = look.eye_y + offset
            canvas.line([(-0.16, y + 0.05), (-0.06, y), (0.06, y), (0.16, y + 0.05)], fold, 0.03, lift=0.06)
        for side in (-1, 1):
            canvas.line([(side * width, tip - 0.12), (side * 0.33, tip + 0.12), (side * 0.40, tip + 0.28)], fold, 0.03)


def _mouth_curves(look, units):
    """(left to right) x (9,) and y of the upper lip's outer and inner and the lower lip's inner and outer edge."""
    get = units.get
    smile, press, part = get("smile", 0.0), get("lips_press", 0.0), get("lips_part", 0.0)
    down, smirk, opened, sneer = (
        get("mouth_down", 0.0),
        get("smirk", 0.0),
        get("mouth_open", 0.0),
        get("nose_wrinkle", 0.0),
    )
    half = look.mouth_width * (1.0 + 0.32 * smile + 0.32 * part - 0.24 * press - 0.12 * opened * (1.0 - smile))
    arch, bend = 1.0 - ARCH**2, np.abs(ARCH) ** 1.9
    corner = bend * (0.17 * down - 0.17 * smile) + arch * (0.06 * smile - 0.07 * down)
    one_sided = np.clip(look.side * ARCH, 0.0, 1.0) ** 1.4
    corner = corner - 0.28 * smirk * one_sided
    gap = (0.42 * opened + 0.15 * part) * arch ** (0.5 if part > 0 else 0.75)
    lips = look.lip_thickness * (1.0 - 0.75 * press)
    cupid = 1.0 - 0.25 * np.exp(-((ARCH / 0.18) ** 2))
    center = look.mouth_y + corner - 0.09 * sneer * arch
    upper_in = center - 0.25 * gap
    lower_in = center + 0.75 * gap + 0.05 * sneer * arch
    x = ARCH * half + look.side * 0.06 * smirk
    return x, upper_in - lips * cupid * arch**0.6, upper_in, lower_in, lower_in + 1.25 * lips * arch**0.7


def _draw_mouth(canvas, look, identity, units):
    x, upper_out, upper_in, lower_in, lower_out = _mouth_curves(look, units)
    edge = [np.stack([x, y], axis=1) for y in (upper_out, upper_in, lower_in, lower_out)]
    if identity.moustache:
        y = look.mouth_y - 0.12 + 0.3 * (upper_out - look.mouth_y)
        hair = np.concatenate(
            [np.stack([x * 1.05, y - 0.06 * (1.0 - ARCH**2)], axis=1), (edge[0] + (0.0, -0.015))[::-1]]
        )
        canvas.fill(hair, look.hair, lift=0.03)
    if (lower_in - upper_in).max() > 0.02:
        canvas.fill(np.concatenate([edge[1], edge[2][::-1]]), MOUTH_RGB)
        shows_teeth = max(units.get("smile", 0.0), units.get("lips_part", 0.0), 0.4 * units.get("mouth_open", 0.0))
        depth = upper_in + np.clip(lower_in - upper_in, 0.0, 0.03 + 0.10 * shows_teeth)
        canvas.fill(np.concatenate([edge[1], np.stack([x, depth], axis=1)[::-1]]), TEETH_RGB)
    canvas.fill(np.concatenate([edge[0], edge[1][::-1]]), look.lips * 0.9)
    canvas.fill(np.concatenate([edge[2], edge[3][::-1]]), look.lips)
    press = units.get("lips_press", 0.0)
    canvas.line(edge[1], _mix(look.lips * 0.5, (40, 14, 16), press), 0.022 + 0.03 * press)
    _draw_mouth_folds(canvas, look, units, edge[1])


def _draw_mouth_folds(canvas, look, units, line):
    for side, corner in ((-1, line[0]), (1, line[-1])):
        rise = units.get("smile", 0.0) + units.get("smirk", 0.0) * (side == look.side)
        if rise > 0.1:
            nose = (side * (look.nose_width + 0.1), look.eye_y + 0.34)
            fold = _mix(look.skin, look.skin * 0.55, rise)
            canvas.line(
                [
                    nose,
                    (corner[0] + side * 0.06, 0.5 * (nose[1] + corner[1]) + 0.02),
                    _shift(corner, side * 0.09, 0.05),
                ],
                fold,
                0.03,
            )
        down, press = units.get("mouth_down", 0.0), units.get("lips_press", 0.0)
        if down > 0.1:
            canvas.line(
                [_shift(corner, side * 0.03, -0.02), _shift(corner, side * 0.07, 0.13)],
                _mix(look.skin, look.skin * 0.5, down),
                0.035,
            )
        if press > 0.1:
            canvas.line(
                [_shift(corner, side * 0.05, -0.07), _shift(corner, side * 0.05, 0.07)],
                _mix(look.skin, look.skin * 0.55, press),
                0.03,
            )


def _draw_brows(canvas, look, units):
    raised, inner, lower = (units.get(name, 0.0) for name in ("brow_raise", "inner_brow", "brow_lower"))
    share = np.linspace(0.0, 1.0, 5)
    # Fair brows on darker skin would move unseen.
    color = np.minimum(_mix(look.hair, (20, 16, 16), 0.45), 0.5 * look.skin)
    for side in (-1, 1):
        alone = 1.35 * units.get("one_brow", 0.0) * (side == look.side)
        lift = (raised + alone) * (0.20 - 0.05 * np.abs(share - 0.4)) + inner * (
            0.28 * (1.0 - share) ** 1.3 - 0.05 * share
        )
        lift = lift + 0.06 * alone - lower * (0.20 * (1.0 - share) ** 1.2 + 0.02)
        x = look.eye_x + (share - 0.48) * 0.56 - lower * 0.06 * (1.0 - share)
        y = look.eye_y - look.brow_gap - 0.05 * np.sin(np.pi * (0.15 + 0.7 * share)) - lift + look.brow_slant * share
        thick = look.brow_thickness * (1.0 - 0.55 * share)
        middle = np.stack([side * x, y], axis=1)
        shape = np.concatenate(
            [middle + np.stack([0 * thick, -thick], 1), (middle + np.stack([0 * thick, thick], 1))[::-1]]
        )
        canvas.fill(shape, color, lift=0.03)
    _draw_forehead(canvas, look, raised, inner, lower)


def _draw_forehead(canvas, look, raised, inner, lower):
    top = look.eye_y - look.brow_gap
    if raised > 0.1:
        for y in (-0.30, -0.37):
            canvas.line(
                [(-0.5, top + y + 0.03), (0.0, top + y), (0.5, top + y + 0.03)],
                _mix(look.skin, look.skin * 0.6, raised),
                0.025,
            )
    if inner > 0.1:
        fold = _mix(look.skin, look.skin * 0.6, inner)
        canvas.line([(-0.22, top - 0.31), (0.0, top - 0.35), (0.22, top - 0.31)], fold, 0.028)
    if lower > 0.1:
        for side in (-1, 1):
            fold = _mix(look.skin, look.skin * 0.42, lower)
            canvas.line([(side * 0.06, top + 0.14), (side * 0.07, top - 0.1)], fold, 0.035)
