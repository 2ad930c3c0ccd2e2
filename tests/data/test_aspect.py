"""The shapes that images are cut to, which one, and the cut."""

import numpy as np
import pytest

from jaxpref.data.aspect import aspect_shapes, fit, nearest_shapes
from jaxpref.errors import UserError


def test_shapes_by_hand():
  """At 1024 pixels, sides of 64: 1024 · 2^(1/8) = 1116.7 is 17.4 of them."""
  assert aspect_shapes(1024, 1, 8) == ((1024, 1024),)
  assert aspect_shapes(1024, 2, 8) == ((1472, 704), (704, 1472))
  tall = [(1472, 704), (1344, 768), (1216, 832), (1088, 960)]
  wide = [(columns, rows) for rows, columns in reversed(tall)]
  assert aspect_shapes(1024, 9, 8) == (*tall, (1024, 1024), *wide)
  # Of 16 pixels and two to a latent: 16 · √2 = 22.6 is nearer to 22 than 24.
  assert aspect_shapes(16, 3, 2) == ((22, 12), (16, 16), (12, 22))
  # The model's factor does not divide 40 / 16 · 16 = 40: sides of 80.
  assert aspect_shapes(640, 3, 16) == ((880, 480), (640, 640), (480, 880))


@pytest.mark.parametrize("count", range(1, 10))
@pytest.mark.parametrize("side", [512, 640, 768, 896, 1024])
def test_shapes_are_what_they_are_said_to_be(side, count):
  shapes = np.array(aspect_shapes(side, count, 8))
  assert len(np.unique(shapes, axis=0)) == count
  assert (shapes % (side // 16) == 0).all()
  np.testing.assert_array_equal(shapes, shapes[::-1, ::-1])
  assert ((side, side) in map(tuple, shapes)) == (count % 2 == 1)
  # Sides are off by half a sixteenth of the square's at most; both in one
  # direction would be an area off by 1/16 · (1.4 + 0.7) / 2.
  area = shapes.prod(axis=1) / side**2
  assert (np.abs(area - 1.0) < 1.06 / 16).all()
  aspect = shapes[:, 0] / shapes[:, 1]
  assert (np.diff(aspect) < 0).all()
  if count > 1:
    np.testing.assert_allclose(aspect[[0, -1]], [2.0, 0.5], rtol=0.05)


@pytest.mark.parametrize(
  ("side", "count", "factor", "says"),
  [
    (1000, 3, 8, "resolution is 1000, .* multiple of 128, such as 1024"),
    # Sixteenths that are no whole latents: sides would be halves of these.
    (1008, 3, 8, "resolution is 1008, .* such as 1024"),
    (400, 3, 8, "resolution is 400, .* such as 512"),
    (24, 2, 8, "such as 128"),
    (8, 2, 8, "such as 128"),
    (16, 8, 2, "is 8, and at .* multiples of 2, .* Set it to 7, or a larger"),
    (1024, 16, 8, r"would be the same\. Set it to \d+"),
    (1024, 10**9, 8, "would be the same"),
  ],
)
def test_shapes_that_cannot_be(side, count, factor, says):
  assert aspect_shapes(side, 1, factor) == ((side, side),)
  with pytest.raises(UserError, match=says):
    aspect_shapes(side, count, factor)


def test_the_nearest_in_log_aspect():
  shapes = aspect_shapes(1024, 3, 8)
  groups = [
    ([(600, 300)], 0),
    ([(300, 600)], 2),
    ([(500, 500)], 1),
    ([(4000, 100)], 0),  # past the tallest
    # √(1472 / 704) = 1.446 is as far from the tall one as from the square.
    ([(1440, 1000)], 1),
    ([(1450, 1000)], 0),
    ([(1000, 1440)], 1),
    ([(1000, 1450)], 2),
    # Means: of 2:1 and 1:2 the square, as of 4:1 and 1:4; of three 2:1 and a
    # square 1.68:1, of two pairs of them 1.41:1.
    ([(600, 300), (300, 600)], 1),
    ([(800, 200), (100, 400)], 1),
    ([(600, 300)] * 3 + [(300, 300)], 0),
    ([(600, 300)] * 2 + [(300, 300)] * 2, 1),
    # As near to both: the taller one, whichever way the last bits go.
    ([(1472, 704), (1024, 1024)], 0),
    ([(640, 640), (2944, 1408)], 0),
    ([(704, 1472), (512, 512)], 1),
  ]
  first = np.cumsum([0, *(len(images) for images, _ in groups)])
  sizes = np.array([size for images, _ in groups for size in images])
  found = nearest_shapes(sizes, first, shapes)
  assert found.tolist() == [number for _, number in groups]


@pytest.mark.parametrize(("width", "left"), [(8, 0), (20, 6), (21, 7)])
def test_a_mirrored_image_is_the_same_cut(width, left):
  """Left and right exchanged; the model is told where it begins then."""
  pixels = np.random.default_rng(0).integers(0, 256, (8, width, 3), np.uint8)
  cut, sizes = fit(pixels, (8, 8))
  mirrored, told = fit(pixels, (8, 8), mirrored=True)
  np.testing.assert_array_equal(mirrored, cut[:, ::-1])
  assert (mirrored != cut).any()
  np.testing.assert_array_equal(told, [8, width, 0, left, 8, 8])
  np.testing.assert_array_equal(pixels[:, ::-1][:, left : left + 8], mirrored)
  np.testing.assert_array_equal(sizes[[0, 1, 2, 4, 5]], told[[0, 1, 2, 4, 5]])


@pytest.mark.parametrize(
  ("size", "told"),
  [
    ((8, 8), [8, 8, 0, 0, 8, 8]),
    ((16, 8), [16, 8, 4, 0, 8, 8]),
    ((8, 20), [8, 20, 0, 6, 8, 8]),
    ((4, 6), [4, 6, 0, 2, 8, 8]),
  ],
)
def test_the_middle_of_an_image_and_what_the_model_is_told(size, told):
  pixels = np.zeros((*size, 3), np.uint8)
  pixels[:, size[1] // 2 :] = 255
  cut, sizes = fit(pixels, (8, 8))
  assert cut.shape == (8, 8, 3)
  np.testing.assert_array_equal(sizes, told)
  assert cut[:, :2].max() == 0
  assert cut[:, -2:].min() == 255


@pytest.mark.parametrize(
  ("size", "told", "box"),
  [
    # What of 12 rows and 6 columns is left, at twice the size.
    ((6, 3), [6, 3, 0, 0, 12, 6], (0, 12, 0, 6)),
    ((6, 4), [6, 4, 0, 1, 12, 6], (0, 12, 1, 7)),
    ((8, 3), [8, 3, 2, 0, 12, 6], (2, 14, 0, 6)),
  ],
)
def test_the_middle_in_another_shape(size, told, box):
  pixels = np.random.default_rng(0).integers(0, 256, (*size, 3), np.uint8)
  whole, _ = fit(pixels, (2 * size[0], 2 * size[1]))
  cut, sizes = fit(pixels, (12, 6))
  top, bottom, left, right = box
  np.testing.assert_array_equal(cut, whole[top:bottom, left:right])
  np.testing.assert_array_equal(sizes, told)
