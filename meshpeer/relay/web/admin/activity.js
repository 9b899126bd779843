// What happened, the latest first.

import { byId, keyed, roving, setAttribute, setHidden, setText } from "./dom.js";
import { count } from "./format.js";
import { callNames } from "./model.js";
import { activityItem, fillActivityItem } from "./parts.js";

const KEPT = 1000, SHOWN = 200;
const NAMING = ["joined", "replaced", "updated"]; // their text is the display name
const OPERATOR = ["restarted_ice", "removed", "notice"];
const GROUPS = {
  "": () => true,
  presence: ({ kind }) => kind !== "link" && kind !== "refused" && !OPERATOR.includes(kind),
  link: ({ kind }) => kind === "link",
  refused: ({ kind }) => kind === "refused",
  operator: ({ kind }) => OPERATOR.includes(kind),
};

export class Activity {
  entries = []; // the oldest first
  #paused = null; // what there was when it was paused
  #list = byId("activity");
  #reachable;
  #onEntry;
  #names = new Map(); // room -> what those are called that the entries are about

  constructor({ onEntry, onChange }) {
    this.#onEntry = onEntry;
    this.#reachable = roving(this.#list, "button");
    for (const id of ["activity-kind", "activity-filter", "activity-room"]) byId(id).addEventListener("input", onChange);
    byId("activity-pause").addEventListener("click", () => {
      this.#paused = this.#paused ? null : this.entries;
      onChange();
    });
  }

  /** `first`: these are all there are. */
  add(entries, first) {
    this.entries = [...(first ? [] : this.entries), ...entries].slice(-KEPT);
    if (first) this.#paused &&= this.entries; // the numbers began anew
    const found = new Map();
    for (const { kind, roomId, peerId, text } of this.entries) {
      if (!NAMING.includes(kind)) continue;
      if (!found.has(roomId)) found.set(roomId, new Map());
      found.get(roomId).set(peerId, text ?? null);
    }
    this.#names = new Map([...found].map(([roomId, names]) => [roomId, callNames([...names])]));
  }

  /** What somebody is called in a room, as far as it is known: of `room` by who is there. */
  nameOf(room, roomId, id) {
    return (room?.id === roomId ? room.names.get(id) : undefined) ?? this.#names.get(roomId)?.get(id) ?? id;
  }

  /** `room`: the one that is chosen, `id`: its name, also when nothing is known of it. */
  update(id, room) {
    const nameOf = (roomId, peerId) => this.nameOf(room, roomId, peerId);
    const words = byId("activity-filter").value.trim().toLowerCase();
    const group = GROUPS[byId("activity-kind").value];
    const here = byId("activity-room").checked;
    const said = ({ kind, roomId, peerId, otherPeerId, text }) => [kind, roomId, peerId, otherPeerId, text, ...[peerId, otherPeerId].map((each) => each && nameOf(roomId, each))];
    const wanted = (entry) =>
      group(entry) && (!here || entry.roomId === id) && (!words || said(entry).some((text) => text?.toLowerCase().includes(words)));
    const shown = [];
    const entries = this.#paused ?? this.entries;
    for (let i = entries.length - 1; i >= 0 && shown.length < SHOWN; i--) if (wanted(entries[i])) shown.push(entries[i]);
    keyed(this.#list, shown, (entry) => `${entry.number} ${entry.at}`, (entry) => activityItem(entry, this.#onEntry), (item, entry) => fillActivityItem(item, entry, nameOf));
    this.#reachable();
    setHidden(byId("activity-empty"), shown.length > 0);
    setText(byId("activity-empty"), entries.length ? "Nothing of this kind." : "Nothing happened yet.");
    const missed = this.#paused ? this.entries.filter((entry) => entry.number > (this.#paused.at(-1)?.number ?? 0)).length : 0;
    setText(byId("activity-count"), missed ? `${count(missed)} new` : "");
    setAttribute(byId("activity-pause"), "aria-pressed", this.#paused !== null);
    setText(byId("activity-pause"), this.#paused ? "Resume" : "Pause");
  }
}
