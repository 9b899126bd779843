// The link to the room, and a code that another device reads it from.

import { byId, setHidden, setText } from "../common/dom.js";
import { roomPath } from "../common/places.js";

const LOCAL = /^(localhost|.*\.localhost|127\..*|\[::1\])$/;

/** Puts `text` on the clipboard; false where the browser has none for pages without TLS. */
export async function copyText(text) {
  try {
    await navigator.clipboard.writeText(text);
    return true;
  } catch {
    return false; // undefined there, or refused
  }
}

/** Selects all of a field, which is then as good as copied: the old way of copying is tried. */
export function copyField(field) {
  field.focus();
  field.select();
  try {
    return document.execCommand("copy");
  } catch {
    return false;
  }
}

function note(token) {
  if (LOCAL.test(location.hostname)) {
    const more = token ? " Whoever opens it also needs a join token." : "";
    return `This address works on this machine only. For others, open the page by an address of it that they can reach.${more}`;
  }
  return `Whoever opens it${token ? ", and also has a join token," : ""} is in the same room, with any device.`;
}

/** `needsToken()`: whether the link alone lets nobody in. */
export function installInvite(room, needsToken) {
  const link = `${location.origin}${roomPath(room)}`;
  const code = byId("code");
  byId("link").value = link;
  code.addEventListener("load", () => {
    setHidden(code, false);
    setHidden(byId("code-error"), true);
  });
  code.addEventListener("error", () => {
    setHidden(code, true);
    explain(code.src);
  });
  async function explain(source) {
    // An image does not tell why it is not there.
    const status = await fetch(source).then((answer) => answer.status, () => 0);
    const never = status >= 400 && status < 500 && status !== 429;
    setText(byId("code-error"), never ? "There is no code for this link." : "The relay gave no code just now.");
    setHidden(byId("code-error"), !code.hidden);
  }
  byId("show-invite").addEventListener("click", () => {
    setText(byId("link-copied"), "");
    setText(byId("invite-note"), note(needsToken()));
    const source = `${roomPath(room)}/qr.svg?at=${encodeURIComponent(location.origin)}`;
    if (code.getAttribute("src") !== source || code.hidden) code.src = source;
    byId("invite").showModal();
  });
  byId("copy-link").addEventListener("click", async () => {
    const copied = (await copyText(link)) || copyField(byId("link"));
    setText(byId("link-copied"), copied ? "Copied" : "Selected: copy it");
  });
}
