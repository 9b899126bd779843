// How this page makes and changes its elements. What came from a peer becomes text and nothing else:
// there is no way in here to make markup of a string.

const SVG = "http://www.w3.org/2000/svg";

export const byId = (id) => document.getElementById(id);

/** An element with these properties and children; strings become text. `data` and `aria` are objects. */
export function el(tag, properties = {}, ...children) {
  const { data, aria, ...rest } = properties;
  const element = Object.assign(document.createElement(tag), rest);
  Object.assign(element.dataset, data);
  for (const [name, value] of Object.entries(aria ?? {})) element.setAttribute(`aria-${name}`, value);
  element.append(...children);
  return element;
}

/** An SVG element with these attributes. */
export function svg(tag, attributes = {}, ...children) {
  const element = document.createElementNS(SVG, tag);
  for (const [name, value] of Object.entries(attributes)) element.setAttribute(name, value);
  element.append(...children);
  return element;
}

/** A name that somebody chose: set apart, so that its direction turns nothing around it. */
export const named = (text, className = "name") => el("bdi", { className }, text);

// These four touch the document only where something is different: what is not touched keeps its
// focus, its selection and its place, and costs nothing.

export function setText(element, text) {
  if (element.textContent !== text) element.textContent = text;
}

export function setAttribute(element, name, value) {
  if (value === null) element.removeAttribute(name);
  else if (element.getAttribute(name) !== String(value)) element.setAttribute(name, value);
}

export function setHidden(element, hidden) {
  if (element.hidden !== hidden) element.hidden = hidden;
}

export function setClass(element, name, on) {
  if (element.classList.contains(name) !== on) element.classList.toggle(name, on);
}

/**
 * Makes `parent` have one child for each item, in their order. A child is kept as long as an item of
 * its key is there; `create(item)` makes one, `update(child, item)` fills it.
 */
export function keyed(parent, items, key, create, update) {
  const known = (parent.keyedChildren ??= new Map());
  const focused = parent.contains(document.activeElement) ? document.activeElement : null;
  const wanted = new Map(items.map((item) => [key(item), item]));
  for (const [name, child] of known) {
    if (wanted.has(name)) continue;
    child.remove();
    known.delete(name);
  }
  let place = parent.firstElementChild;
  for (const [name, item] of wanted) {
    let child = known.get(name);
    if (!child) known.set(name, (child = create(item)));
    if (child === place) {
      place = place.nextElementSibling;
    } else if (place && place.nextElementSibling === child) {
      // One that went away from here, or went down: moving that one instead spares all that follow.
      const down = place;
      place = child.nextElementSibling;
      parent.append(down);
    } else {
      parent.insertBefore(child, place);
    }
    update(child, item);
  }
  // An element that was moved has lost the focus.
  if (focused?.isConnected && focused !== document.activeElement) focused.focus({ preventScroll: true });
}

/** Arrow keys, Home and End go from one to another of what `selector` finds; Tab leaves them all.
    Returns what has to be called when these changed. */
export function roving(parent, selector) {
  const all = () => [...parent.querySelectorAll(selector)];
  const go = (to) => {
    for (const each of all()) each.tabIndex = each === to ? 0 : -1;
  };
  parent.addEventListener("focusin", (event) => {
    const to = event.target.closest(selector);
    if (to) go(to);
  });
  parent.addEventListener("keydown", (event) => {
    const from = event.target.closest(selector);
    if (!from || event.altKey || event.ctrlKey || event.metaKey) return;
    const each = all();
    const at = each.indexOf(from);
    const after = each[Math.min(at + 1, each.length - 1)];
    const before = each[Math.max(at - 1, 0)];
    const keys = { ArrowDown: after, ArrowRight: after, ArrowUp: before, ArrowLeft: before, Home: each[0], End: each.at(-1) };
    const to = keys[event.key];
    if (!to) return;
    event.preventDefault();
    to.focus();
  });
  return () => {
    const each = all(); // one, and only one, can be reached by Tab
    if (each.length && each.filter((one) => one.tabIndex === 0).length !== 1) {
      go(each.find((one) => one.getAttribute("aria-current") === "true") ?? each[0]);
    }
  };
}
