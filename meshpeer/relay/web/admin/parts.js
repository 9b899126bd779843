// What several views are made of.

import { el, keyed, named, setAttribute, setText } from "./dom.js";
import { kindName, pathName, short, stateName, time } from "./format.js";
import { dash, otherEnd, rttOf, standingWords, tone } from "./model.js";

/** A word with the colour of what it says. */
export const chip = () => el("span", { className: "chip" });

export function setChip(element, text, colour) {
  setText(element, text);
  setAttribute(element, "class", `chip ${colour}`);
}

/** The state of a link, and its path where that says more. */
export function setLinkChip(element, link) {
  const text = !link.heard ? "not known now" : link.path === null ? stateName(link.state) : link.state === "connected" ? pathName(link.path) : `${stateName(link.state)}, ${pathName(link.path)}`;
  setChip(element, text, `${tone(link)} ${dash(link)}`);
}

/** A definition list out of [term, text, class] */
export function pairs(list, entries) {
  keyed(
    list,
    entries,
    ([term]) => term,
    ([term]) => el("div", {}, el("dt", {}, term), el("dd")),
    (row, [, text, className = ""]) => {
      setText(row.lastChild, text);
      setAttribute(row.lastChild, "class", className);
    },
  );
}

/** A list of `{ link }` and `{ member }` that can be chosen, each with a `key`; links as they are seen
    from `peer` or, when that is null, from outside. `onRow(selection)`. */
export function rowList(list, room, rows, peer, onRow) {
  keyed(
    list,
    rows,
    ({ key }) => key,
    ({ link, member }) => {
      const button = el("button", { type: "button", className: "row" }, el("span", { className: "who" }), chip(), el("span", { className: "number" }));
      button.addEventListener("click", () => onRow(link ? { link: [link.a, link.b] } : { peer: member.peerId }));
      return el("li", {}, button);
    },
    (item, { link, member }) => {
      const [who, state, rtt] = item.firstChild.children;
      if (member) {
        setNames(who, [room.name(member.peerId)]);
        setChip(state, ...standingWords(room, member));
        return;
      }
      setNames(who, peer === null ? [room.name(link.a), room.name(link.b)] : [room.name(otherEnd(link, peer))]);
      setLinkChip(state, link);
      setText(rtt, rttOf(link) === null ? "" : short(link.rtt));
    },
  );
}

/** One name, or two with an arrow between them. */
export function setNames(element, names) {
  const key = JSON.stringify(names);
  if (element.namesKey === key) return;
  element.namesKey = key;
  element.replaceChildren(...names.flatMap((name, i) => (i ? [" ↔ ", named(name)] : [named(name)])));
}

const KINDS = { refused: "bad", removed: "bad", notice: "turn", restarted_ice: "turn" };
const LEFT = { left: "", timeout: "did not come back in time", removed: "removed by the operator" };

/** What an entry of the activity says: [chip, its colour, text]. */
function entryWords(entry) {
  const { kind, text = "" } = entry;
  const link = kind === "link" && /^(\w+)(?: over (\w+))?(?:: ([^]*))?$/.exec(text);
  if (link) {
    const [, state, path = null, why = ""] = link;
    const about = { heard: true, state, path };
    return [path === null ? stateName(state) : pathName(path), tone(about), why === state ? "" : why];
  }
  const named = kind === "joined" || kind === "replaced"; // the text is what the entry is called
  return [kindName(kind), KINDS[kind] ?? "quiet", kind === "left" ? (LEFT[text] ?? text) : named ? "" : text];
}

/** A line of the activity: when, what, who, where unless `here`, and why. */
export function activityItem(entry, onEntry, here = false) {
  const [words, colour, text] = entryWords(entry);
  const what = el("span", { className: "what" });
  const item = el("li", {}, el("time", { dateTime: new Date(entry.at * 1000).toISOString() }, time(entry.at)), el("span", { className: `chip ${colour}` }, words), what);
  if (whoOf(entry).length || entry.roomId !== undefined) {
    const names = el("span", { className: "names" });
    if (entry.roomId === undefined) what.append(names);
    else {
      const button = el("button", { type: "button", className: "who", tabIndex: -1 }, names);
      if (whoOf(entry).length && !here) button.append(el("small", {}, " in ", named(entry.roomId)));
      button.addEventListener("click", () => onEntry(entry));
      what.append(button);
    }
  }
  if (text) what.append(named(text, "text"));
  return item;
}

const whoOf = (entry) => [entry.peerId, entry.otherPeerId].filter((id) => id !== undefined);

/** Says who it is about, as they are called now. */
export function fillActivityItem(item, entry, nameOf) {
  const names = item.querySelector(".names");
  if (!names) return;
  const who = whoOf(entry);
  setNames(names, who.length ? who.map((id) => nameOf(entry.roomId, id)) : [entry.roomId]);
  setAttribute(names, "title", who.length ? who.join(" ↔ ") : null);
}
