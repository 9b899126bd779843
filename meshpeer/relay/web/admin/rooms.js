// The list of rooms.

import { byId, el, keyed, named, roving, setAttribute, setHidden, setText } from "./dom.js";
import { count, counted } from "./format.js";

const ORDERS = {
  members: (a, b) => b.members - a.members,
  trouble: (a, b) => b.unconnected - a.unconnected || b.relay - a.relay || b.members - a.members,
  name: () => 0,
};
const PARTS = [["direct", "direct"], ["turn", "TURN"], ["relay", "relay"], ["unconnected", "unconnected"]];

export class Rooms {
  #list = byId("rooms");
  #filter = byId("room-filter");
  #order = byId("room-order");
  #open = byId("room-open");
  #reachable;
  #onRoom;

  constructor({ onRoom, onChange }) {
    this.#onRoom = onRoom;
    this.#reachable = roving(this.#list, "button");
    this.#filter.addEventListener("input", onChange);
    this.#order.addEventListener("change", onChange);
    this.#filter.addEventListener("keydown", (event) => {
      if (event.key === "ArrowDown") this.#list.querySelector("button")?.focus();
      if (event.key === "Enter") (this.#list.querySelector("button") ?? this.#open).click();
    });
    this.#open.addEventListener("click", () => onRoom(this.#filter.value));
  }

  update(overview, chosen) {
    const rooms = overview?.rooms ?? [];
    const wanted = this.#filter.value.trim().toLowerCase();
    const order = ORDERS[this.#order.value];
    const found = rooms
      .filter((room) => room.roomId.toLowerCase().includes(wanted))
      .sort((a, b) => order(a, b) || (a.roomId < b.roomId ? -1 : 1));
    keyed(
      this.#list,
      found,
      (room) => room.roomId,
      (room) => this.#item(room),
      (item, room) => this.#fill(item.firstChild, room, chosen),
    );
    this.#reachable();
    const all = overview?.roomCount ?? 0;
    setText(byId("room-count"), overview ? count(all) : "");
    const hidden = all - rooms.length;
    const notes = [];
    if (overview && !all) notes.push("There is none. The first who names a room opens it, the last who leaves closes it.");
    else if (overview && !found.length) notes.push(hidden ? "None of the largest rooms has this in its name." : "No room has this in its name.");
    if (hidden > 0) notes.push(`These are the ${count(rooms.length)} largest of ${count(all)}. Others open by their whole name.`);
    setText(byId("rooms-note"), notes.join(" "));
    setHidden(byId("rooms-note"), !notes.length);
    const name = this.#filter.value.trim();
    const offer = hidden > 0 && name !== "" && !rooms.some((room) => room.roomId === name);
    setHidden(this.#open, !offer);
    if (offer) this.#open.replaceChildren("Open the room ", named(name));
  }

  #item(room) {
    const bar = el("span", { className: "bar", aria: { hidden: "true" } }, ...PARTS.map(([name]) => el("i", { className: name })));
    const button = el(
      "button",
      { type: "button", className: "room" },
      el("span", { className: "line" }, named(room.roomId), el("span", { className: "number" })),
      bar,
      el("span", { className: "small" }),
    );
    button.addEventListener("click", () => this.#onRoom(room.roomId));
    return el("li", {}, button);
  }

  #fill(button, room, chosen) {
    const [title, bar, words] = button.children;
    setText(title.lastChild, counted(room.members, "member") + (room.away ? `, ${count(room.away)} away` : ""));
    PARTS.forEach(([name], i) => {
      const part = bar.children[i], grow = String(room[name]);
      setHidden(part, !room[name]);
      if (part.style.flexGrow !== grow) part.style.flexGrow = grow;
    });
    const parts = PARTS.filter(([name]) => room[name]).map(([name, word]) => `${count(room[name])} ${word}`);
    setText(words, parts.join(" · ") || "no pairs");
    setAttribute(button, "aria-current", room.roomId === chosen ? "true" : null);
  }
}
