"""Values that no schema has, put somewhere into a row."""

from hypothesis import strategies as st


def _nested(depth):
  inner = "deep"
  for level in range(depth):
    inner = [inner] if level % 2 else {"role": inner}
  return inner


JUNK = st.one_of(
  st.none(),
  st.booleans(),
  st.integers(-(10**30), 10**30),
  st.floats(),  # NaN and infinities among them
  st.sampled_from(
    [10**400, "", " ", "\ud800", "a\udfff", "\0", "\x1b[2J", "N/A"]
  ),
  st.text(max_size=8),
  st.sampled_from([3, 200, 900]).map(_nested),  # anew: rows are changed
  st.lists(
    st.one_of(st.none(), st.text(max_size=3), st.integers()), max_size=3
  ),
  st.dictionaries(
    st.sampled_from(["role", "content", "rank", "answer", "score", "x"]),
    st.one_of(st.none(), st.text(max_size=3), st.floats()),
    max_size=3,
  ),
)


def replace(draw, row):
  """One value, key or item, at a random place of the row."""
  here = row
  while True:
    keys = list(here) if isinstance(here, dict) else range(len(here))
    if not keys:
      return
    key = draw(st.sampled_from(keys))
    deeper = isinstance(here[key], (dict, list)) and here[key]
    if deeper and draw(st.booleans()):
      here = here[key]
      continue
    kind = draw(st.sampled_from(["junk", "junk", "junk", "remove", "add"]))
    if kind == "junk":
      here[key] = draw(JUNK)
    elif kind == "remove":
      del here[key]
    elif isinstance(here, dict):
      here[draw(st.text(max_size=3))] = draw(JUNK)
    else:
      here.append(draw(JUNK))
    return
