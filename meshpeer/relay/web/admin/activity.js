// What happened, the latest first.

import { byId, keyed, roving, setAttribute, setHidden, setText } from "./dom.js";
import { count } from "./format.js";
import { activityItem } from "./parts.js";

const KEPT = 1000, SHOWN = 200;
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
  }

  update(room) {
    const words = byId("activity-filter").value.trim().toLowerCase();
    const group = GROUPS[byId("activity-kind").value];
    const here = byId("activity-room").checked;
    const wanted = (entry) =>
      group(entry) && (!here || entry.roomId === room) && [entry.kind, entry.roomId, entry.peerId, entry.otherPeerId, entry.text].some((text) => text?.toLowerCase().includes(words));
    const shown = [];
    const entries = this.#paused ?? this.entries;
    for (let i = entries.length - 1; i >= 0 && shown.length < SHOWN; i--) if (wanted(entries[i])) shown.push(entries[i]);
    keyed(this.#list, shown, (entry) => `${entry.number} ${entry.at}`, (entry) => activityItem(entry, this.#onEntry), () => {});
    this.#reachable();
    setHidden(byId("activity-empty"), shown.length > 0);
    setText(byId("activity-empty"), entries.length ? "Nothing of this kind." : "Nothing happened yet.");
    const missed = this.#paused ? this.entries.filter((entry) => entry.number > (this.#paused.at(-1)?.number ?? 0)).length : 0;
    setText(byId("activity-count"), missed ? `${count(missed)} new` : "");
    setAttribute(byId("activity-pause"), "aria-pressed", this.#paused !== null);
    setText(byId("activity-pause"), this.#paused ? "Resume" : "Pause");
  }
}
