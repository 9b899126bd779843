// What several views are made of.

import { el, keyed, named, setAttribute, setText } from "./dom.js";
import { kindName, pathName, short, stateName, time } from "./format.js";
import { dash, otherEnd, tone } from "./model.js";

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

/** A list of links that can be chosen, seen from `peer` or, when that is null, from outside. */
export function linkList(list, room, links, peer, onLink) {
  keyed(
    list,
    links,
    (link) => link.key,
    (link) => {
      const button = el("button", { type: "button", className: "row" }, el("span", { className: "who" }), chip(), el("span", { className: "number" }));
      button.addEventListener("click", () => onLink(link.a, link.b));
      return el("li", {}, button);
    },
    (item, link) => {
      const [who, state, rtt] = item.firstChild.children;
      setNames(who, peer === null ? [room.name(link.a), room.name(link.b)] : [room.name(otherEnd(link, peer))]);
      setLinkChip(state, link);
      setText(rtt, link.rtt === null ? "" : short(link.rtt));
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

const KINDS = { refused: "bad", removed: "bad", link: "plain", notice: "turn", restarted_ice: "turn" };

/** A line of the activity. */
export function activityItem(entry, onEntry) {
  const who = [entry.peerId, entry.otherPeerId].filter((id) => id !== undefined);
  const item = el("li", {}, el("time", { dateTime: new Date(entry.at * 1000).toISOString() }, time(entry.at)), el("span", { className: `chip ${KINDS[entry.kind] ?? "quiet"}` }, kindName(entry.kind)));
  if (who.length || entry.roomId !== undefined) {
    const names = el("span");
    setNames(names, who.length ? who : [entry.roomId]);
    const button = el("button", { type: "button", className: "who", tabIndex: -1 }, names);
    if (who.length && entry.roomId !== undefined) button.append(el("small", {}, " in ", named(entry.roomId)));
    if (entry.roomId === undefined) item.append(names);
    else item.append(button);
    button.addEventListener("click", () => onEntry(entry));
  }
  if (entry.text) item.append(named(entry.text, "text"));
  return item;
}
