# SPDX-License-Identifier: Apache-2.0
"""Canvas for shapes in face coordinates, which are rotated with the head and drawn on an image.

Face coordinates: x to the right in half face widths, y down in half face heights, the origin between nose and eyes.
"""

import numpy as np
from PIL import ImageDraw


class Canvas:
    """Collection of polygons and lines in face coordinates, which `paint` rotates all at once and draws in order."""

    def __init__(self, look, pose):
        self.look, self.pose, self.shapes = look, pose, []

    def fill(self, points, color, lift=0.0):
        """Adds a polygon (N, 2); `lift`, a scalar or (N,), moves it off the head's surface, to the viewer if > 0."""
        self.shapes.append((np.asarray(points, dtype=np.float64), lift, _rgb(color), None))

    def line(self, points, color, width, lift=0.0):
        """Adds a polyline (N, 2); `width` is a fraction of half the face height."""
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
        # Shapes behind the head (lift <= -1: neck, clothes) do not rotate with yaw and pitch.
        fixed = lift <= -1.0
        depth = np.where(fixed, 0.0, depth)
        yaw, pitch = np.where(fixed, 0.0, yaw), np.where(fixed, 0.0, pitch)
        x, depth = x * np.cos(yaw) + depth * np.sin(yaw), depth * np.cos(yaw) - x * np.sin(yaw)
        y = y * np.cos(pitch) + depth * np.sin(pitch)
        return np.stack([x * np.cos(roll) - y * np.sin(roll), x * np.sin(roll) + y * np.cos(roll)], axis=1)


def _rgb(color):
    return tuple(min(max(int(value), 0), 255) for value in color)
