// What somebody is asked for before the room: a name, and a token where the relay wants one.

import { byId, setHidden, setText } from "../common/dom.js";
import { labelError } from "../common/places.js";

/**
 * Resolves with {name, token}, or null when it was cancelled. `token`: whether to ask for one.
 * `error`: why it is asked (again). `yes`: what the button says.
 */
export function ask({ title, text = "", name, token = false, error = "", yes }) {
  const dialog = byId("gate");
  setText(byId("gate-title"), title);
  setText(byId("gate-text"), text);
  setHidden(byId("gate-text"), !text);
  setText(byId("gate-error"), error);
  setText(byId("gate-yes"), yes);
  setHidden(byId("gate-token-field"), !token);
  byId("gate-name").value = name;
  byId("gate-token").value = "";
  dialog.returnValue = "";
  byId("gate-no").onclick = () => dialog.close("no");
  byId("gate-form").onsubmit = (event) => {
    event.preventDefault();
    const wrong = labelError("A name", byId("gate-name").value.trim());
    setText(byId("gate-error"), wrong ?? "");
    if (wrong === null) dialog.close("yes");
  };
  if (!dialog.open) dialog.showModal();
  byId(token ? "gate-token" : "gate-name").focus();
  return new Promise((resolve) => {
    dialog.addEventListener("close", () => {
      const given = { name: byId("gate-name").value.trim(), token: byId("gate-token").value.trim() };
      resolve(dialog.returnValue === "yes" ? given : null);
    }, { once: true });
  });
}
