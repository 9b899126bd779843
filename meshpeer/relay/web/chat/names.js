// How people and paths are shown.

import { el } from "../common/dom.js";
import { pathName } from "../common/format.js";

const TONES = 8;
const segments = new Intl.Segmenter();

/** What people read: the display name, else the id, if that is not a random one. */
export const nameOf = (peer) => peer.name ?? (/^[0-9a-f]{16}$/.test(peer.id) ? `Guest ${peer.id.slice(0, 4)}` : peer.id);

/** Whether it says so itself. */
export const isBot = (peer) => peer.metadata?.bot === true;

/** The same colour for the same id, in every tab. */
export function toneOf(id) {
  let hash = 0;
  for (const letter of id) hash = (Math.imul(hash, 31) + letter.codePointAt(0)) >>> 0;
  return `tone-${hash % TONES}`;
}

/** The first letters of up to two words. */
function initials(name) {
  const words = name.split(/[\s_.-]+/u).filter(Boolean);
  const letters = words.map((word) => [...segments.segment(word)].map((each) => each.segment).find((each) => /[\p{L}\p{N}\p{Emoji}]/u.test(each)));
  return letters.filter(Boolean).slice(0, 2).join("") || "?";
}

export const avatar = (peer) => {
  const element = el("span", { className: `avatar ${toneOf(peer.id)}`, aria: { hidden: "true" } });
  showAvatar(element, peer);
  return element;
};

export function showAvatar(element, peer) {
  const text = initials(nameOf(peer));
  if (element.textContent !== text) element.textContent = text;
}

/** How something came, or goes: coloured as everywhere. */
export const pathMark = (path) => el("span", { className: `path ${path ?? "idle"}` }, pathName(path));
