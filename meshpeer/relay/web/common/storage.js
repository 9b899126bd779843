// What a page keeps. Storage may be switched off, or full: then it holds for this page only.

/** @param {"local" | "session"} where @param {string} key @returns {string | null} */
export function recall(where, key) {
  try {
    return (where === "local" ? localStorage : sessionStorage).getItem(`meshpeer-${key}`);
  } catch {
    return null;
  }
}

/** null forgets it. @param {"local" | "session"} where @param {string} key @param {string | null} value */
export function keep(where, key, value) {
  try {
    const storage = where === "local" ? localStorage : sessionStorage;
    if (value === null) storage.removeItem(`meshpeer-${key}`);
    else storage.setItem(`meshpeer-${key}`, value);
  } catch {
    // see above
  }
}
