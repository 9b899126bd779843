// Asks for a name and a room.

import { byId, el, setText } from "../common/dom.js";
import { keepName, labelError, recallName, recentRooms, roomPath } from "../common/places.js";
import { installTheme } from "../common/theme.js";

const LETTERS = "abcdefghijkmnpqrstuvwxyz23456789"; // 32, none that is taken for another
const PRIVATE = 16; // letters, of five bits each

function check(what, id) {
  const field = byId(id);
  const error = labelError(what, field.value.trim());
  setText(byId(`${id}-error`), error ?? "");
  field.setAttribute("aria-invalid", String(error !== null));
  return error === null;
}

byId("name").value = recallName();
byId("name").addEventListener("input", () => check("A name", "name"));
byId("room").addEventListener("input", () => check("A room", "room"));

byId("random").addEventListener("click", () => {
  const letters = Array.from(crypto.getRandomValues(new Uint8Array(PRIVATE)), (byte) => LETTERS[byte % 32]);
  byId("room").value = letters.join("").replace(/(.{4})(?=.)/g, "$1-");
  check("A room", "room");
  byId("room").focus();
});

byId("enter").addEventListener("submit", (event) => {
  event.preventDefault();
  if (!check("A name", "name")) return byId("name").focus();
  if (!check("A room", "room")) return byId("room").focus();
  keepName(byId("name").value.trim());
  location.assign(roomPath(byId("room").value.trim() || "lobby"));
});

for (const room of recentRooms()) {
  byId("rooms").append(el("li", {}, el("a", { href: roomPath(room), className: "name" }, room)));
  byId("recent").hidden = false;
}
installTheme(byId("theme"));
