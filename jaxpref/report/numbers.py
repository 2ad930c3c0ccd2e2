"""Numbers as people read them."""

_SPELLING = {"e-0": "e-", "e+0": "e", "e+": "e", "-": "−", "nan": "NaN",
             "inf": "∞"}  # fmt: skip


def number(value: float, digits: int = 4) -> str:
  """In so many significant digits: 0.6931, −1.5, 2,310, 5e−7, NaN."""
  whole = 1e3 <= abs(value) < 1e6
  # Plus zero, for -0.0.
  text = f"{value:,.0f}" if whole else f"{value + 0.0:.{digits}g}"
  for plain, better in _SPELLING.items():
    text = text.replace(plain, better)
  return text


def percent(share: float, decimals: int = 1) -> str:
  return f"{100 * share:.{decimals}f}\N{NO-BREAK SPACE}%"
