// What somebody is asked for before the room: a name, and a token where the relay wants one.

import { byId, setHidden, setText } from "../common/dom.js";
import { labelError } from "../common/places.js";

/** Whether it has the form of a join token: see docs/protocol.md. */
export const isToken = (text) => /^[!-~]{1,4096}$/.test(text);

/** The join token in what was pasted: a token, or a whole link with `#token=…`. */
export function tokenOf(text) {
  const given = new URLSearchParams(text.slice(text.indexOf("#") + 1)).get("token");
  return (text.includes("#") && given !== null ? given : text).trim();
}

/** Opens a dialog, and closes what else is open: it would be in front of it, or behind. */
function open(dialog) {
  for (const other of document.querySelectorAll("dialog[open]")) if (other !== dialog) other.close();
  dialog.returnValue = "";
  if (!dialog.open) dialog.showModal();
}

/**
 * Resolves with {name, token}, or null when it was cancelled. `token`: whether to ask for one.
 * `error`: why it is asked (again). `yes`: what the button says. `refuse(name)`: why it can't be this
 * name, or null.
 */
export function ask({ title, text = "", name, token = false, error = "", yes, refuse = () => null }) {
  const dialog = byId("gate");
  setText(byId("gate-title"), title);
  setText(byId("gate-text"), text);
  setHidden(byId("gate-text"), !text);
  setText(byId("gate-error"), error);
  setText(byId("gate-yes"), yes);
  setHidden(byId("gate-token-field"), !token);
  byId("gate-name").value = name;
  byId("gate-token").value = "";
  byId("gate-no").onclick = () => dialog.close("no");
  byId("gate-form").onsubmit = (event) => {
    event.preventDefault();
    const given = tokenOf(byId("gate-token").value);
    const called = byId("gate-name").value.trim();
    const wrong = labelError("A name", called) ?? refuse(called) ?? (given && !isToken(given) ? "This is no join token." : null);
    setText(byId("gate-error"), wrong ?? "");
    if (wrong === null) dialog.close("yes");
  };
  open(dialog);
  byId(token ? "gate-token" : "gate-name").focus();
  return new Promise((resolve) => {
    dialog.addEventListener("close", () => {
      const given = { name: byId("gate-name").value.trim(), token: tokenOf(byId("gate-token").value) };
      resolve(dialog.returnValue === "yes" ? given : null);
    }, { once: true });
  });
}

/** Answers the question for a token, if it is asked now, as somebody would. */
export function answerToken(token) {
  if (!byId("gate").open || byId("gate-token-field").hidden) return;
  byId("gate-token").value = token;
  byId("gate-form").requestSubmit();
}

/** Whether somebody is sure of it. `yes`: what the button says. */
export function isSure({ title, text, yes }) {
  const dialog = byId("sure");
  setText(byId("sure-title"), title);
  setText(byId("sure-text"), text);
  setText(byId("sure-yes"), yes);
  byId("sure-no").onclick = () => dialog.close("no");
  byId("sure-yes").onclick = () => dialog.close("yes");
  open(dialog);
  byId("sure-no").focus();
  return new Promise((resolve) => {
    dialog.addEventListener("close", () => resolve(dialog.returnValue === "yes"), { once: true });
  });
}
