"""A visitor without a pointer: goes on by keys alone, and sees at every stop where the focus is."""

# What stands out at the focus: an outline of its own or of what stands for it, whole on all four sides, or a thick line
# around a box of a drawing. The answer is what is wrong with it, or nothing.
FAULT = """() => {
  const at = document.activeElement;
  if (at === document.body) return "end";
  if (at.id === "main") return null;
  const named = at.className?.baseVal ?? at.className;
  const said = `${at.tagName.toLowerCase()}#${at.id}.${named} “${at.textContent.trim().slice(0, 30)}”`;
  const box = at.querySelector(":scope > rect");
  if (at instanceof SVGElement) return parseFloat(getComputedStyle(box).strokeWidth) >= 3 ? null : `${said}: no line`;
  const isRinged = (one) => {
    const style = getComputedStyle(one);
    const isDrawn = style.outlineStyle !== "none" && parseFloat(style.outlineWidth) >= 2;
    return isDrawn && one.getBoundingClientRect().width > 2;
  };
  const ringed = [at, at.closest(".method"), at.closest(".drop")].find((one) => one && isRinged(one));
  if (!ringed) return `${said}: no outline`;
  const style = getComputedStyle(ringed);
  const reach = parseFloat(style.outlineOffset) + parseFloat(style.outlineWidth);
  const ring = ringed.getBoundingClientRect();
  for (let over = ringed.parentElement; over && over !== document.body; over = over.parentElement) {
    const look = getComputedStyle(over);
    if (look.overflowX === "visible" && look.overflowY === "visible") continue;
    const room = over.getBoundingClientRect();
    const cut = {
      left: room.left - ring.left + reach, right: ring.right + reach - room.right,
      top: room.top - ring.top + reach, bottom: ring.bottom + reach - room.bottom,
    };
    const [side, by] = Object.entries(cut).sort((one, other) => other[1] - one[1])[0];
    if (by > 1.5) return `${said}: ${side} of its outline is cut off by ${Math.round(by)} pixels`;
  }
  return null;
}"""
FEWEST = 5  # stops of a page: its last are the choices of language and colours
FOCUSED = "(element) => element === document.activeElement"
WHERE = "document.activeElement.outerHTML.slice(0, 200)"


def fault(page) -> str | None:
    """What is wrong with how the focus is shown; None where it is seen."""
    return page.evaluate(FAULT)


def step(page, key="Tab") -> None:
    """One key, after which the focus is seen."""
    page.keyboard.press(key)
    assert fault(page) is None


def has_focus(locator) -> bool:
    return locator.evaluate(FOCUSED)


def reach(page, locator, key="Tab", most=90) -> None:
    """Go on, stop by stop, until the focus is where it is wanted."""
    for _ in range(most):
        step(page, key)
        if has_focus(locator):
            return
    raise AssertionError(f"{locator} was not reached in {most} stops; the focus is at {page.evaluate(WHERE)}")


def begin(page, address) -> None:
    """Open a page and pass its navigation, as the first stop offers."""
    page.goto(address)
    step(page)
    page.keyboard.press("Enter")
    assert page.evaluate("document.activeElement.id") == "main"


def walk(page, most=300) -> list[str]:
    """What is wrong with how the focus is shown at any stop of a page, from where it is to the last."""
    found = []
    for stops in range(most):
        page.keyboard.press("Tab")
        wrong = fault(page)
        if wrong == "end":
            assert stops > FEWEST, "nothing was walked through"
            return found
        if wrong:
            found.append(wrong)
    raise AssertionError(f"the page has no end: the focus goes round, and is at {page.evaluate(WHERE)}")
