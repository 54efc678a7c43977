# SPDX-License-Identifier: Apache-2.0
"""Functions that draw head, eyes, nose, mouth and brows as changed by the action units of an expression.

Action units are the muscle movements of the Facial Action Coding System that a component represents; `units` maps a
component to its current intensity. Coordinates are those of `face_canvas`.
"""

import numpy as np

from training.data.face_look import mix

TEAR_RGB, EYE_WHITE_RGB, TEETH_RGB, MOUTH_RGB = (120, 188, 252), (250, 250, 250), (252, 250, 240), (86, 22, 28)
CIRCLE = np.stack([np.cos(np.linspace(0, 2 * np.pi, 15)[:-1]), np.sin(np.linspace(0, 2 * np.pi, 15)[:-1])], axis=1)
ARCH = np.linspace(-1.0, 1.0, 9)
# The silhouette lies behind the front of the head, so it moves much less than the features when the head turns.
RIM = -0.3


def _shift(points, x, y):
    return points + np.array((x, y))


def _jaw_drop(units):
    return units.get("mouth_open", 0.0) + 0.25 * units.get("lips_part", 0.0)


def _outline(look, drop, grow=1.0):
    """Returns the outline (N, 2) of the face: an ellipse with a narrower jaw; an open mouth lowers the chin."""
    angles = np.linspace(0.0, 2.0 * np.pi, 41)[:-1]
    x, y = np.cos(angles), np.sin(angles)
    below = np.clip(y, 0.0, 1.0)
    x = np.sign(x) * np.abs(x) ** 0.85 * (1.0 - look.jaw * below**1.5)
    return np.stack([x, y + 0.22 * drop * below], axis=1) * grow


def draw_head(canvas, look, identity, units):
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
    canvas.fill(np.concatenate([lower, cheeks]), mix(look.skin, look.hair, 0.8), lift)


def draw_front(canvas, look, identity, units):
    """Draws what lies in front of the face: hair, glasses, tears."""
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
    """Returns y of the upper and of the lower eyelid, each (9,), relative to the centre of the eye."""
    opening = 1.0 + 0.75 * units.get("eyes_wide", 0.0) - 0.5 * units.get("eyes_narrow", 0.0)
    upper = opening * (1.0 - 0.6 * units.get("lids_droop", 0.0)) - 0.5 * units.get("gaze_down", 0.0)
    lower = opening - 0.55 * units.get("cheek_raise", 0.0)
    awake = 1.0 - units["blink"]
    arch = 1.0 - ARCH**2
    height = look.eye_height
    return -height * (1.15 * upper * awake - 0.85 * (1.0 - awake)) * arch, height * 0.85 * max(lower, 0.2) * arch


def _gaze(look, units):
    """Returns the offset of the iris from the centre of the eye, in face coordinates."""
    x = look.side * 0.115 * units.get("gaze_side", 0.0) + 0.125 * units.get("gaze_dart", 0.0)
    return np.array((x, 0.11 * units.get("gaze_down", 0.0)))


def draw_eyes(canvas, look, units):
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
        # The lids are skin polygons around the opening that cover the rest of the eyeball.
        above = [_shift(center, look.eye_width + 0.03, -0.26), _shift(center, -look.eye_width - 0.03, -0.26)]
        below = [_shift(center, look.eye_width + 0.03, 0.26), _shift(center, -look.eye_width - 0.03, 0.26)]
        lid_shadow = look.skin * (1.0 - 0.1 * max(units.get("lids_droop", 0.0), units.get("gaze_down", 0.0)))
        canvas.fill(np.concatenate([top, above]), lid_shadow)
        canvas.fill(np.concatenate([bottom, below]), look.skin)
        canvas.line(top, mix(crease, (20, 14, 14), 0.75), 0.04)
        canvas.line(bottom, crease, 0.02)
        narrow = units.get("eyes_narrow", 0.0)
        if narrow > 0.1:
            canvas.line(_shift(bottom, 0.0, 0.07), mix(look.skin, look.skin * 0.55, narrow), 0.03)
        if units.get("cheek_raise", 0.0) > 0.1:
            _draw_raised_cheek(canvas, look, center, side, units["cheek_raise"])


def _draw_raised_cheek(canvas, look, center, side, amount):
    fold = mix(look.skin, look.skin * 0.5, amount)
    arc = np.stack([ARCH * (look.eye_width + 0.04), 0.13 + 0.09 * (1.0 - ARCH**2)], axis=1) + center
    canvas.line(arc, fold, 0.03)
    canvas.fill(CIRCLE * (0.17, 0.09) + center + (side * 0.1, 0.34), mix(look.skin, (226, 110, 100), 0.35 * amount))
    outer = _shift(center, side * (look.eye_width + 0.04), 0.0)
    for rise in (-0.1, 0.0, 0.1):
        canvas.line([_shift(outer, 0.0, 0.3 * rise), _shift(outer, side * 0.15, rise)], fold, 0.025)


def draw_nose(canvas, look, units):
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
        fold = mix(look.skin, look.skin * 0.42, wrinkle)
        for offset in (-0.05, 0.04, 0.13):
            y = look.eye_y + offset
            canvas.line([(-0.16, y + 0.05), (-0.06, y), (0.06, y), (0.16, y + 0.05)], fold, 0.03, lift=0.06)
        for side in (-1, 1):
            canvas.line([(side * width, tip - 0.12), (side * 0.33, tip + 0.12), (side * 0.40, tip + 0.28)], fold, 0.03)


def _mouth_curves(look, units):
    """Returns x and four y, all (9,): outer and inner edge of the upper lip, inner and outer edge of the lower one."""
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


def draw_mouth(canvas, look, identity, units):
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
    canvas.line(edge[1], mix(look.lips * 0.5, (40, 14, 16), press), 0.022 + 0.03 * press)
    _draw_mouth_folds(canvas, look, units, edge[1])


def _draw_mouth_folds(canvas, look, units, line):
    for side, corner in ((-1, line[0]), (1, line[-1])):
        rise = units.get("smile", 0.0) + units.get("smirk", 0.0) * (side == look.side)
        if rise > 0.1:
            nose = (side * (look.nose_width + 0.1), look.eye_y + 0.34)
            fold = mix(look.skin, look.skin * 0.55, rise)
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
                mix(look.skin, look.skin * 0.5, down),
                0.035,
            )
        if press > 0.1:
            canvas.line(
                [_shift(corner, side * 0.05, -0.07), _shift(corner, side * 0.05, 0.07)],
                mix(look.skin, look.skin * 0.55, press),
                0.03,
            )


def draw_brows(canvas, look, units):
    raised, inner, lower = (units.get(name, 0.0) for name in ("brow_raise", "inner_brow", "brow_lower"))
    share = np.linspace(0.0, 1.0, 5)
    # The movement of fair brows on darker skin would be invisible.
    color = np.minimum(mix(look.hair, (20, 16, 16), 0.45), 0.5 * look.skin)
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
                mix(look.skin, look.skin * 0.6, raised),
                0.025,
            )
    if inner > 0.1:
        fold = mix(look.skin, look.skin * 0.6, inner)
        canvas.line([(-0.22, top - 0.31), (0.0, top - 0.35), (0.22, top - 0.31)], fold, 0.028)
    if lower > 0.1:
        for side in (-1, 1):
            fold = mix(look.skin, look.skin * 0.42, lower)
            canvas.line([(side * 0.06, top + 0.14), (side * 0.07, top - 0.1)], fold, 0.035)
